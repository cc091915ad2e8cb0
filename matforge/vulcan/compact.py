"""Many shards into few files.

A published file holds the rows of one split, one h12 and one h11, in the order of geometry and run,
with exactly the columns of the schema, so that any reader can take all files as one table. Its name
is the hash of the shards in it: what was sent once has the same name when it is sent again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from matforge.vulcan import schema
from matforge.vulcan.hub import sha256_of
from matforge.vulcan.ledger import Part, Run
from matforge.vulcan.parts import manifest
from matforge.vulcan.shard import ShardRecord
from matforge.vulcan.splits import SplitSpec
from matforge.vulcan.writer import SMALL_BYTES, write_parquet

FILES_PER_FOLDER = 9_000
"""A Hub takes 10,000 entries in a folder; what comes later goes into a folder of its own."""

_ARROW = b"ARROW:schema"


@dataclass(frozen=True)
class Loaded:
    """A checked shard in memory."""

    path: Path
    record: ShardRecord
    table: pa.Table


@dataclass(frozen=True)
class _Piece:
    """The rows of one shard that belong to one split."""

    shard: Loaded
    table: pa.Table

    @property
    def order(self) -> tuple[str, str]:
        return self.shard.record.geometry_id, self.shard.record.run_id

    @property
    def run(self) -> Run:
        return Run(self.shard.record.run_id, self.shard.path.name, self.table.num_rows)


def compact(
    shards: Sequence[Loaded], splits: SplitSpec, outbox: Path, published: Iterable[str] = ()
) -> list[Part]:
    """Write the rows of the shards into few files.

    Parameters
    ----------
    shards : sequence of Loaded
    splits : SplitSpec
        How the repository is split.
    outbox : Path
        Folder to write into; a file lies there under its path in the repository.
    published : iterable of str
        Paths that the repository has already, so that no folder gets too many.

    Returns
    -------
    list of Part
        In the order of their paths.
    """
    groups: dict[tuple[str, int, int], list[_Piece]] = defaultdict(list)
    for shard in shards:
        geometry = shard.record.geometry
        for split, table in _by_split(shard, splits):
            groups[split, geometry.h12, geometry.h11].append(_Piece(shard, table))
    taken = Counter(path.rpartition("/")[0] for path in published)
    return [_write(pieces, *key, outbox, taken) for key, pieces in sorted(groups.items())]


def _by_split(shard: Loaded, splits: SplitSpec) -> list[tuple[str, pa.Table]]:
    if splits.by == "geometry":
        return [(splits.of_geometry(shard.record.geometry_id), shard.table)]
    parts = [(name, shard.table.filter(pa.array(splits.mask(shard.table, name)))) for name in splits.names]
    return [(name, table) for name, table in parts if table.num_rows]


def _write(pieces: list[_Piece], split: str, h12: int, h11: int, outbox: Path, taken: Counter[str]) -> Part:
    pieces = sorted(pieces, key=lambda piece: piece.order)
    # rows that lie in thousands of chunks would become thousands of row groups
    table = pa.concat_tables([_columns(piece.table) for piece in pieces]).combine_chunks()
    records = [replace(piece.shard.record, n_rows=piece.table.num_rows) for piece in pieces]
    metadata = {schema.VERSION_KEY: schema.SCHEMA_VERSION, schema.SHARDS_KEY: manifest(records)}
    inputs = "\n".join(f"{record.run_id} {record.sha256}" for record in records)
    name = f"part-{hashlib.sha256(inputs.encode()).hexdigest()[:20]}.parquet"
    path = f"{_folder(f'data/split={split}/h12={h12}/h11={h11}', taken)}/{name}"
    target = outbox / path
    _write_file(table, metadata, target)
    runs = tuple(piece.run for piece in pieces)
    return Part(path, sha256_of(target), target.stat().st_size, table.num_rows, split, runs)


def _columns(table: pa.Table) -> pa.Table:
    return schema.fold_extras(table).replace_schema_metadata(None)


def _folder(base: str, taken: Counter[str]) -> str:
    folder, more = base, 0
    while taken[folder] >= FILES_PER_FOLDER:
        more += 1
        folder = f"{base}/more-{more}"
    taken[folder] += 1
    return folder


def _write_file(table: pa.Table, metadata: Mapping[str, str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        # always as a large one: a published file is compressed well, however few rows it has
        write_parquet(file, table, metadata, max(table.nbytes, SMALL_BYTES))
        file.flush()
        os.fsync(file.fileno())


def keep_apart(shards: Sequence[Loaded], outbox: Path) -> list[Part]:
    """The shards themselves as files, each under its own path in the repository."""
    parts = []
    for shard in shards:
        record = shard.record
        target = outbox / record.path_in_repo
        target.parent.mkdir(parents=True, exist_ok=True)
        if schema.extras(shard.table.schema):  # as it is, it could not be read together with others
            stored = pq.read_metadata(shard.path).metadata
            kept = {key.decode(): value.decode() for key, value in stored.items() if key != _ARROW}
            _write_file(schema.fold_extras(shard.table), kept, target)
        else:
            shutil.copyfile(shard.path, target)
        run = Run(record.run_id, shard.path.name, record.n_rows)
        parts.append(
            Part(record.path_in_repo, sha256_of(target), target.stat().st_size, record.n_rows, "", (run,))
        )
    return parts
