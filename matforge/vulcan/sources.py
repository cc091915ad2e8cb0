"""Where shards are read from: a staging folder, or a repository on the Hub.

A source lists what there is (the catalogue) and says which files hold the rows of some of it.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from matforge.model import UsageError
from matforge.vulcan import layout, rows
from matforge.vulcan.catalog import LocalCatalog, entry, table_of
from matforge.vulcan.errors import RefusedError, unanswered
from matforge.vulcan.parts import PART_ROWS, LocalParts, read_manifest
from matforge.vulcan.rows import File
from matforge.vulcan.shard import DamagedShardError, ShardRecord, read_footer
from matforge.vulcan.splits import SplitSpec

LOCAL_SOURCES = {
    "synced": (layout.SYNCED_DIRNAME,),
    "pending": (layout.PENDING_DIRNAME,),
    "local": (layout.PENDING_DIRNAME, layout.IN_REVIEW_DIRNAME, layout.SYNCED_DIRNAME),
}
FEW = 64
"""Shards up to which each is read from its own file."""
MANY = 512
"""Shards in no part from which on a part is made of them: opening as many files again costs more."""


class Source(Protocol):
    """What a reader needs of a place."""

    @property
    def filesystem(self) -> Any:
        """The file system for Arrow; None is that of this machine."""

    @property
    def skipped(self) -> dict[str, str]:
        """Files that are no usable shards, and why."""

    def entries(self, *, refresh: bool = False) -> pa.Table:
        """The catalogue: a row for each shard (and file, where its rows lie in several)."""

    def files(self, chosen: pa.Table) -> list[File]:
        """The files that hold exactly the rows of these entries."""

    def splits(self) -> SplitSpec | None:
        """How the data set is split, if that is frozen."""

    def check_own(self, names: Sequence[str]) -> None:
        """Raise :class:`~matforge.vulcan.rows.MissingColumnError` if no shard has a column of that name."""


class LocalSource:
    """A staging folder.

    Parameters
    ----------
    staging_dir : Path
    source : str
        One of :data:`LOCAL_SOURCES`.
    """

    filesystem: Any = None

    def __init__(self, staging_dir: Path, source: str = "synced") -> None:
        if source not in LOCAL_SOURCES:
            raise UsageError(f"A source is {', '.join(LOCAL_SOURCES)} or hub, not {source!r}.")
        self.staging_dir = staging_dir
        self._states = LOCAL_SOURCES[source]
        self._catalog = LocalCatalog(staging_dir, self._states)
        self._parts = LocalParts(staging_dir)

    def __repr__(self) -> str:
        return str(self.staging_dir)

    @property
    def skipped(self) -> dict[str, str]:
        """Files that are no usable shards, and why."""
        return self._catalog.skipped

    def entries(self, *, refresh: bool = False) -> pa.Table:
        """The catalogue."""
        return self._catalog.entries(refresh=refresh)

    def splits(self) -> SplitSpec | None:
        """Nothing is frozen here."""
        return None

    def check_own(self, names: Sequence[str]) -> None:
        """Raise if no shard has a column of that name, also where no row is found that could tell."""
        if not names:
            return
        entries = self._catalog.entries()
        known = {name for text in entries["own_columns"].unique().to_pylist() for name in _own(text)}
        missing = [repr(name) for name in names if name not in known]
        if missing and entries.num_rows:
            raise rows.MissingColumnError(f"No file has a column {' or '.join(missing)}.")

    def files(self, chosen: pa.Table) -> list[File]:
        """Few shards from their own files; many from parts, which are made if they are not there."""
        if chosen.num_rows <= FEW:
            return self._shards(chosen)
        found, rest = self._in_parts(chosen)
        if rest.num_rows >= MANY:
            self._consolidate(rest)
            found, rest = self._in_parts(chosen)
        return [*found, *self._shards(rest)]

    def _shards(self, chosen: pa.Table) -> list[File]:
        columns = (chosen.column(name).to_pylist() for name in ("state", "name", "own_columns"))
        base = f"{self.staging_dir}{os.sep}"
        others = {here: [s for s in self._states if s != here] for here in self._states}
        return [
            File(f"{base}{here}/{name}", _own(own), None, tuple(f"{base}{s}/{name}" for s in others[here]))
            for here, name, own in zip(*columns, strict=True)
        ]

    def _in_parts(self, chosen: pa.Table) -> tuple[list[File], pa.Table]:
        """Parts that hold some of these shards wholly, and the entries of the others."""
        wanted = dict(zip(chosen["sha256"].to_pylist(), chosen["n_rows"].to_pylist(), strict=True))
        wanted.pop("", None)
        rows_of: dict[str, int] = defaultdict(int)
        home: dict[str, list[int]] = defaultdict(list)
        parts = self._parts.all()
        for number, part in enumerate(parts):
            if any(record.sha256 in home for record in part.records) and _again(
                part.records, rows_of, wanted
            ):
                continue  # the same shards were put together twice
            for record in part.records:
                rows_of[record.sha256] += record.n_rows
                home[record.sha256].append(number)
        covered = {digest for digest, count in wanted.items() if rows_of.get(digest) == count}
        used = sorted({number for digest in covered for number in home[digest]})
        files = [File(parts[n].path, (), _only(parts[n].records, covered)) for n in used]
        rest = chosen.filter(pc.invert(pc.is_in(chosen["sha256"], pa.array(sorted(covered), pa.string()))))
        return files, rest

    def _consolidate(self, chosen: pa.Table) -> None:
        """Put the rows of these shards into parts, a million or so rows each."""
        records, files = _records(chosen), self._shards(chosen)
        begin = 0
        while begin < len(files):
            end, count = begin, 0
            while end < len(files) and (end == begin or count + records[end].n_rows <= PART_ROWS):
                count += records[end].n_rows
                end += 1
            self._put_together(files[begin:end], records[begin:end])
            begin = end
        self._parts.drop_all_but(self._catalog.entries()["sha256"].to_pylist())

    def _put_together(self, files: list[File], records: list[ShardRecord]) -> None:
        # a damaged one has no rows here, and stays where it is
        found = zip(rows.read_small(files), records, strict=True)
        whole = [(table, record) for table, record in found if table.num_rows == record.n_rows]
        if whole:
            self._parts.add(rows.together([table for table, _ in whole]), [record for _, record in whole])


def _records(chosen: pa.Table) -> list[ShardRecord]:
    return [ShardRecord.from_dict({**row, "geometry": row}) for row in chosen.to_pylist()]


def _again(records: Sequence[ShardRecord], rows_of: dict[str, int], wanted: dict[str, int]) -> bool:
    """Whether a part holds rows of wanted shards that another part was taken for."""
    return any(
        rows_of[record.sha256] + record.n_rows > wanted[record.sha256]
        for record in records
        if record.sha256 in wanted and record.sha256 in rows_of
    )


def _only(records: Sequence[ShardRecord], covered: set[str]) -> pc.Expression | None:
    """The condition that leaves the shards in ``covered``; None if those are all."""
    runs = sorted({record.run_id for record in records if record.sha256 in covered})
    if all(record.sha256 in covered for record in records):
        return None
    return pc.field("run_id").isin(pa.array(runs, pa.string()))


class HubSource:
    """A repository on the Hub.

    Parameters
    ----------
    repo, revision, token, endpoint : str
        Revision, token and endpoint may be None.
    """

    def __init__(
        self, repo: str, revision: str | None, token: str | None, endpoint: str | None = None
    ) -> None:
        self.repo, self.revision = repo, revision
        self._token, self._endpoint = token, endpoint
        self._entries: pa.Table | None = None
        self.skipped: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"{self.repo}@{self.revision or 'main'}"

    @cached_property
    def _hub(self) -> Any:
        from huggingface_hub import HfFileSystem

        return HfFileSystem(token=self._token, endpoint=self._endpoint)

    @cached_property
    def filesystem(self) -> Any:
        """The repository for Arrow."""
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(self._hub))

    @property
    def root(self) -> str:
        """Folder of the repository in the file system."""
        revision = "" if self.revision is None else "@" + self.revision.replace("/", "%2F")
        return f"datasets/{self.repo}{revision}"

    def splits(self) -> SplitSpec | None:
        """As frozen in the repository; None if nothing is.

        Raises
        ------
        MatForgeError
            If the repository cannot be asked, or what it says cannot be used.
        """
        from matforge.vulcan.card import INDEX_NAME, Index

        try:
            return Index.parse(self._hub.cat_file(f"{self.root}/{INDEX_NAME}")).splits
        except FileNotFoundError:
            return None
        except Exception as error:
            if problem := unanswered(str(self), error):
                raise problem from error
            raise

    def check_own(self, names: Sequence[str]) -> None:
        """Only rows can tell: published files hold such columns folded."""

    def entries(self, *, refresh: bool = False) -> pa.Table:
        """The catalogue, from the footers of all files; read once."""
        if self._entries is None or refresh:
            self._hub.invalidate_cache()
            self.skipped = {}
            with ThreadPoolExecutor(8, thread_name_prefix="footers") as pool:
                found = list(pool.map(self._look, sorted(self._listing())))
            self._entries = table_of([row for rows_of_file in found for row in rows_of_file])
        return self._entries

    def _listing(self) -> list[str]:
        try:
            listed = self._hub.find(self.root)
        except FileNotFoundError as error:
            raise RefusedError(f"{self} cannot be listed: {str(error).splitlines()[0]}") from error
        except Exception as error:
            if problem := unanswered(str(self), error):
                raise problem from error
            raise
        return [path for path in listed if path.endswith(layout.SUFFIX)]

    def _look(self, path: str) -> list[dict[str, Any]]:
        split = next((part[6:] for part in path.split("/") if part.startswith("split=")), None)
        try:
            records = read_manifest(path, self.filesystem)
        except DamagedShardError as error:
            self._check_heard(path, error)
            if "/run_" not in path:
                self.skipped[path] = str(error)
                return []
            return self._single(path)
        except Exception as error:
            if problem := unanswered(path, error):
                raise problem from error
            raise
        return [entry(r, state="", split=split, name=path, size=0, mtime_ns=0) for r in records]

    def _check_heard(self, path: str, error: DamagedShardError) -> None:
        """A file that the Hub did not let us see must not pass for a damaged one."""
        if error.__cause__ is not None and (problem := unanswered(path, error.__cause__)):
            raise problem from error

    def _single(self, path: str) -> list[dict[str, Any]]:
        """A shard that was published as it is."""
        try:
            record = read_footer(Path(path), self.filesystem)
        except DamagedShardError as error:
            self._check_heard(path, error)
            self.skipped[path] = str(error)
            return []
        return [entry(record, state="", name=path, size=0, mtime_ns=0)]

    def files(self, chosen: pa.Table) -> list[File]:
        """The files of these entries, with a condition where only some shards of a file are wanted."""
        wanted: dict[str, set[str]] = defaultdict(set)
        for name, run_id in zip(chosen["name"].to_pylist(), chosen["run_id"].to_pylist(), strict=True):
            wanted[name].add(run_id)
        known = self.entries()
        sizes: dict[str, int] = defaultdict(int)
        for name in known["name"].to_pylist():
            sizes[name] += 1
        own = dict(zip(known["name"].to_pylist(), known["own_columns"].to_pylist(), strict=True))
        return [
            File(name, _own(own[name]), None if len(runs) == sizes[name] else _runs(runs))
            for name, runs in wanted.items()
        ]


def _own(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text)) if text else ()


def _runs(runs: set[str]) -> pc.Expression:
    return pc.field("run_id").isin(pa.array(sorted(runs), pa.string()))
