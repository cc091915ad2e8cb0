"""Columns of a batch as Arrow arrays of the schema's types, checked without a loop over the rows.

Each function takes what a producer gave, returns the array to write, or None after saying what is
wrong and in which rows. Only where a column cannot be converted at all are its rows tried one by one,
to say which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from matforge.model import UsageError
from matforge.vulcan.problems import Complaints

_CONVERSION = (pa.ArrowException, TypeError, ValueError, OverflowError)
Limits = tuple[int, int]
_INT32: Limits = (-(2**31), 2**31 - 1)
_INT64: Limits = (-(2**63), 2**63 - 1)


def named_columns(frame: Any, complaints: Complaints) -> dict[str, Any]:
    """The columns of a data frame, an Arrow table, or a mapping of sequences, by name.

    Raises
    ------
    UsageError
        If it is none of these.
    """
    found: dict[str, Any] = {}
    for name, values in _items(frame):
        if not isinstance(name, str) or not name:
            complaints.add("", f"a column is named {name!r}, but names are text")
        elif name in found:
            complaints.add(name, "stands there twice")
        else:
            found[name] = values
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) > 1:
        complaints.add("", f"the columns have different lengths: {lengths}")
        complaints.end()
    return found


def _items(frame: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(frame, pa.Table):
        return zip(frame.column_names, frame.columns, strict=True)
    if hasattr(frame, "iloc") and hasattr(frame, "items"):
        return iter(frame.items())
    if isinstance(frame, Mapping) and all(hasattr(v, "__len__") for v in frame.values()):
        return iter(frame.items())
    raise UsageError(
        f"A batch is a data frame, an Arrow table or a mapping of columns, not {type(frame).__name__}."
    )


def to_arrow(name: str, values: Any, complaints: Complaints) -> pa.Array | None:
    """``values`` with the type they have; NaN counts as missing."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if not isinstance(values, pa.Array):
        if isinstance(getattr(values, "dtype", None), np.dtype):
            values = np.asarray(values)  # Arrow asks a pandas column for many things first
        try:
            values = pa.array(values, from_pandas=True)
        except _CONVERSION as error:
            values = _once_more(name, values, error, complaints)
    if isinstance(values, pa.ChunkedArray):  # some pandas types come in pieces
        values = values.combine_chunks()
    if isinstance(values, pa.DictionaryArray):
        values = values.dictionary_decode()
    return values


def _once_more(name: str, values: Any, error: Exception, complaints: Complaints) -> pa.Array | None:
    """Rows of arrays that differ in type become lists first; rows that are to blame are named."""
    rows = [_plain(value) for value in values]
    try:
        return pa.array(rows, from_pandas=True)
    except _CONVERSION:
        pass
    text = f"cannot be stored ({str(error).splitlines()[0].rstrip('.')})"
    complaints.add(name, text, _culprits(rows))
    return None


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _culprits(rows: list[Any]) -> list[int]:
    """Rows that cannot be converted alone, or else those unlike the most frequent kind."""
    kinds: list[str | None] = []
    for row in rows:
        try:
            kinds.append(_kind(pa.array([row], from_pandas=True).type))
        except _CONVERSION:
            kinds.append(None)
    usual = max(set(kinds) - {None}, key=kinds.count, default=None)
    return [number for number, kind in enumerate(kinds) if kind is None or kind not in (usual, "null")]


def _kind(found: pa.DataType) -> str:
    if is_list(found):
        return f"list of {_kind(found.value_type)}"
    return "number" if is_number(found) else str(found)


def is_list(found: pa.DataType) -> bool:
    """Whether values are lists."""
    return bool(
        pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
    )


def is_number(found: pa.DataType) -> bool:
    """Whether values are numbers; truth values are not."""
    return bool(pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found))


def rows_where(mask: NDArray[np.bool_]) -> list[int]:
    """Row numbers at which ``mask`` (rows,) holds."""
    return np.flatnonzero(mask).tolist()


def missing_rows(array: pa.Array) -> list[int]:
    """Row numbers without a value."""
    return rows_where(array.is_null().to_numpy(zero_copy_only=False)) if array.null_count else []


# -- one value a row -------------------------------------------------------------------------------


def scalar(field: pa.Field, array: pa.Array, complaints: Complaints) -> pa.Array | None:
    """A column of one value a row, of the type of ``field``."""
    kind = field.type
    if not field.nullable and (rows := missing_rows(array)):
        complaints.add(field.name, "has no value, or NaN", rows)
        return None
    if array.null_count == len(array):
        return pa.nulls(len(array), kind)
    if pa.types.is_string(kind):
        return _text(field, array, complaints)
    if pa.types.is_boolean(kind):
        return _same(array, pa.types.is_boolean(array.type), field, "True or False", complaints)
    if pa.types.is_timestamp(kind):
        return _times(field, array, complaints)
    if not is_number(array.type):
        return _same(array, False, field, "a number", complaints)
    check = _whole if pa.types.is_integer(kind) else _finite
    return check(field, array, complaints)


def _same(array: pa.Array, fits: bool, field: pa.Field, what: str, complaints: Complaints) -> pa.Array | None:
    if fits:
        return array
    complaints.add(field.name, f"must be {what}, but holds {array.type}")
    return None


def _text(field: pa.Field, array: pa.Array, complaints: Complaints) -> pa.Array | None:
    fits = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    checked = _same(array, bool(fits), field, "text", complaints)
    return None if checked is None else checked.cast(field.type)


def _times(field: pa.Field, array: pa.Array, complaints: Complaints) -> pa.Array | None:
    if not pa.types.is_timestamp(array.type):
        return _same(array, False, field, "a time", complaints)
    if array.type.tz is None:  # a time without a zone is meant in UTC, as everywhere in these files
        array = pc.assume_timezone(array, "UTC")
    return array.cast(field.type, safe=False)  # parts of a microsecond are dropped


def _values(array: pa.Array) -> NDArray[Any]:
    """Numbers as an array of their own type; missing ones are 0."""
    if array.null_count:
        array = array.fill_null(0)
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    return array.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _finite(field: pa.Field, array: pa.Array, complaints: Complaints) -> pa.Array | None:
    with np.errstate(over="ignore"):
        stored = _values(array).astype(field.type.to_pandas_dtype(), copy=False)
    if not _fit(stored, None):
        complaints.add(field.name, "is not finite", rows_where(~np.isfinite(stored)))
        return None
    return pa.array(stored, field.type, mask=_mask(array))


def _whole(field: pa.Field, array: pa.Array, complaints: Complaints) -> pa.Array | None:
    values, limits = _values(array), _INT32 if field.type == pa.int32() else _INT64
    if not _fit(values, limits):
        bad = unfit(values, limits)
        text = f"must be a whole number of {field.type.bit_width} bits, not {values[np.argmax(bad)]}"
        complaints.add(field.name, text, rows_where(bad))
        return None
    return pa.array(values.astype(field.type.to_pandas_dtype(), copy=False), field.type, mask=_mask(array))


def _mask(array: pa.Array) -> NDArray[np.bool_] | None:
    return array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None


def _fit(values: NDArray[Any], limits: Limits | None) -> bool:
    """Whether all numbers are whole and within ``limits``, or finite without; cheaper than to say which."""
    if not len(values):
        return True
    low, high = values.min(), values.max()  # NaN, if there is one
    if limits is None:
        return bool(np.isfinite(low) and np.isfinite(high))
    return bool(low >= limits[0] and high <= limits[1]) and (
        values.dtype.kind != "f" or not unfit(values, limits).any()
    )


def unfit(values: NDArray[Any], limits: Limits) -> NDArray[np.bool_]:
    """Which numbers are not whole, or outside of ``limits``."""
    low, high = limits
    if values.dtype.kind == "f":
        # 2**63 as a float is just outside, so the upper end is compared strictly
        inside = (values >= float(low)) & (values < float(high) + 1)
        outside: NDArray[np.bool_] = ~(inside & (np.floor(values) == values))
        return outside
    if values.dtype.kind == "u":
        return values > high
    return (values < low) | (values > high)


# -- lists -----------------------------------------------------------------------------------------


def numbers(
    field: pa.Field, array: pa.Array, complaints: Complaints, length: int | None = None
) -> pa.Array | None:
    """A column of lists of numbers, of the type of ``field``.

    Parameters
    ----------
    length : int, optional
        What each list must have; without it, all must have the same if the column is required.
    """
    if not field.nullable and (rows := missing_rows(array)):
        complaints.add(field.name, "has no value", rows)
        return None
    if array.null_count == len(array):
        return pa.nulls(len(array), field.type)
    if not is_list(array.type) or not _numeric(array.type.value_type):
        return _same(array, False, field, "a list of numbers", complaints)
    if not pa.types.is_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    sizes = list_lengths(array)
    before = len(complaints.found)
    if not field.nullable:
        _even(field.name, sizes, length, complaints)
    values = _entries(field, array, sizes, complaints)
    if values is None or len(complaints.found) > before:
        return None
    offsets = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(sizes, out=offsets[1:])
    gaps = pa.array(_mask(array)) if array.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=field.type, mask=gaps)


def _numeric(found: pa.DataType) -> bool:
    return is_number(found) or bool(pa.types.is_null(found))


def list_lengths(array: pa.ListArray) -> NDArray[np.int64]:
    """Entries of each list, (rows,); 0 where there is none."""
    if array.null_count:
        return pc.list_value_length(array).fill_null(0).to_numpy().astype(np.int64)  # type: ignore[no-any-return]
    ends = array.offsets.to_numpy()
    return (ends[1:] - ends[:-1]).astype(np.int64)  # type: ignore[no-any-return]


def entries(array: pa.ListArray) -> pa.Array:
    """The entries of all lists in one array."""
    whole = array.values
    if not array.null_count and array.offset == 0 and len(array):
        ends = array.offsets
        if ends[0].as_py() == 0 and ends[-1].as_py() == len(whole):
            return whole  # as it is; flattening costs a call for each column
    return array.flatten()


def _even(name: str, sizes: NDArray[np.int64], length: int | None, complaints: Complaints) -> None:
    usual = length or int(sizes[0])
    if usual and (sizes == usual).all():
        return
    empty = sizes == 0
    if empty.any() and length != 0:
        complaints.add(name, "is empty", rows_where(empty))
    if length is not None:
        wrong, text = (sizes != length) & ~empty, f"must have {length} entries (h12)"
    else:
        filled = sizes[~empty]
        usual = int(np.bincount(filled).argmax()) if len(filled) else 0
        wrong, text = (sizes != usual) & ~empty, f"has another length than {usual}"
    if wrong.any():
        complaints.add(name, text, rows_where(wrong))


def _entries(
    field: pa.Field, array: pa.Array, sizes: NDArray[np.int64], complaints: Complaints
) -> pa.Array | None:
    """The entries of all lists in one array, of the type of the lists of ``field``."""
    flat = entries(array)
    whole = pa.types.is_integer(field.type.value_type)

    def rows(mask: NDArray[np.bool_]) -> list[int]:
        return np.unique(np.repeat(np.arange(len(sizes)), sizes)[mask]).tolist()  # type: ignore[no-any-return]

    if flat.null_count:
        gaps = flat.is_null().to_numpy(zero_copy_only=False)
        complaints.add(field.name, "has an entry without a value, or NaN", rows(gaps))
        return None
    values = _values(flat) if not pa.types.is_null(flat.type) else np.zeros(0)
    if not _fit(values, _INT32 if whole else None):
        bad = unfit(values, _INT32) if whole else ~np.isfinite(values)
        what = "no whole number of 32 bits" if whole else "not finite"
        complaints.add(field.name, f"has an entry that is {what}", rows(bad))
        return None
    return pa.array(values.astype(field.type.value_type.to_pandas_dtype(), copy=False))


def matrix(array: pa.Array) -> NDArray[Any]:
    """Lists of equal length as a matrix, (rows, length), without a copy."""
    flat = entries(array).to_numpy(zero_copy_only=False)
    return flat.reshape(len(array), -1)  # type: ignore[no-any-return]


# -- a producer's own ------------------------------------------------------------------------------

_SIMPLE: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string,
    pa.types.is_large_string, pa.types.is_timestamp,
)  # fmt: skip


def own(name: str, array: pa.Array, complaints: Complaints) -> pa.Array | None:
    """A column that the schema does not know, with the type it has (as parquet gives it back)."""
    kind = array.type.value_type if is_list(array.type) else array.type
    if not any(fits(kind) for fits in _SIMPLE):
        text = f"holds {array.type}; a column of your own holds numbers, text, times, or lists of these"
        complaints.add(name, text)
        return None
    if pa.types.is_large_string(kind):
        kind = pa.string()
    elif pa.types.is_timestamp(kind):
        if kind.tz is None and not is_list(array.type):
            array = pc.assume_timezone(array, "UTC")
        kind = pa.timestamp("us", tz="UTC")
    return array.cast(pa.list_(kind) if is_list(array.type) else kind, safe=False)
