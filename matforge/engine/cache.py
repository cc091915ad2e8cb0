"""Results shared between the runs of a folder, found by what made them.

::

    .matforge-cache/
      entries/ab/<key>.json      what a chore returned: the digest of its result, and who made it, in words
      objects/cd/<digest>        the result's bytes, named by their SHA-256

Whatever is written is written beside and renamed, and an object is named by its content: so runs that
fill the same entry at once cannot mix, and what is damaged is not found. Objects are hard links to the
results of runs where the file system allows it, and take no space of their own then.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from matforge.engine.locations import sync_path
from matforge.model import Location

FOLDER = ".matforge-cache"
VERSION = 1
_STEP = 1 << 20


@dataclass(frozen=True)
class Entry:
    """What the cache knows of one call."""

    digest: str
    """SHA-256 of the result as it lies on disk."""
    length: int
    crc: int
    """CRC-32 of the same bytes, as locations have it."""
    report: dict[str, Any] = field(default_factory=dict)
    """What the chore reported beside its result."""
    made: dict[str, Any] = field(default_factory=dict)
    """For people: function, arguments in short, version, run, chore, time."""
    version: int = VERSION


def digest_of(file: IO[bytes], length: int) -> tuple[str, int, int]:
    """SHA-256, CRC-32 and number of the next ``length`` bytes of a file."""
    sha, crc, left = hashlib.sha256(), 0, length
    while left and (piece := file.read(min(left, _STEP))):
        sha.update(piece)
        crc = zlib.crc32(piece, crc)
        left -= len(piece)
    return sha.hexdigest(), crc, length - left


def digest_at(run_dir: Path, where: Location) -> str | None:
    """SHA-256 of the result at ``where``; None if it is damaged or gone."""
    try:
        with (run_dir / where.path).open("rb") as file:
            file.seek(where.offset)
            digest, crc, got = digest_of(file, where.length)
    except OSError:
        return None
    return digest if got == where.length and crc == where.crc else None


class Cache:
    """The cache of a folder of runs.

    Parameters
    ----------
    base : Path
        The folder; nothing is made in it before something is kept.
    sync : bool
        Whether a result that is placed in a run is put on the disk (``durability="power"``).
    """

    def __init__(self, base: Path, *, sync: bool = False) -> None:
        self.path = base / FOLDER
        self._sync = sync

    def _entry(self, key: str) -> Path:
        return self.path / "entries" / key[:2] / f"{key}.json"

    def _object(self, digest: str) -> Path:
        return self.path / "objects" / digest[:2] / digest

    # -- read

    def find(self, key: str) -> Entry | None:
        """The entry of a key; None if there is none that can be read."""
        try:
            data = json.loads(self._entry(key).read_bytes())
            if data["version"] != VERSION:
                return None
            entry = Entry(**{name: data[name] for name in Entry.__dataclass_fields__})
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return entry if isinstance(entry.report, dict) else None

    def read(self, entry: Entry) -> bytes | None:
        """The bytes of a result; None if they are damaged or gone."""
        try:
            data = self._object(entry.digest).read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == entry.digest else None

    def place(self, entry: Entry, target: Path) -> bool:
        """Put a result at ``target``, as a link or a copy; False if it is damaged or gone.

        Raises
        ------
        OSError
            If the target cannot be written.
        """
        source = self._object(entry.digest)
        try:
            with source.open("rb") as file:
                digest, _, _ = digest_of(file, entry.length + 1)
        except OSError:
            return False
        if digest != entry.digest:
            return False
        _link_or_copy(source, target)
        if self._sync:
            sync_path(target)
            sync_path(target.parent)
        return True

    # -- write

    def keep(self, key: str, run_dir: Path, where: Location, **about: Any) -> bool:
        """Make an entry of a result of a run; False if the result is damaged or gone.

        Raises
        ------
        OSError
            If the cache cannot be written.
        """
        digest = digest_at(run_dir, where)
        if digest is None:
            return False
        self._keep_object(digest, run_dir, where)
        path = self._entry(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = _beside(path)
        try:
            beside.write_text(json.dumps(asdict(Entry(digest, where.length, where.crc, **about)), indent=1))
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        return True

    def _keep_object(self, digest: str, run_dir: Path, where: Location) -> None:
        path, source = self._object(digest), run_dir / where.path
        if self._is_whole(path, digest, where.length):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = _beside(path)
        try:
            if where.offset == 0 and source.stat().st_size == where.length:
                _link_or_copy(source, beside)
            else:  # a part of a segment, which is small
                with source.open("rb") as file:
                    file.seek(where.offset)
                    beside.write_bytes(file.read(where.length))
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)

    def _is_whole(self, path: Path, digest: str, length: int) -> bool:
        try:
            with path.open("rb") as file:
                return digest_of(file, length + 1)[0] == digest
        except OSError:
            return False


def _beside(path: Path) -> Path:
    """A name that nobody else writes to."""
    return path.with_name(f".{path.name[:16]}.{secrets.token_hex(8)}.new")


def _link_or_copy(source: Path, target: Path) -> None:
    with suppress(FileNotFoundError):
        target.unlink()  # left by an earlier attempt
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links, or too many of them
        shutil.copyfile(source, target)
