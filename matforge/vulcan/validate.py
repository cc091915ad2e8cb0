"""From a producer's batch to the table that is staged: filled in, checked, nothing done in between.

Everything that is wrong is found before anything is raised, and everything is raised before anything
is written. A vacuum is a pair (flux, z): one flux vector may have several vacua, but the same pair
twice in a batch is a mistake. Two z are the same if they agree to :data:`DIGITS` decimal digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import lru_cache
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from matforge.model import UsageError
from matforge.vulcan import columns as col
from matforge.vulcan.identity import GEOMETRY_KEYS, HASH_KEY, MISSING, GeometryId
from matforge.vulcan.problems import Complaints
from matforge.vulcan.schema import EXTRA, FLOOR, RESERVED, SCHEMA

DIGITS = 8
_SOLVER = {"name": "solver_name", "config_hash": "solver_config_hash"}
_PROVENANCE = {"git_sha": "git_sha", "seed": "seed", "wall_clock_s": "wall_clock_s"}
_FIELDS = {field.name: field for field in SCHEMA}
_AUTHORITATIVE = ("geometry_id", *GEOMETRY_KEYS, HASH_KEY)
"""Filled by the writer; a batch that brings one must agree with the geometry."""


@dataclass(frozen=True)
class Batch:
    """A checked batch, ready to be staged under any run id."""

    geometry: GeometryId
    columns: Mapping[str, pa.Array]
    """All but ``run_id``."""
    n_rows: int
    solver: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def table(self, run_id: str) -> pa.Table:
        """The table to write: the schema's columns in their order, then the producer's own."""
        known = {**self.columns, "run_id": pa.repeat(run_id, self.n_rows)}
        filled = [
            known[name] if name in known else _missing(self.n_rows, known_field.type)
            for name, known_field in _FIELDS.items()
        ]
        own = [name for name in self.columns if name not in _FIELDS]
        return pa.Table.from_arrays(
            [*filled, *(self.columns[name] for name in own)],
            schema=pa.schema([*SCHEMA, *(pa.field(name, self.columns[name].type) for name in own)])
            if own
            else SCHEMA,
        )


@lru_cache(maxsize=16)
def _missing(rows: int, kind: pa.DataType) -> pa.Array:
    return pa.nulls(rows, kind)


@lru_cache(maxsize=4)
def _identity(where: GeometryId, rows: int) -> dict[str, pa.Array]:
    """The columns that say which geometry it is; the next batch is often of the same."""
    values = {"geometry_id": where.id, **where.keys, HASH_KEY: where.geometry_hash}
    return {name: _constant(name, value, rows) for name, value in values.items()}


def prepare(
    frame: Any,
    geometry: Any,
    *,
    tadpole_charge: Any = None,
    solver: Any = None,
    provenance: Any = None,
    now: datetime | None = None,
) -> Batch:
    """Check a batch and fill in what the writer knows.

    Parameters
    ----------
    frame : DataFrame, Table or mapping of columns
        With at least ``flux, moduli_re, moduli_im, tau_re, tau_im``.
    geometry : mapping or object
        See :meth:`GeometryId.of`.
    tadpole_charge : int, optional
        Of every row, unless the batch has a column of that name; by default the column ``n_flux``.
    solver : mapping or str, optional
        ``name`` and ``config_hash`` become columns; all of it is kept as provenance.
    provenance : mapping, optional
        ``git_sha``, ``seed`` and ``wall_clock_s`` become columns; all of it is kept.
    now : datetime, optional
        The ``created_at`` of rows without one.

    Raises
    ------
    BatchError
        With everything that is wrong with the batch, and the rows.
    UsageError
        If another argument cannot be used.
    """
    where = GeometryId.of(geometry)
    solver = document("solver", {"name": solver} if isinstance(solver, str) else solver)
    provenance = document("provenance", provenance)
    complaints = Complaints()
    given = col.named_columns(frame, complaints)
    absent = [name for name in FLOOR if name not in given]
    if absent:
        complaints.add("", f"the column{'s' if len(absent) > 1 else ''} {', '.join(absent)} must be there")
    rows = len(next(iter(given.values()), ()))
    if rows == 0:
        complaints.add("", "the batch has no rows")
        complaints.end()
    arrays = _converted(given, where, complaints)
    _agree(arrays, where, complaints)
    _fill(arrays, given, rows, (solver, provenance), tadpole_charge, now, complaints)
    _physical(arrays, complaints)
    complaints.end()
    return Batch(where, {**arrays, **_identity(where, rows)}, rows, solver, provenance)


def _converted(given: Mapping[str, Any], where: GeometryId, complaints: Complaints) -> dict[str, pa.Array]:
    """All columns that can be, with their final types."""
    found: dict[str, pa.Array] = {}
    for name, values in given.items():
        if name in RESERVED:
            complaints.add(name, "is a name that the data set itself uses; rename the column")
            continue
        if name == "run_id":
            continue  # of the shard that these rows may have been read from
        array = col.to_arrow(name, values, complaints)
        if array is not None:
            array = _one(name, array, where, complaints)
        if array is not None:
            found[name] = array
    return found


def _one(name: str, array: pa.Array, where: GeometryId, complaints: Complaints) -> pa.Array | None:
    known = _FIELDS.get(name)
    if name == EXTRA and array.null_count < len(array):
        complaints.add(name, "is filled when shards are published; give columns of your own instead")
        return None
    if known is None:
        return col.own(name, array, complaints)
    if not pa.types.is_list(known.type):
        return col.scalar(known, array, complaints)
    length = where.h12 if name.startswith("moduli") and where.h12 != MISSING else None
    return col.numbers(known, array, complaints, length)


def _agree(arrays: dict[str, pa.Array], where: GeometryId, complaints: Complaints) -> None:
    """A batch is of one geometry: where it says which, it must be the one that was given."""
    if not any(name in arrays for name in _AUTHORITATIVE):
        return
    expected = {"geometry_id": where.id, **where.keys, HASH_KEY: where.geometry_hash}
    for name in _AUTHORITATIVE:
        array = arrays.pop(name, None)
        if array is None:
            continue
        other = np.array([value != expected[name] for value in array.to_pylist()], bool)
        if name == HASH_KEY and array.null_count:
            other &= ~array.is_null().to_numpy(zero_copy_only=False)
        if other.any():
            text = f"is not that of the geometry ({expected[name]}); stage one geometry at a time"
            complaints.add(name, text, col.rows_where(other))


def _fill(
    arrays: dict[str, pa.Array],
    given: Mapping[str, Any],
    rows: int,
    sources: tuple[Mapping[str, Any], Mapping[str, Any]],
    tadpole_charge: Any,
    now: datetime | None,
    complaints: Complaints,
) -> None:
    """Columns that the batch does not bring, from the other arguments."""
    solver, provenance = sources
    for source, names in ((solver, _SOLVER), (provenance, _PROVENANCE)):
        for key, name in names.items():
            if name not in given and source.get(key) is not None:
                _spread(arrays, name, source[key], rows, complaints)
    if "created_at" not in given:
        arrays["created_at"] = _constant("created_at", now or datetime.now(UTC), rows)
    if "tadpole_charge" in given:
        return
    if tadpole_charge is not None:
        _spread(arrays, "tadpole_charge", tadpole_charge, rows, complaints)
    elif "n_flux" in given:
        if "n_flux" in arrays and arrays["n_flux"].null_count:
            complaints.add(
                "n_flux", "has no value to take as tadpole_charge", col.missing_rows(arrays["n_flux"])
            )
        elif "n_flux" in arrays:
            arrays["tadpole_charge"] = arrays["n_flux"]
    else:
        text = "is not known: give tadpole_charge=, or a column tadpole_charge or n_flux"
        complaints.add("tadpole_charge", text)


def _spread(arrays: dict[str, pa.Array], name: str, value: Any, rows: int, complaints: Complaints) -> None:
    """One value for all rows, checked like a column."""
    kind = _FIELDS[name].type
    plain = type(value) is str and kind == pa.string()
    if plain or (type(value) is int and pa.types.is_integer(kind) and -(2**31) <= value < 2**31):
        arrays[name] = _constant(name, value, rows)
        return
    checked = Complaints()
    array = col.to_arrow(name, [value], checked)
    array = None if array is None else col.scalar(_FIELDS[name], array, checked)
    for problem in checked.found:
        complaints.add(name, problem.text)
    if array is not None:
        arrays[name] = pa.repeat(array[0], rows)


def _constant(name: str, value: Any, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, _FIELDS[name].type), rows)


def _physical(arrays: Mapping[str, pa.Array], complaints: Complaints) -> None:
    """What holds between columns: as many real as imaginary parts, Im tau positive, no vacuum twice."""
    if "tau_im" in arrays and (bad := arrays["tau_im"].to_numpy() <= 0).any():
        complaints.add("tau_im", "must be positive", col.rows_where(bad))
    for real, imaginary in (("moduli_re", "moduli_im"), ("F_terms_re", "F_terms_im")):
        if real in arrays and imaginary in arrays:
            pair = arrays[real], arrays[imaginary]
            if pair[0].offsets.equals(pair[1].offsets):
                continue
            sizes = [col.list_lengths(array) for array in pair]
            if (bad := sizes[0] != sizes[1]).any():
                complaints.add(imaginary, f"has another length than {real}", col.rows_where(bad))
                return
    if all(name in arrays for name in FLOOR[:3]):
        z = [np.round(col.matrix(arrays[name]), DIGITS) + 0.0 for name in FLOOR[1:3]]
        twice = repeated(np.hstack([col.matrix(arrays["flux"]).astype(np.float64), *z]))
        if len(twice):
            complaints.add("", "the same vacuum (flux, z) stands there again", twice)


_MIX = np.uint64(0x9E3779B97F4A7C15)


def repeated(rows: NDArray[np.float64]) -> NDArray[np.int64]:
    """Numbers of the rows of a matrix (rows, width) that equal an earlier one; -0.0 must not occur."""
    bits = np.ascontiguousarray(rows).view(np.uint64)
    mixed = (bits ^ (bits >> np.uint64(32))) * _MIX  # whole numbers differ in their upper bits only
    mixed ^= mixed >> np.uint64(29)
    weights = (2 * np.arange(rows.shape[1], dtype=np.uint64) + np.uint64(1)) * _MIX
    key = (mixed * weights).sum(axis=1, dtype=np.uint64)
    # one sort of hashes finds the candidates; that two different rows have one is an accident of 1 in 2^64
    order = np.argsort(key, kind="stable")
    same = np.flatnonzero(key[order[1:]] == key[order[:-1]]) + 1
    first = order[same - 1]
    return np.sort(order[same[(rows[order[same]] == rows[first]).all(axis=1)]])


def document(what: str, value: Any) -> dict[str, Any]:
    """A mapping as plain JSON types: numbers of numpy become numbers, paths and times text.

    Raises
    ------
    UsageError
        Naming the entry that JSON cannot hold.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{what} must be a mapping, not {type(value).__name__}.")
    plain = _plain(value, what)
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist(), where)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if np.isfinite(number) else str(number)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry, f"{where}[{number}]") for number, entry in enumerate(value)]
    raise UsageError(
        f"{where} is a {type(value).__name__}, which cannot be kept; give numbers, text or lists."
    )


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise UsageError(f"The keys of {where} must be text, not {key!r}.")
    return key
