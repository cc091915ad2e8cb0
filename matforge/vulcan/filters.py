"""What is looked for: named conditions as one expression that the readers of files understand.

``name=value`` means equal, a list or set any of these, a tuple ``(low, high)`` between (both ends
included, None for open), None no condition. A row whose value is missing meets no condition on it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import reduce
from numbers import Integral, Real
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from matforge.model import UsageError
from matforge.vulcan.identity import GEOMETRY_KEYS, HASH_KEY
from matforge.vulcan.schema import EXTRA, SCHEMA

SHARD_FILTERS = ("run_id", "geometry_id", *GEOMETRY_KEYS, HASH_KEY)
"""Filters that the catalogue answers, so that other files are not even opened."""
FILTERS = tuple(field.name for field in SCHEMA if not pa.types.is_list(field.type) and field.name != EXTRA)


class UnknownFilterError(UsageError, TypeError):
    """A filter of that name does not exist."""


def expression(filters: Mapping[str, Any], names: Iterable[str] = FILTERS) -> pc.Expression | None:
    """All conditions on columns among ``names`` in one expression; None if there are none.

    Raises
    ------
    UnknownFilterError
        If a filter is not in :data:`FILTERS`.
    UsageError
        If a value does not fit its column.
    """
    unknown = [repr(name) for name in filters if name not in FILTERS]
    if unknown:
        raise UnknownFilterError(
            f"There is no filter {' or '.join(unknown)}; known are {', '.join(FILTERS)}; for anything else "
            "there is where=."
        )
    wanted = set(names)
    conditions = [
        _condition(name, value) for name, value in filters.items() if value is not None and name in wanted
    ]
    return both(*conditions)


def both(*conditions: pc.Expression | None) -> pc.Expression | None:
    """All of these that are conditions, in one; None if none is."""
    given = [condition for condition in conditions if condition is not None]
    return reduce(operator.and_, given) if given else None


def _condition(name: str, value: Any) -> pc.Expression:
    field, kind = pc.field(name), SCHEMA.field(name).type
    if isinstance(value, tuple):
        return _between(name, field, kind, value)
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return field == _scalar(name, kind, value)
    values = [_scalar(name, kind, entry) for entry in value]
    return field.isin(pa.array([v.as_py() for v in values], kind))


def _between(name: str, field: pc.Expression, kind: pa.DataType, value: tuple[Any, ...]) -> pc.Expression:
    ordered = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_timestamp(kind)
    if len(value) != 2 or not ordered or value == (None, None):
        raise UsageError(
            f"{name}={value!r} is no range: give (low, high) for a number or a time, and a list for any of "
            "several values."
        )
    low, high = (None if end is None else _scalar(name, kind, end) for end in value)
    found = both(None if low is None else field >= low, None if high is None else field <= high)
    assert found is not None
    return found


def _scalar(name: str, kind: pa.DataType, value: Any) -> pa.Scalar:
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()  # a number of numpy
    whole = isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())
    fits, what = {
        "bool": (isinstance(value, bool), "True or False"),
        "string": (isinstance(value, str), "text"),
        "time": (isinstance(value, datetime), "a time"),
        "int": (whole and not isinstance(value, bool), "a whole number"),
        "float": (isinstance(value, Real) and not isinstance(value, bool), "a number"),
    }[_family(kind)]
    if not fits:
        raise UsageError(f"{name} is {what}, so it cannot be compared with {value!r}.")
    try:
        return pa.scalar(int(value) if _family(kind) == "int" else value, kind)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise UsageError(f"{name} never is {value!r}: {error}.") from error


def _family(kind: pa.DataType) -> str:
    for name, fits in (
        ("bool", pa.types.is_boolean), ("string", pa.types.is_string), ("time", pa.types.is_timestamp),
        ("int", pa.types.is_integer),
    ):  # fmt: skip
        if fits(kind):
            return name
    return "float"
