"""Where a piece of a run lies on disk, and how to tell that it is whole.

A :class:`Location` travels in messages and in the journal, so that nobody has to search for, or
stat, a file on a shared file system. Standard library only: workers import this module.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from matforge.model import Location, MatForgeError

__all__ = ["DamagedError", "Location", "location_of", "read"]


class DamagedError(MatForgeError):
    """Bytes on disk are missing, cut short or changed; the text names the file and the place."""


def location_of(path: str, data: bytes, offset: int = 0) -> Location:
    """The location of ``data`` once it lies at ``offset`` of ``path``."""
    return Location(path, offset, len(data), zlib.crc32(data))


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
        raise DamagedError(f"{path} cannot be read: {error.strerror or error}.") from error
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
