"""The columns of a shard: one explicit schema, every column in every file, in this order.

A column that a producer does not fill is null throughout, so that any two files can be read as one
data set. Columns of the producer's own stand behind these in a staged shard, with the type they have;
in a published file they are folded into ``extra_data``, one JSON object a row (:func:`fold_extras`), so
that all published files have exactly the same columns. Readers unfold them again.

Missing geometry keys are -1; everything else that is missing is null.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from matforge.model import MatForgeError
from matforge.vulcan.identity import GEOMETRY_KEYS, HASH_KEY

SCHEMA_VERSION = "1"
VERSION_KEY = "schema_version"
PROVENANCE_KEY = "matforge.vulcan.provenance"
REFERENCE_PROVENANCE_KEY = "stringforge.vulcan.provenance"
"""Where older shards keep their provenance; read, never written."""
REPO_KEY = "matforge.vulcan.repo"
SHARDS_KEY = "matforge.vulcan.shards"
"""In a file that holds many shards: JSON list of `ShardRecord.as_dict()`, in the order of the rows."""

FLOOR = ("flux", "moduli_re", "moduli_im", "tau_re", "tau_im")
"""Columns that a producer must fill, and that the vault shares."""
EXTRA = "extra_data"
RESERVED = ("split",)
"""Names that a producer's own column cannot have: published files lie in folders ``split=…``."""

_INTEGERS, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.float64())


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


SCHEMA = pa.schema(
    [
        _required("run_id", pa.string()),
        _required("geometry_id", pa.string()),
        *(_required(key, pa.int32()) for key in GEOMETRY_KEYS),
        pa.field(HASH_KEY, pa.string()),
        _required("flux", _INTEGERS),
        _required("moduli_re", _FLOATS),
        _required("moduli_im", _FLOATS),
        _required("tau_re", pa.float64()),
        _required("tau_im", pa.float64()),
        _required("tadpole_charge", pa.int32()),
        _required("created_at", pa.timestamp("us", tz="UTC")),
        pa.field("n_flux", pa.int32()),
        pa.field("W_re", pa.float64()),
        pa.field("W_im", pa.float64()),
        pa.field("W0_abs", pa.float64()),
        pa.field("residual", pa.float64()),
        pa.field("F_terms_re", _FLOATS),
        pa.field("F_terms_im", _FLOATS),
        pa.field("mass2", _FLOATS),
        pa.field("hessian_min_eig", pa.float64()),
        pa.field("g_s", pa.float64()),
        pa.field("m_gravitino", pa.float64()),
        pa.field("is_susy", pa.bool_()),
        pa.field("is_isd", pa.bool_()),
        pa.field("n_iterations", pa.int32()),
        pa.field("solver_name", pa.string()),
        pa.field("solver_config_hash", pa.string()),
        pa.field("git_sha", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("wall_clock_s", pa.float32()),
        pa.field(EXTRA, pa.string()),
    ]
)
NAMES = tuple(SCHEMA.names)


class SchemaError(MatForgeError):
    """A table cannot be read as vacua; the text names the column."""


def conform(table: pa.Table) -> pa.Table:
    """``table`` with every column of :data:`SCHEMA`, in its order and types, then columns of its own.

    Raises
    ------
    SchemaError
        If a required column is missing or holds nulls, or a column has an unfit type.
    """
    if table.schema.equals(SCHEMA) and not any(
        c.null_count for c, f in zip(table.columns, SCHEMA, strict=True) if not f.nullable
    ):
        # as forges write it; thousands are in memory at a time, and share one description of their columns
        return pa.Table.from_arrays(table.columns, schema=SCHEMA)
    columns: list[pa.ChunkedArray | pa.Array] = []
    for field in SCHEMA:
        if field.name not in table.column_names:
            if not field.nullable:
                raise SchemaError(f"The column {field.name!r} is missing.")
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        if not field.nullable and column.null_count:
            raise SchemaError(f"The column {field.name!r} has {column.null_count} rows without a value.")
        columns.append(column if column.type.equals(field.type) else _cast(field, column))
    own = [field for field in table.schema if field.name not in NAMES]
    return pa.Table.from_arrays(
        [*columns, *(table.column(field.name) for field in own)],
        schema=pa.schema([*SCHEMA, *own], metadata=table.schema.metadata),
    )


def _cast(field: pa.Field, column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(f"The column {field.name!r} is {column.type}, not {field.type}: {error}") from error


def extras(schema: pa.Schema) -> list[str]:
    """Columns of the producer's own."""
    return [name for name in schema.names if name not in NAMES]


def fold_extras(table: pa.Table) -> pa.Table:
    """Exactly the columns of :data:`SCHEMA`: a producer's own go into ``extra_data``.

    Nulls are left out, and a row without any value of its own gets null. Inverse of
    :func:`unfold_extras`, but for types that JSON does not have (times become text).
    """
    own = extras(table.schema)
    if not own:
        return table.select(list(NAMES))
    old = _parsed(table.column(EXTRA))
    rows = table.select(own).to_pylist()
    merged = [
        {**(before or {}), **{key: value for key, value in row.items() if value is not None}}
        for before, row in zip(old, rows, strict=True)
    ]
    text = pa.array(
        [json.dumps(row, sort_keys=True, default=str) if row else None for row in merged], pa.string()
    )
    return table.set_column(NAMES.index(EXTRA), EXTRA, text).select(list(NAMES))


def unfold_extras(table: pa.Table) -> pa.Table:
    """Columns again of what :func:`fold_extras` put into ``extra_data``, which becomes null.

    A name whose values have no common type stays text (JSON). Where a column of that name exists, its
    own values come first.
    """
    if EXTRA not in table.column_names or table.column(EXTRA).null_count == table.num_rows:
        return table
    rows = _parsed(table.column(EXTRA))
    names = sorted({key for row in rows if row for key in row} - set(NAMES))
    for name in names:
        column = _column([row.get(name) if row else None for row in rows])
        if name not in table.column_names:
            table = table.append_column(name, column)
            continue
        position, there = table.column_names.index(name), table.column(name)
        if not there.type.equals(column.type):
            there, column = (_column(c.to_pylist(), text=True) for c in (there, column))
        table = table.set_column(position, name, pc.coalesce(there, column))
    index = table.column_names.index(EXTRA)
    return table.set_column(index, EXTRA, pa.nulls(table.num_rows, pa.string()))


def _parsed(column: pa.ChunkedArray) -> list[dict[str, Any] | None]:
    return [None if text is None else json.loads(text) for text in column.to_pylist()]


def _column(values: list[Any], *, text: bool = False) -> pa.Array:
    if not text:
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            pass  # no common type
    return pa.array(
        [v if v is None or isinstance(v, str) else json.dumps(v, default=str) for v in values], pa.string()
    )
