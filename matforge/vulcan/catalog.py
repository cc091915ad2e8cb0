"""The catalogue of the staging folder: one row for each shard, kept on disk, brought up to date cheaply.

``_catalog.parquet`` remembers every shard that was ever read by name, size and time, and when its
folder last changed. A folder that did not change is not even listed; in one that did only new shards
are looked at, and of these only the sidecar. It is a cache: deleting it costs time, nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from matforge.vulcan import layout
from matforge.vulcan.identity import GEOMETRY_KEYS, HASH_KEY
from matforge.vulcan.layout import CATALOG_NAME, ShardName
from matforge.vulcan.shard import DamagedShardError, ShardGoneError, ShardRecord, read_record

ENTRY_SCHEMA = pa.schema(
    [
        ("path_in_repo", pa.string()),
        ("run_id", pa.string()),
        ("geometry_id", pa.string()),
        *((key, pa.int32()) for key in GEOMETRY_KEYS),
        (HASH_KEY, pa.string()),
        ("n_rows", pa.int64()),
        ("schema_version", pa.string()),
        ("repo", pa.string()),
        ("split", pa.string()),
        ("sha256", pa.string()),
        ("own_columns", pa.string()),
        ("state", pa.string()),
        ("name", pa.string()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
    ]
)
PUBLIC = ("path_in_repo", "run_id", "geometry_id", *GEOMETRY_KEYS, HASH_KEY, "n_rows", "schema_version")
"""Columns that a user of the catalogue sees."""
FORMAT = "1"
_FORMAT_KEY, _MARKS_KEY = b"matforge.vulcan.catalog", b"matforge.vulcan.folders"
SETTLED_NS = 2_000_000_000
"""A folder that changed later than this before it was listed may have changed again without showing it."""


@dataclass
class _Mark:
    """What is known of one folder."""

    mtime_ns: int
    """When it last changed; -1 if it is not there."""
    listed_ns: int
    """When it was listed."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Files that are no usable shards, and why."""

    def holds(self, mtime_ns: int) -> bool:
        return self.mtime_ns == mtime_ns and self.settled

    @property
    def settled(self) -> bool:
        """Whether the folder's time tells of every change since it was listed."""
        return self.listed_ns - self.mtime_ns > SETTLED_NS

    def is_news_after(self, other: _Mark | None) -> bool:
        """Whether it is worth writing down: a folder that may change any moment is listed again anyway."""
        return other is None or self.skipped != other.skipped or (self.settled and self != other)


def entry(record: ShardRecord, **more: Any) -> dict[str, Any]:
    """A shard as a row of the catalogue."""
    return {
        "path_in_repo": record.path_in_repo,
        "run_id": record.run_id,
        "geometry_id": record.geometry_id,
        **record.geometry.keys,
        HASH_KEY: record.geometry.geometry_hash,
        "n_rows": record.n_rows,
        "schema_version": record.schema_version,
        "repo": record.repo,
        "sha256": record.sha256,
        "own_columns": json.dumps(record.own_columns) if record.own_columns else "",
        **more,
    }


def table_of(entries: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of the catalogue as a table."""
    return pa.Table.from_pylist([dict(row) for row in entries], schema=ENTRY_SCHEMA)


class LocalCatalog:
    """The shards in folders of a staging folder.

    Parameters
    ----------
    staging_dir : Path
    states : sequence of str
        Which folders count.
    """

    def __init__(self, staging_dir: Path, states: Sequence[str]) -> None:
        self.staging_dir = staging_dir
        self.states = tuple(states)
        self._table = ENTRY_SCHEMA.empty_table()
        self._marks: dict[str, _Mark] = {}

    @property
    def skipped(self) -> dict[str, str]:
        """Files in these folders that are no usable shards, and why."""
        return {
            f"{state}/{name}": reason
            for state in self.states
            if state in self._marks
            for name, reason in self._marks[state].skipped.items()
        }

    def entries(self, *, refresh: bool = False) -> pa.Table:
        """One row for each shard, in the order of states and names.

        A shard that lies in several of the folders (it is being moved, or came back) counts in the last.

        Parameters
        ----------
        refresh : bool
            List the folders even if they did not change, and look at every shard again.
        """
        if refresh:
            self._table, self._marks = ENTRY_SCHEMA.empty_table(), {}
        elif not self._marks:
            self._load()
        changed = [state for state in self.states if not self._holds(state)]
        if changed:
            self._list(changed)
        wanted = [self._table.filter(pc.equal(self._table["state"], state)) for state in self.states]
        together = pa.concat_tables(wanted)
        last = {name: row for row, name in enumerate(together["name"].to_pylist())}
        if len(last) == together.num_rows:
            return together
        return together.take(pa.array(sorted(last.values()), pa.int64()))

    def _holds(self, state: str) -> bool:
        mark = self._marks.get(state)
        return mark is not None and mark.holds(_changed(self.staging_dir / state))

    def _list(self, states: Iterable[str]) -> None:
        columns = (self._table[name].to_pylist() for name in ("name", "size", "mtime_ns"))
        known = list(zip(*columns, strict=True))
        places = {key: row for row, key in enumerate(known)}
        names = {key[0] for key in known}
        kept: list[int] = []
        states_of_kept: list[str] = []
        fresh: list[dict[str, Any]] = []
        news = False
        for state in states:
            mark = _Mark(_changed(self.staging_dir / state), time.time_ns())
            for key in _shards(self.staging_dir / state, names, mark.skipped):
                row = places.get(key)
                if row is not None:
                    kept.append(row)
                    states_of_kept.append(state)
                    continue
                name, size, mtime_ns = key
                record = _look(self.staging_dir / state / name, size, mark.skipped)
                if record is not None:
                    fresh.append(entry(record, state=state, name=name, size=size, mtime_ns=mtime_ns))
            news = news or mark.is_news_after(self._marks.get(state))
            self._marks[state] = mark
        if fresh or self._differs(states, kept, states_of_kept):
            self._replace(set(states), self._table.take(pa.array(kept, pa.int64())), states_of_kept, fresh)
            news = True
        if news:
            self._save()

    def _differs(self, states: Iterable[str], kept: list[int], where: list[str]) -> bool:
        """Whether these rows, in these states, are others than the table has of the listed folders."""
        listed = set(states)
        there = self._table["state"].to_pylist()
        before = [(row, state) for row, state in enumerate(there) if state in listed]
        return sorted(zip(kept, where, strict=True)) != before

    def _replace(
        self, states: set[str], kept: pa.Table, where: list[str], fresh: list[dict[str, Any]]
    ) -> None:
        others = self._table.filter(pc.invert(pc.is_in(self._table["state"], pa.array(sorted(states)))))
        moved = kept.set_column(ENTRY_SCHEMA.get_field_index("state"), "state", pa.array(where, pa.string()))
        together = pa.concat_tables([others, moved, table_of(fresh)])
        self._table = together.sort_by([("state", "ascending"), ("name", "ascending")]).combine_chunks()

    def _load(self) -> None:
        try:
            table = pq.read_table(self.staging_dir / CATALOG_NAME)
            metadata = table.schema.metadata or {}
            if metadata.get(_FORMAT_KEY, b"").decode() != FORMAT:
                return
            marks = json.loads(metadata[_MARKS_KEY])
            self._marks = {state: _Mark(*values) for state, values in marks.items()}
            self._table = table.replace_schema_metadata(None).select(ENTRY_SCHEMA.names).cast(ENTRY_SCHEMA)
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError):
            self._table, self._marks = ENTRY_SCHEMA.empty_table(), {}  # a cache: made again

    def _save(self) -> None:
        marks = {state: [m.mtime_ns, m.listed_ns, m.skipped] for state, m in self._marks.items()}
        metadata = {_FORMAT_KEY: FORMAT.encode(), _MARKS_KEY: json.dumps(marks).encode()}
        target = self.staging_dir / CATALOG_NAME
        temporary = layout.beside(target)
        with suppress(OSError):  # a folder that cannot be written can still be read
            try:
                pq.write_table(self._table.replace_schema_metadata(metadata), temporary, compression="zstd")
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)


def refresh(staging_dir: str | Path, states: Sequence[str] = layout.STATES) -> None:
    """Bring the catalogue on disk up to date, so that the next reader need not."""
    LocalCatalog(Path(staging_dir), states).entries()


def _changed(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return -1


def _shards(folder: Path, known: Set[str], skipped: dict[str, str]) -> list[tuple[str, int, int]]:
    """Name, size and time of the shards in a folder; what only looks like data is noted.

    Names of ``known`` shards are not looked into again: there may be very many.
    """
    found = []
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for one in entries:
            name = one.name
            if name not in known:
                if name[0] in "_." or not name.endswith(layout.SUFFIX):
                    continue
                if ShardName.parse(name) is None:
                    skipped[name] = "it is not named like a shard"
                    continue
            try:
                status = one.stat()
            except FileNotFoundError:
                continue  # moved away meanwhile
            found.append((name, status.st_size, status.st_mtime_ns))
    found.sort()
    return found


def _look(path: Path, size: int, skipped: dict[str, str]) -> ShardRecord | None:
    try:
        record = read_record(path, size)
        if not record.sha256:  # its sidecar is missing; what holds the rows of many shards needs it
            record = replace(record, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    except (ShardGoneError, FileNotFoundError):
        return None
    except DamagedShardError as error:
        skipped[path.name] = str(error)
        return None
    return record
