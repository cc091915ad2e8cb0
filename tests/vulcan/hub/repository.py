"""The contents of one data-set repository: commits, branches, pull requests."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

ENTRIES_PER_FOLDER = 10_000


class Refused(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Blob:
    """A file's bytes, with the two names it has on a Hub."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def oid(self) -> str:
        """What the client compares with: sha256 of a large file, git's sha1 of a regular one."""
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    """A state of the repository."""

    oid: str
    parent: str | None
    title: str
    files: Mapping[str, Blob]


@dataclass
class PullRequest:
    """A proposal; its branch is ``refs/pr/<number>``."""

    number: int
    title: str
    description: str
    status: str = "draft"
    merge_oid: str | None = None


@dataclass
class Repository:
    """One repository; every method may be called from any thread."""

    name: str
    lock: threading.RLock = field(default_factory=threading.RLock)
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Uploaded large files by sha256, committed or not."""
    pulls: dict[int, PullRequest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._store("main", None, "initial commit", {".gitattributes": Blob(b"*.parquet lfs\n", False)})

    # ------------------------------------------------------------ reading

    def at(self, revision: str = "main") -> Commit:
        """The commit that a branch or an oid names."""
        oid = self.refs.get(revision, revision)
        if oid not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def history(self, revision: str = "main") -> list[Commit]:
        """Newest first, without the initial commit."""
        found = [self.at(revision)]
        while found[-1].parent is not None:
            found.append(self.commits[found[-1].parent])
        return found[:-1]

    def files(self, suffix: str = "", revision: str = "main") -> dict[str, bytes]:
        """The files whose names end so."""
        return {p: b.data for p, b in sorted(self.at(revision).files.items()) if p.endswith(suffix)}

    def rows(self, revision: str = "main") -> list[dict[str, Any]]:
        """All rows of all parquet files."""
        import pyarrow.parquet as pq

        return [
            row
            for data in self.files(".parquet", revision).values()
            for row in pq.read_table(io.BytesIO(data)).to_pylist()
        ]

    def folders(self, revision: str) -> Iterator[str]:
        """Every folder that holds something, parents included."""
        seen: set[str] = set()
        for path in self.at(revision).files:
            parts = path.split("/")[:-1]
            seen.update("/".join(parts[:n]) for n in range(1, len(parts) + 1))
        yield from sorted(seen)

    # ------------------------------------------------------------ writing

    def commit(
        self,
        revision: str,
        title: str,
        changes: Mapping[str, Blob | None],
        parent: str | None = None,
        create_pr: bool = False,
    ) -> tuple[str, PullRequest | None]:
        """Apply changes (None deletes) to a branch, or to a new pull request."""
        with self.lock:
            base = self.at(revision)
            if parent is not None and parent != base.oid:
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            files = dict(base.files)
            for path, blob in changes.items():
                if blob is None:
                    files.pop(path, None)
                else:
                    files[path] = blob
            self._check_folders(files)
            pull = self.open_pull(title, "") if create_pr else None
            target = f"refs/pr/{pull.number}" if pull else revision
            return self._store(target, base.oid, title, files), pull

    def _check_folders(self, files: Mapping[str, Blob]) -> None:
        entries = Counter(path.rpartition("/")[0] for path in files)
        for folder, count in entries.items():
            if count > ENTRIES_PER_FOLDER:
                raise Refused(400, f"{folder} holds {count} files, but up to 10000 files are allowed")

    def _store(self, ref: str, parent: str | None, title: str, files: Mapping[str, Blob]) -> str:
        listing = sorted((path, blob.oid) for path, blob in files.items())
        oid = hashlib.sha1(repr((parent, title, len(self.commits), listing)).encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, dict(files))
        self.refs[ref] = oid
        return oid

    def open_pull(self, title: str, description: str) -> PullRequest:
        """A new pull request that changes nothing yet."""
        with self.lock:
            pull = PullRequest(len(self.pulls) + 1, title, description)
            self.pulls[pull.number] = pull
            self.refs[f"refs/pr/{pull.number}"] = self.refs["main"]
            return pull

    def merge(self, number: int) -> str:
        """Merge a pull request: its files go on top of main."""
        with self.lock:
            pull = self.pulls[number]
            proposed = self.at(f"refs/pr/{number}").files
            files = {**self.at("main").files, **proposed}
            pull.merge_oid = self._store("main", self.refs["main"], f"Merge {pull.title}", files)
            pull.status = "merged"
            return pull.merge_oid

    def close(self, number: int) -> None:
        """Close a pull request without merging it."""
        with self.lock:
            self.pulls[number].status = "closed"
