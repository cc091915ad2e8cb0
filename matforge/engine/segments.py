"""Append-only files of records: the packed layout.

A record is a fixed header, the chore's id, the attempt's tag and the data. Whoever holds the
record's :class:`~matforge.model.Location` reads the data directly; whoever has lost the index
finds every record again by :func:`scan`, because a record says of itself whose it is. A file has
one writer for its whole life, so that records never mix.

Layout of a record, little-endian, version 1::

    4s  magic b"MFsg"       B  version      8s  kind, ASCII, zero-padded
    H   bytes of the chore id               H   bytes of the tag
    Q   bytes of data       I  CRC-32 of the data
    I   CRC-32 of all of the header before it, and of the id and tag
    chore id, tag, data
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from matforge.model import Location

MAGIC = b"MFsg"
VERSION = 1
HEADER = struct.Struct("<4sB8sHHQII")
_BEFORE_CRC = HEADER.size - 4
_COPY_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One record found by :func:`scan`; ``where`` points at its data."""

    kind: str
    chore_id: str
    tag: str
    where: Location


def header(kind: str, chore_id: str, tag: str, data: bytes) -> bytes:
    """Everything of a record that comes before its data.

    Raises
    ------
    ValueError
        If ``kind`` is longer than eight bytes, or the id or tag longer than 65,535.
    """
    name, owner, mark = kind.encode("ascii"), chore_id.encode(), tag.encode()
    if not 0 < len(name) <= 8:
        raise ValueError(f"A record's kind has one to eight letters, not {kind!r}.")
    if len(owner) > 0xFFFF or len(mark) > 0xFFFF:
        raise ValueError(f"The id or tag of a record is too long: {chore_id[:40]!r}, {tag[:40]!r}.")
    fixed = HEADER.pack(MAGIC, VERSION, name, len(owner), len(mark), len(data), zlib.crc32(data), 0)
    crc = zlib.crc32(mark, zlib.crc32(owner, zlib.crc32(fixed[:_BEFORE_CRC])))
    return fixed[:_BEFORE_CRC] + struct.pack("<I", crc) + owner + mark


def append(file: IO[bytes], name: str, kind: str, chore_id: str, tag: str, data: bytes) -> Location:
    """Append one record to ``file`` (opened with ``"ab"``), which the run knows as ``name``.

    The bytes may still be in the file's buffer when this returns; an unbuffered file that could
    take only a part (a full disk) is cut back to where it was, so that later records can be found.

    Raises
    ------
    OSError
        If the record cannot be written.
    """
    head = header(kind, chore_id, tag, data)
    start = file.tell()
    # one call where that is cheap; a copy of a large result would double its memory
    pieces = (head + data,) if len(data) < _COPY_LIMIT else (head, data)
    try:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[file.write(rest) :]
    except OSError:
        # a torn record would hide all that follow it; if this fails too, the scan tells
        with suppress(OSError):
            os.ftruncate(file.fileno(), start)
            file.seek(start)
        raise
    return Location(name, start + len(head), len(data), zlib.crc32(data))


def scan(
    path: Path, name: str | None = None, *, note: Callable[[str], object] | None = None
) -> Iterator[Record]:
    """All whole records of a segment, in the order of writing.

    Parameters
    ----------
    path : Path
        The file.
    name : str, optional
        What the run calls it (relative path), for the locations; default ``path`` itself.
    note : callable, optional
        Is given one sentence if the file ends in the middle of a record, or goes on with something
        else; what precedes it is returned all the same, and nothing after it.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    label = str(path) if name is None else name
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        offset = 0
        while offset < size:
            trouble, record, offset_after = _read_record(file, label, offset, size)
            if record is None:
                if note is not None:
                    note(f"{path}: {trouble} at byte {offset}; what follows is ignored.")
                return
            yield record
            offset = offset_after


def sizes(path: Path) -> Iterator[tuple[str, str, int]]:
    """Kind, chore and bytes of every record, by the heads alone; ends where no record is.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with path.open("rb") as file:
        while len(fixed := file.read(HEADER.size)) == HEADER.size:
            magic, version, kind, n_owner, n_mark, length, _, _ = HEADER.unpack(fixed)
            if magic != MAGIC or version != VERSION:
                return
            owner = file.read(n_owner + n_mark)[:n_owner]
            yield kind.rstrip(b"\0").decode("ascii", "replace"), owner.decode(errors="replace"), length
            file.seek(length, os.SEEK_CUR)


def _read_record(file: IO[bytes], label: str, offset: int, size: int) -> tuple[str, Record | None, int]:
    """The record at ``offset``, or what is wrong with it; and where the next one begins."""
    file.seek(offset)
    fixed = file.read(HEADER.size)
    if len(fixed) < HEADER.size:
        return "a record was cut short", None, offset
    magic, version, kind, n_owner, n_mark, length, data_crc, crc = HEADER.unpack(fixed)
    if magic != MAGIC:
        return "there is no record", None, offset
    if version != VERSION:
        return f"a record has version {version}, which this MatForge does not know,", None, offset
    names = file.read(n_owner + n_mark)
    start = offset + HEADER.size + n_owner + n_mark
    if len(names) < n_owner + n_mark or start + length > size:
        return "a record was cut short", None, offset
    if zlib.crc32(names, zlib.crc32(fixed[:_BEFORE_CRC])) != crc:
        return "the head of a record is damaged", None, offset
    checked = 0
    left = length
    while left:
        piece = file.read(min(left, 1 << 20))
        if not piece:
            return "a record was cut short", None, offset
        checked = zlib.crc32(piece, checked)
        left -= len(piece)
    if checked != data_crc:
        return "the data of a record is damaged", None, offset
    where = Location(label, start, length, data_crc)
    owner, mark = names[:n_owner].decode(errors="replace"), names[n_owner:].decode(errors="replace")
    return "", Record(kind.rstrip(b"\0").decode("ascii", "replace"), owner, mark, where), start + length
