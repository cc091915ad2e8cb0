"""What a model is trained on: some columns, their lists brought to one length."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import pyarrow as pa

from matforge.model import UsageError
from matforge.vulcan.columns import list_lengths


@dataclass(frozen=True)
class FeatureSpec:
    """Which columns, and how lists become arrays of one shape.

    Parameters
    ----------
    features : sequence of str
        Columns, in this order.
    list_max_len : int or mapping of str to int, optional
        Length that lists are brought to (each of them, or by name): shorter ones are filled up at the
        end, longer ones are cut, of which a warning tells. Without it lists stay as they are.
    list_fill : float or mapping of str to float
        What is filled in. Lists of whole numbers become floats if this is no whole number (NaN, for
        instance). A list that is missing is filled altogether.
    keep_geometry_id : bool
        Whether ``geometry_id`` is added.

    Raises
    ------
    UsageError
        If one of these cannot be used.
    """

    features: Sequence[str]
    list_max_len: int | Mapping[str, int] | None = None
    list_fill: float | Mapping[str, float] = 0
    keep_geometry_id: bool = True

    def __post_init__(self) -> None:
        names: Any = self.features
        found = tuple(names) if isinstance(names, Iterable) and not isinstance(names, str) else ()
        if not found or not all(isinstance(name, str) for name in found) or len(set(found)) != len(found):
            raise UsageError(f"features is a list of different names of columns, not {names!r}.")
        object.__setattr__(self, "features", found)
        for length in _values(self.list_max_len):
            if length is not None and not (_is(length, Integral) and length >= 1):
                raise UsageError(f"list_max_len must be a whole number of at least 1, not {length!r}.")
        for fill in _values(self.list_fill):
            if not _is(fill, Real):
                raise UsageError(f"list_fill must be a number, not {fill!r}.")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the result."""
        extra = self.keep_geometry_id and "geometry_id" not in self.features
        return (*self.features, "geometry_id") if extra else tuple(self.features)

    def apply(self, table: pa.Table) -> pa.Table:
        """Those columns of ``table``, with lists as lists of a fixed size.

        Raises
        ------
        KeyError
            If the table lacks one.
        """
        arrays = [self._one(name, table.column(name).combine_chunks()) for name in self.columns]
        return pa.table(dict(zip(self.columns, arrays, strict=True)))

    def _one(self, name: str, array: pa.Array) -> pa.Array:
        length = _of(self.list_max_len, name)
        if length is None or not pa.types.is_list(array.type):
            return array
        fill = _of(self.list_fill, name) or 0
        return _padded(name, array, int(length), fill)


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else [value]


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _of(value: float | Mapping[str, float] | None, name: str) -> float | None:
    return value.get(name) if isinstance(value, Mapping) else value


def _padded(name: str, array: pa.Array, length: int, fill: float) -> pa.Array:
    """Lists of numbers as lists of ``length`` numbers."""
    kind = array.type.value_type
    if pa.types.is_integer(kind) and not float(fill).is_integer():
        kind = pa.float64()
    sizes = list_lengths(array)
    flat = array.flatten().to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    columns = np.arange(len(flat)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    fits = columns < length
    out = np.full((len(sizes), length), fill, dtype=kind.to_pandas_dtype())
    out[rows[fits], columns[fits]] = flat[fits]
    cut = int((sizes > length).sum())
    if cut:
        text = f"{name}: {cut} of {len(sizes)} lists were cut to {length} entries; raise list_max_len."
        warnings.warn(text, UserWarning, stacklevel=5)
    return pa.FixedSizeListArray.from_arrays(pa.array(out.ravel(), kind), length)
