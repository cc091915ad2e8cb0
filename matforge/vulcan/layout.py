"""The staging folder: which folders and files it has, and how a shard is named.

::

    pending/    staged, not yet published              failed/      rejected; <file>.error.json says why
    synced/     published                              in_review/   in a pull request that is not merged
    _commit_budget.json  _catalog.parquet  _parts/     bookkeeping, never published

A shard is one parquet file ``h12_2__h11_3__bucket_0__run_<run_id>.parquet``: its path in the
repository with ``__`` for ``/``. **The parquet file is the shard**; it holds its own provenance. The
sidecar ``_<file>.meta.json`` beside it adds the checksum. It begins with ``_``, and what is being
written with ``.``, because tools that open a folder of parquet files pass over such names.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from matforge.vulcan.identity import GeometryId, bucket

PENDING_DIRNAME = "pending"
SYNCED_DIRNAME = "synced"
FAILED_DIRNAME = "failed"
IN_REVIEW_DIRNAME = "in_review"
STATES = (PENDING_DIRNAME, SYNCED_DIRNAME, FAILED_DIRNAME, IN_REVIEW_DIRNAME)

BUDGET_NAME = "_commit_budget.json"
CATALOG_NAME = "_catalog.parquet"
PARTS_DIRNAME = "_parts"
"""Files that hold the rows of many shards each, so that a reader need not open thousands."""
LOCK_NAME = "_sync.lock"

SUFFIX = ".parquet"
SIDECAR_SUFFIX = ".meta.json"
ERROR_SUFFIX = ".error.json"
RUN_ID_LIMIT = 160
"""Characters of a run id, so that every name made from it stays below 255 bytes."""

_NAME = re.compile(r"h12_(-1|\d+)__h11_(-1|\d+)__bucket_(\d+)__run_([A-Za-z0-9][A-Za-z0-9_-]*)\.parquet")


@dataclass(frozen=True)
class ShardName:
    """What the name of a shard's file says."""

    h12: int
    h11: int
    bucket: int
    run_id: str

    @classmethod
    def of(cls, geometry: GeometryId, run_id: str) -> ShardName:
        """The name of the shard of that run on that geometry."""
        return cls(geometry.h12, geometry.h11, bucket(geometry.id), run_id)

    @classmethod
    def parse(cls, name: str) -> ShardName | None:
        """The parts of a file name, or None if it is not the name of a shard."""
        match = _NAME.fullmatch(name)
        if match is None or "__" in match[4] or len(match[4]) > RUN_ID_LIMIT:
            return None
        return cls(int(match[1]), int(match[2]), int(match[3]), match[4])

    @property
    def path_in_repo(self) -> str:
        """``h12_…/h11_…/bucket_…/run_….parquet``."""
        return f"h12_{self.h12}/h11_{self.h11}/bucket_{self.bucket}/run_{self.run_id}{SUFFIX}"

    @property
    def local(self) -> str:
        """The name in the staging folder: the path with ``__`` for ``/``."""
        return self.path_in_repo.replace("/", "__")


def sidecar_of(parquet: Path) -> Path:
    """The sidecar that belongs to a shard's file."""
    return parquet.with_name(f"_{parquet.name}{SIDECAR_SUFFIX}")


def error_of(parquet: Path) -> Path:
    """The file in ``failed/`` that says why a shard was rejected."""
    return parquet.with_name(f"_{parquet.name}{ERROR_SUFFIX}")


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def beside(path: Path) -> Path:
    """A name to write under before renaming to ``path``; no two calls give the same."""
    return path.with_name(f".{secrets.token_hex(8)}.tmp")


@dataclass
class Contents:
    """What lies in one state's folder."""

    shards: list[Path] = field(default_factory=list)
    """Shards, in the order of their names."""
    orphan_sidecars: list[Path] = field(default_factory=list)
    """Sidecars without their shard."""
    leftovers: list[Path] = field(default_factory=list)
    """Files that a killed process was writing."""
    errors: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)
    """Everything else: not ours, never touched or published."""


def contents(staging_dir: Path, state: str) -> Contents:
    """Sort the files of ``staging_dir/state``; nothing, if there is no such folder."""
    folder = staging_dir / state
    found = Contents()
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except FileNotFoundError:
        return found
    present = set(names)
    for name in names:
        if name.startswith(".") and name.endswith(".tmp"):
            found.leftovers.append(folder / name)
        elif name.startswith("_") and name.endswith(SIDECAR_SUFFIX):
            if name[1 : -len(SIDECAR_SUFFIX)] not in present:
                found.orphan_sidecars.append(folder / name)
        elif name.startswith("_") and name.endswith(ERROR_SUFFIX):
            found.errors.append(folder / name)
        elif ShardName.parse(name) is not None:
            found.shards.append(folder / name)
        else:
            found.foreign.append(folder / name)
    return found


def find(staging_dir: Path, name: str) -> Iterator[Path]:
    """The files of that name, in whatever state."""
    return (path for state in STATES if (path := staging_dir / state / name).is_file())


def default_staging_dir(environ: Mapping[str, str]) -> Path:
    """Where to stage unless told: beside a source checkout, or in the user's data folder.

    Nothing is created. The environment variables for the folder itself are read by the handle.
    """
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        return checkout / "vulcan_staging"
    data = environ.get("XDG_DATA_HOME") or Path(environ.get("HOME") or Path.home()) / ".local" / "share"
    return Path(data).resolve() / "matforge" / "vulcan_staging"
