"""Staging: a checked batch becomes one file in ``pending/``, whole or not at all.

The bytes are written beside under a name that nobody else has, synced to the disk, and linked to
their final name; a link fails if the name is taken, so nothing is ever overwritten. The sidecar comes
after, since a shard without one is whole. A process killed at any moment leaves at most a ``.tmp`` file
and never half a shard; no network and no token are involved.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from matforge.model import MatForgeError, UsageError, why_unwritable
from matforge.vulcan import layout
from matforge.vulcan.layout import FAILED_DIRNAME, IN_REVIEW_DIRNAME, PENDING_DIRNAME, STATES, SYNCED_DIRNAME
from matforge.vulcan.schema import PROVENANCE_KEY, REPO_KEY, SCHEMA_VERSION, VERSION_KEY, extras
from matforge.vulcan.shard import (
    DamagedShardError,
    ShardGoneError,
    ShardRecord,
    StagedShard,
    load,
    read_sidecar,
    write_sidecar,
)
from matforge.vulcan.validate import Batch

__all__ = [
    "FAILED_DIRNAME",
    "IN_REVIEW_DIRNAME",
    "PENDING_DIRNAME",
    "SYNCED_DIRNAME",
    "StagingError",
    "list_pending",
    "list_shards",
    "move_to",
    "parquet_options",
    "stage",
    "write_parquet",
]

SMALL_ROWS = 512
"""Tables of so few rows are small whatever is in them; to add up their bytes would take a while."""
SMALL_BYTES = 1 << 20
"""Tables below this are written with the cheaper compression: setting up the better one costs more than
everything else, and what is published is compressed again."""
ROW_GROUP_ROWS = 65_536
_VOLATILE = ("created_at", "wall_clock_s")
"""What two tries at the same batch may differ in."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class StagingError(MatForgeError):
    """The staging folder cannot be used; the text names the file and the reason."""


def parquet_options(schema: pa.Schema, n_bytes: int) -> dict[str, Any]:
    """How a table of ``n_bytes`` is written: options of `pyarrow.parquet.ParquetWriter`.

    Text, keys and fluxes repeat and get dictionaries; floats do not, and their bytes are split into
    streams where that pays. Checksums of pages tell a damaged file.
    """
    common: dict[str, Any] = {"write_page_checksum": True, "version": "2.6"}
    if n_bytes < SMALL_BYTES:
        cheap = {"compression": "snappy", "use_dictionary": False, "store_schema": False}
        return {**common, **cheap, "write_statistics": False}  # there is one row group, read or not
    leaves = _leaves(schema)
    floats = [path for path, kind in leaves if pa.types.is_floating(kind)]
    return {
        **common,
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": [path for path, _ in leaves if path not in floats and path != "created_at"],
        "use_byte_stream_split": floats,
        "write_page_index": True,
    }


def _leaves(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    """Path and type of every column as parquet stores it."""
    return [
        (f"{field.name}.list.element", field.type.value_type)
        if pa.types.is_list(field.type)
        else (field.name, field.type)
        for field in schema
    ]


def stage(staging_dir: Path, repo: str, batch: Batch, run_id: str, *, new: bool = False) -> StagedShard:
    """Write a batch to ``pending/``.

    Parameters
    ----------
    staging_dir : Path
    repo : str
        Recorded in the shard: it will be published there and nowhere else.
    batch : Batch
    run_id : str
        If a shard of this geometry and run id is there already, in whatever state, and holds the same
        vacua, it is returned and nothing is written, so that a task that is run again stages once.
    new : bool
        The run id was made for this batch, so nobody need look whether it is there.

    Raises
    ------
    UsageError
        If there is such a shard, and it holds something else.
    StagingError
        If the folder cannot be written.
    """
    name = layout.ShardName.of(batch.geometry, run_id).local
    table = batch.table(run_id)
    there = None if new else next(layout.find(staging_dir, name), None)
    if there is not None:
        return _already(there, table)
    record = ShardRecord.of_blob(_blob(batch, run_id), repo)
    data = _encode(table, record)
    target = staging_dir / PENDING_DIRNAME / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _publish(data, target):
            return _already(target, table)
        sha256 = hashlib.sha256(data).hexdigest()
        whole = replace(record, sha256=sha256, n_bytes=len(data), own_columns=tuple(extras(table.schema)))
        write_sidecar(target, whole)
    except OSError as error:
        raise StagingError(_sentence(target, error)) from error
    shard = StagedShard(target)
    shard.__dict__["record"] = whole  # known here, so nobody need read it
    return shard


def _blob(batch: Batch, run_id: str) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "geometry": batch.geometry.as_dict(),
        "solver": dict(batch.solver),
        "provenance": dict(batch.provenance),
        "n_rows": batch.n_rows,
    }


def _encode(table: pa.Table, record: ShardRecord) -> memoryview:
    metadata = {
        PROVENANCE_KEY: json.dumps(record.provenance, separators=(",", ":")),
        VERSION_KEY: SCHEMA_VERSION,
        REPO_KEY: record.repo or "",
    }
    sink = pa.BufferOutputStream()
    write_parquet(sink, table, metadata, table.nbytes if table.num_rows > SMALL_ROWS else 0)
    return memoryview(sink.getvalue())


def write_parquet(sink: Any, table: pa.Table, metadata: Mapping[str, str], n_bytes: int) -> None:
    """Write a table to a file or buffer; ``metadata`` goes into the footer."""
    table = table.replace_schema_metadata(None)
    with pq.ParquetWriter(sink, table.schema, **parquet_options(table.schema, n_bytes)) as file:
        file.add_key_value_metadata(metadata)
        file.write_table(table, row_group_size=ROW_GROUP_ROWS)


def _publish(data: memoryview, target: Path) -> bool:
    """Give ``target`` these bytes, or nothing; False if there is such a file already."""
    temporary = layout.beside(target)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            getattr(os, "fdatasync", os.fsync)(file.fileno())  # some systems have the second only
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if target.exists():
                return False
            os.replace(temporary, target)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _already(path: Path, table: pa.Table) -> StagedShard:
    """The shard at ``path``, if it holds the vacua of ``table``."""
    try:
        record, there = load(path)
    except DamagedShardError as error:
        raise UsageError(f"The run id is taken by a damaged shard; give another: {error}") from error
    kept = [name for name in table.column_names if name not in _VOLATILE]
    same = set(there.column_names) == set(table.column_names)
    if not same or not there.select(kept).combine_chunks().equals(table.select(kept)):
        raise UsageError(
            f"The run id {record.run_id!r} is taken: {path} holds other vacua; give another, or none."
        )
    if read_sidecar(path) is None:  # whoever wrote it was killed before
        write_sidecar(path, record)
    return StagedShard(path)


def list_shards(staging_dir: str | Path, state: str) -> list[StagedShard]:
    """The shards in one of the folders, in the order of their names; nothing is opened."""
    return [StagedShard(path) for path in layout.contents(Path(staging_dir), state).shards]


def list_pending(staging_dir: str | Path) -> list[StagedShard]:
    """The shards that wait for being published, in the order of their names; nothing is opened."""
    return list_shards(staging_dir, PENDING_DIRNAME)


def move_to(shard: StagedShard, staging_dir: str | Path, state: str) -> StagedShard:
    """Move a shard, and its sidecar, to the folder of another state.

    The parquet file's place is the shard's state. A process killed in between leaves a shard in one of
    the two places, and at most a sidecar in both.

    Raises
    ------
    UsageError
        If there is no such state.
    ShardGoneError
        If the shard is not there (any more).
    StagingError
        If another shard of that name is there, or the folder cannot be written.
    """
    if state not in STATES:
        raise UsageError(f"A shard is in one of {', '.join(STATES)}, not in {state!r}.")
    source, target = shard.parquet_path, Path(staging_dir) / state / shard.parquet_path.name
    if source == target:
        return shard
    if not source.exists():
        raise ShardGoneError(f"{source} is not there (any more).")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy_sidecar(layout.sidecar_of(source), layout.sidecar_of(target))
        if target.exists():
            if target.read_bytes() != source.read_bytes():
                raise StagingError(f"{target} is another shard of the same name; look at both.")
            source.unlink()
        else:
            os.rename(source, target)
        layout.sidecar_of(source).unlink(missing_ok=True)
    except FileNotFoundError:
        raise ShardGoneError(f"{source} is not there (any more).") from None
    except OSError as error:
        raise StagingError(_sentence(target, error)) from error
    moved = StagedShard(target)
    moved.__dict__.update({key: value for key, value in shard.__dict__.items() if key == "record"})
    return moved


def _copy_sidecar(source: Path, target: Path) -> None:
    """Have the sidecar in both places; the one that is there already is as good."""
    with contextlib.suppress(FileNotFoundError, FileExistsError):
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            temporary = layout.beside(target)
            temporary.write_bytes(source.read_bytes())
            os.replace(temporary, target)


def _sentence(path: Path, error: OSError) -> str:
    return f"{path} cannot be written: {why_unwritable(error, 'give another staging_dir')}."
