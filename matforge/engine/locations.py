"""Where a piece of a run lies on disk, and how to tell that it is whole.

A :class:`Location` travels in messages and in the journal, so that nobody has to search for, or
stat, a file on a shared file system. Standard library only: workers import this module.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO

from matforge.model import Location, MatForgeError

__all__ = [
    "CLEANED_NAME",
    "DamagedError",
    "Location",
    "damaged_among",
    "is_whole",
    "location_of",
    "read",
    "sync_path",
    "unreadable",
]

CLEANED_NAME = "cleaned.jsonl"
"""What was removed from a run on purpose, and when: one object a line."""
_PIECE = 1 << 20


class DamagedError(MatForgeError):
    """Bytes on disk are missing, cut short or changed; the text names the file and the place."""


def location_of(path: str, data: bytes, offset: int = 0) -> Location:
    """The location of ``data`` once it lies at ``offset`` of ``path``."""
    return Location(path, offset, len(data), zlib.crc32(data))


def unreadable(run_dir: Path, where: Location, error: OSError) -> DamagedError:
    """Why the bytes at ``where`` cannot be read: somebody may have removed them on purpose."""
    path = run_dir / where.path
    if isinstance(error, FileNotFoundError) and (when := _cleaned(run_dir, where.path)) is not None:
        day = datetime.fromtimestamp(when).strftime("%Y-%m-%d %H:%M")
        return DamagedError(
            f"{path} was removed by `matforge clean` on {day}; run its chore in a new run to have it."
        )
    return DamagedError(f"{path} cannot be read: {error.strerror or error}.")


def _cleaned(run_dir: Path, path: str) -> float | None:
    """When a file of the run was cleaned away, if it was."""
    try:
        lines = (run_dir / CLEANED_NAME).read_text().splitlines()
        removals = [json.loads(line) for line in lines]
        return max((r["at"] for r in removals if path in r["paths"]), default=None)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read(run_dir: Path, where: Location) -> bytes:
    """The bytes at ``where``, checked.

    Raises
    ------
    DamagedError
        If the file is missing or unreadable, too short, or its checksum differs.
    """
    path = run_dir / where.path
    try:
        with path.open("rb") as file:
            file.seek(where.offset)
            data = file.read(where.length)
    except OSError as error:
        raise unreadable(run_dir, where, error) from error
    if len(data) != where.length:
        raise DamagedError(
            f"{path} ends at byte {where.offset + len(data)}, before byte {where.offset + where.length}."
        )
    if zlib.crc32(data) != where.crc:
        raise DamagedError(
            f"{path} was changed or damaged between byte {where.offset} and {where.offset + where.length}: "
            "its checksum differs."
        )
    return data


def is_whole(run_dir: Path, where: Location) -> bool:
    """Whether the bytes at ``where`` are there and check out; never more than a piece in memory."""
    return not list(damaged_among(run_dir, {"": where}))


def damaged_among(run_dir: Path, places: Mapping[str, Location]) -> Iterator[str]:
    """Names of those pieces that are missing, cut short or changed; each file is opened once."""
    by_file: dict[str, list[str]] = {}
    for name, where in places.items():
        by_file.setdefault(where.path, []).append(name)
    for path, names in by_file.items():
        try:
            with (run_dir / path).open("rb") as file:
                bad = [name for name in names if not _checks_out(file, places[name])]
        except OSError:
            bad = names
        yield from bad


def _checks_out(file: IO[bytes], where: Location) -> bool:
    file.seek(where.offset)
    left, crc = where.length, 0
    while left:
        piece = file.read(min(left, _PIECE))
        if not piece:
            return False
        left -= len(piece)
        crc = zlib.crc32(piece, crc)
    return crc == where.crc


def sync_path(path: Path) -> None:
    """Put a file, or the names in a directory, on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
