"""From what people hand in to rows that can be checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from matforge.model import UsageError
from matforge.vulcan import columns as col
from matforge.vulcan.identity import GEOMETRY_KEYS, HASH_KEY, GeometryId
from matforge.vulcan.problems import BatchError, Problem
from matforge.vulcan.validate import DIGITS, Batch, prepare
from matforge.vulcan.vault import places
from matforge.vulcan.vault.checks import tadpoles

if TYPE_CHECKING:
    import pandas as pd

    from matforge.vacua.geometry import Geometry

UNKNOWN_CHARGE = -(2**31)


def loaded(model: Any) -> Geometry | None:
    """A geometry from itself, its name or its file."""
    if model is None:
        return None
    from matforge.vacua.geometry import Geometry, load_geometry

    if isinstance(model, Geometry):
        return model
    if isinstance(model, str | Path):
        return load_geometry(model)
    raise UsageError(f"model is a Geometry, or the name or file of one, not {type(model).__name__}.")


def identity_of(geometry: Geometry | None, identity: Mapping[str, Any] | None) -> GeometryId:
    """The geometry's id, from whichever is given; both must agree."""
    if geometry is None:
        if identity is None:
            raise UsageError("Which geometry? Give model=, or identity={'h11': ..., 'h12': ..., ...}.")
        return GeometryId.of(identity)
    where = GeometryId.of(geometry)
    if identity is not None and GeometryId.of(identity).id != where.id:
        raise UsageError(f"identity {dict(identity)} is not that of {geometry.name}; leave it out.")
    return where


def identity_in(frame: pd.DataFrame) -> dict[str, Any]:
    """The geometry's keys in the columns of vacua that were staged."""
    row = frame.iloc[0]
    digest = row.get(HASH_KEY)
    keys = {key: int(row[key]) for key in GEOMETRY_KEYS}
    return {**keys, **({HASH_KEY: digest} if isinstance(digest, str) else {})}


def values_of(table: pa.Table) -> tuple[Any, Any, Any]:
    """Flux quanta (B, n) int64, moduli (B, h) and tau (B,) complex, of a checked table."""
    flux, real, imaginary = (
        col.matrix(table[name].combine_chunks()) for name in ("flux", "moduli_re", "moduli_im")
    )
    tau = table["tau_re"].to_numpy() + 1j * table["tau_im"].to_numpy()
    return flux.astype(np.int64), real + 1j * imaginary, tau


def key_of(flux: Sequence[int], real: Sequence[float], imaginary: Sequence[float]) -> Any:
    """What is the same for two copies of a vacuum of one geometry."""
    return (*flux, *(round(x, DIGITS) + 0.0 for x in (*real, *imaginary)))


def keys_of(table: pa.Table) -> Iterator[Any]:
    """The geometry and the key of each row."""
    columns = (table[name].to_pylist() for name in ("geometry_id", "flux", "moduli_re", "moduli_im"))
    for geometry, *vacuum in zip(*columns, strict=True):
        yield geometry, key_of(*vacuum)


def nothing_of(width: int, h: int) -> tuple[Any, Any, Any]:
    """:func:`values_of` no rows."""
    return np.zeros((0, width), np.int64), np.zeros((0, h), complex), np.zeros(0, complex)


def without_tags(df: Any) -> tuple[Any, list[list[str]] | None]:
    """The frame without its column of tags, and the tags of each row."""
    if not isinstance(df, pa.Table | Mapping) and not hasattr(df, "columns"):
        raise UsageError(
            f"Vacua are a data frame, an Arrow table or a mapping of columns, not {type(df).__name__}."
        )
    names = df.column_names if isinstance(df, pa.Table) else list(getattr(df, "columns", df))
    if "tags" not in names:
        return df, None
    if isinstance(df, pa.Table):
        return df.drop_columns(["tags"]), [places.check_tags(tags) for tags in df["tags"].to_pylist()]
    rest = {name: df[name] for name in names if name != "tags"}
    return rest, [places.check_tags(tags) for tags in df["tags"]]


def sound(frame: Any, where: GeometryId, force: bool) -> tuple[list[int], Batch]:
    """The rows that can be read as vacua at all, and their numbers in the frame."""
    table = as_table(frame)
    charge = _charge(table)
    rows = list(range(table.num_rows if table is not None else 0))
    try:
        batch = prepare(frame if table is None else table, where, tadpole_charge=charge)
        return list(range(batch.n_rows)), batch
    except BatchError as error:
        bad = {row for problem in error.problems for row in problem.rows}
        if not force or table is None or not all(problem.rows for problem in error.problems):
            raise
        kept = [row for row in rows if row not in bad]
        return kept, prepare(table.take(pa.array(kept, pa.int64())), where, tadpole_charge=charge)


def _charge(table: pa.Table | None) -> int | None:
    """What is said of the D3 charge where the frame says nothing; set right once the rows are known."""
    names = set() if table is None else set(table.column_names)
    return None if names & {"tadpole_charge", "n_flux"} else UNKNOWN_CHARGE


def checked_table(batch: Batch, run_id: str) -> pa.Table:
    """The table of a batch, with the D3 charge of its flux quanta where none was given."""
    table = batch.table(run_id)
    if pc.any(pc.not_equal(table["tadpole_charge"], UNKNOWN_CHARGE)).as_py():
        return table
    charges = pa.array(tadpoles(values_of(table)[0]), pa.int32())
    field = table.schema.field("tadpole_charge")
    return table.set_column(table.schema.get_field_index("tadpole_charge"), field, charges)


def as_table(frame: Any) -> pa.Table | None:
    """A frame as a table, if it is one; None if Arrow cannot hold it."""
    try:
        if isinstance(frame, pa.Table):
            return frame
        if isinstance(frame, Mapping):
            return pa.table({name: pa.array(list(values)) for name, values in frame.items()})
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError):
        return None


def renumbered(problem: Problem, kept: Sequence[int]) -> Problem:
    return replace(problem, rows=tuple(kept[row] for row in problem.rows))


def column(values: Any, field: pa.Field, n: int) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks().cast(field.type)
    if isinstance(values, list | np.ndarray):
        return pa.array(values, field.type)
    return pa.repeat(pa.scalar(values, field.type), n)
