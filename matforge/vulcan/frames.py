"""Arrow tables as data frames, with types that do not depend on which values happen to be missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from matforge.vulcan.schema import SCHEMA

if TYPE_CHECKING:
    import pandas as pd

_FULL = frozenset(field.name for field in SCHEMA if not field.nullable)
"""Columns that always have values, so that plain NumPy types do."""


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """``table`` as a data frame.

    Whole numbers and truth values that may be missing get pandas' nullable types, so that a column has
    one type whether or not any is missing; everything else is as Arrow converts it.
    """
    import pandas as pd

    kinds = {
        pa.bool_(): pd.BooleanDtype(),
        pa.int8(): pd.Int8Dtype(),
        pa.int16(): pd.Int16Dtype(),
        pa.int32(): pd.Int32Dtype(),
        pa.int64(): pd.Int64Dtype(),
    }
    loose = [f.name for f in table.schema if f.name not in _FULL and f.type in kinds]
    rest = table.drop_columns(loose) if loose else table
    frame = rest.to_pandas(ignore_metadata=True)
    if not loose:
        return frame
    nullable = table.select(loose).to_pandas(types_mapper=kinds.get, ignore_metadata=True)
    return pd.concat([frame, nullable], axis=1)[table.column_names]
