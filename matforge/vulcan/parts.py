"""Files that hold the rows of many shards, and the list of shards in each.

Thousands of small files are slow to open, whatever reads them. ``_parts/`` of the staging folder
holds their rows again in a few files, each with a manifest of the shards in it. It is a cache: what is
in ``synced/`` decides which rows there are, and deleting ``_parts/`` costs time, nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from matforge.vulcan import layout, schema
from matforge.vulcan.shard import DamagedShardError, ShardRecord

PART_ROWS = 1_000_000


@dataclass(frozen=True)
class Part:
    """One file of many shards."""

    path: str
    records: tuple[ShardRecord, ...]
    """In the order of their rows; of a shard only as many rows as are in this file."""


def manifest(records: Sequence[ShardRecord]) -> str:
    """The list of shards as it stands in a file's footer."""
    return json.dumps([record.as_dict() for record in records], separators=(",", ":"))


def read_manifest(path: str, filesystem: Any = None) -> tuple[ShardRecord, ...]:
    """The shards in a file of many.

    Raises
    ------
    DamagedShardError
        If it is no such file.
    """
    try:
        metadata = pq.read_metadata(path, filesystem=filesystem)
        listed = json.loads((metadata.metadata or {})[schema.SHARDS_KEY.encode()])
        records = tuple(ShardRecord.from_dict(one) for one in listed)
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise DamagedShardError(f"{path} is no file of shards: {error}") from error
    if sum(record.n_rows for record in records) != metadata.num_rows:
        raise DamagedShardError(f"{path} has {metadata.num_rows} rows, but its list of shards has others.")
    return records


class LocalParts:
    """The files in ``_parts/`` of a staging folder."""

    def __init__(self, staging_dir: Path) -> None:
        self.folder = staging_dir / layout.PARTS_DIRNAME
        self._known: dict[str, Part | None] = {}

    def all(self) -> list[Part]:
        """All that can be read; each is opened once only, because a name stands for its content."""
        with suppress(FileNotFoundError):
            present = sorted(p for p in os.listdir(self.folder) if p.endswith(layout.SUFFIX) and p[0] != ".")
            self._known = {name: self._known.get(name) or self._open(name) for name in present}
            return [part for part in self._known.values() if part is not None]
        return []

    def _open(self, name: str) -> Part | None:
        path = str(self.folder / name)
        try:
            return Part(path, read_manifest(path))
        except DamagedShardError:
            return None  # a cache: the shards themselves are read instead

    def add(self, table: pa.Table, records: Sequence[ShardRecord]) -> None:
        """Keep the rows of these shards in one file; does nothing if the folder cannot be written."""
        from matforge.vulcan.writer import SMALL_BYTES, write_parquet

        inputs = "\n".join(f"{record.run_id} {record.sha256}" for record in records)
        target = self.folder / f"part-{hashlib.sha256(inputs.encode()).hexdigest()[:20]}{layout.SUFFIX}"
        temporary = layout.beside(target)
        metadata = {schema.VERSION_KEY: schema.SCHEMA_VERSION, schema.SHARDS_KEY: manifest(records)}
        whole = schema.fold_extras(table).combine_chunks()  # a chunk a shard would become a row group a shard
        with suppress(OSError):
            self.folder.mkdir(exist_ok=True)
            try:
                write_parquet(str(temporary), whole, metadata, max(whole.nbytes, SMALL_BYTES))
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    def drop_all_but(self, digests: Iterable[str]) -> None:
        """Remove files none of whose shards is there any more."""
        living = set(digests)
        for part in self.all():
            if not living & {record.sha256 for record in part.records}:
                with suppress(OSError):
                    os.unlink(part.path)


def keep(staging_dir: str | Path, published: Iterable[Path]) -> None:
    """Keep files that were published, so that their rows are read from them.

    Files without a list of shards are passed over. They are moved if that is possible, else copied.
    """
    folder = Path(staging_dir) / layout.PARTS_DIRNAME
    with suppress(OSError):  # a cache
        folder.mkdir(exist_ok=True)
        for path in published:
            try:
                read_manifest(str(path))
            except DamagedShardError:
                continue
            split = next((p[6:] for p in path.parts if p.startswith("split=")), "all")
            temporary = layout.beside(folder / f"{split}-{path.name}")
            shutil.move(path, temporary)
            os.replace(temporary, folder / f"{split}-{path.name}")
