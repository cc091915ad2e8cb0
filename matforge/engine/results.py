"""How a result lies on disk: a pickle, or a pickle's head followed by its large buffers.

Large contiguous memory (arrays, above all) is not copied into a pickle: it is written straight from
where it lies (pickle protocol 5, out of band), and read without what nobody asked for. Standard
library only: workers import this module.

Layout of such a file, little-endian, version 1; a plain pickle begins with the byte 0x80 instead::

    4s  magic b"MFob"       H  version       H  0
    I   number of buffers   I  CRC-32 of the head
    Q   bytes of the head
    QQ  offset and bytes of each buffer
    I   CRC-32 of all before it
    head (a pickle that refers to the buffers in their order), buffers

Every buffer begins at a multiple of 4096 bytes. The :class:`~matforge.model.Location` of the result
spans the whole file; its checksum covers the buffers too, and is verified by whoever reads all.
"""

from __future__ import annotations

import mmap
import os
import pickle
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from matforge.engine.locations import DamagedError, unreadable
from matforge.model import Location, apply_path

MAGIC = b"MFob"
VERSION = 1
LARGE = 256 * 1024
"""Bytes from which on a buffer travels out of band."""
ALIGNMENT = 4096
_KNOWN = sys.platform == "linux" and os.uname().machine in ("x86_64", "aarch64")
NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000 if _KNOWN else 0)
"""Lets a file be mapped that is larger than the memory (a name of :mod:`mmap` since Python 3.13)."""
_FIXED = struct.Struct("<4sHHIIQ")
_PLACE = struct.Struct("<QQ")
_CRC = struct.Struct("<I")
_STEP = 1 << 24
"""Bytes that are written, or checked, at a time."""

Pieces = Sequence[bytes | memoryview]
"""A result as it is to be written: these one after the other."""


# ---------------------------------------------------------------- write


def dump(value: Any, dumps: Callable[..., bytes] = pickle.dumps) -> bytes | list[bytes | memoryview]:
    """Pickle ``value``: plain bytes, or head and buffers if there are large ones.

    The buffers are views of the value's own memory, which must not change until they are written.

    Parameters
    ----------
    value
    dumps : callable
        ``pickle.dumps``, or cloudpickle's.
    """
    large: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """Whether a buffer stays in the pickle."""
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if view.nbytes < LARGE:
            return True
        large.append(view)
        return False

    if type(value) in (bytes, bytearray) and len(value) >= LARGE:
        value = _Whole(value)
    head = dumps(value, protocol=5, buffer_callback=keep)
    return [*_preamble(head, large), *_aligned(large, _begin(head, large))] if large else bytes(head)


class _Whole:
    """Stands for bytes or a bytearray, which pickle would copy."""

    def __init__(self, value: bytes | bytearray) -> None:
        self._value = value

    def __reduce__(self) -> Any:
        return type(self._value), (pickle.PickleBuffer(self._value),)


def _begin(head: bytes, large: Sequence[memoryview]) -> int:
    """Where the head ends."""
    return _FIXED.size + _PLACE.size * len(large) + _CRC.size + len(head)


def _preamble(head: bytes, large: Sequence[memoryview]) -> list[bytes | memoryview]:
    fixed = _FIXED.pack(MAGIC, VERSION, 0, len(large), zlib.crc32(head), len(head))
    places, offset = [], _begin(head, large)
    for view in large:
        offset += -offset % ALIGNMENT
        places.append(_PLACE.pack(offset, view.nbytes))
        offset += view.nbytes
    table = fixed + b"".join(places)
    return [table + _CRC.pack(zlib.crc32(table)), head]


def _aligned(large: Sequence[memoryview], offset: int) -> Iterator[bytes | memoryview]:
    for view in large:
        yield bytes(-offset % ALIGNMENT)
        offset += -offset % ALIGNMENT + view.nbytes
        yield view


def write(file: IO[bytes], name: str, data: bytes | Pieces) -> Location:
    """Write a result at the start of an unbuffered file, which the run knows as ``name``.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    crc = length = 0
    for piece in (data,) if isinstance(data, bytes) else data:
        rest = memoryview(piece)
        length += rest.nbytes
        while rest:
            step = rest[:_STEP]
            done = file.write(step)
            # while the bytes are in the processor's cache
            crc = zlib.crc32(step[:done], crc)
            rest = rest[done:]
    return Location(name, 0, length, crc)


def pieces_of(path: Path) -> bytes | Pieces:
    """What :func:`write` wrote, to be written again; not in memory as a whole if it has large buffers."""
    with path.open("rb", buffering=0) as file:
        if file.read(len(MAGIC)) != MAGIC:
            return path.read_bytes()
        return [memoryview(_mapped(file.fileno(), os.fstat(file.fileno()).st_size))]


# ---------------------------------------------------------------- read


def load(run_dir: Path, where: Location) -> Any:
    """The value at ``where``, checked as a whole; what it holds may be changed.

    Raises
    ------
    DamagedError
        If the file is missing or unreadable, too short, or a checksum differs.
    """
    path = run_dir / where.path
    try:
        with path.open("rb", buffering=0) as file:
            # memory of its own, so that arrays made on it can be written to
            data = bytearray(where.length)
            got = _read_into(file, where.offset, data)
    except OSError as error:
        raise unreadable(run_dir, where, error) from error
    if got != where.length:
        raise DamagedError(f"{path} ends at byte {where.offset + got}, before byte {_end(where)}.")
    if _checksum(data) != where.crc:
        raise DamagedError(
            f"{path} was changed or damaged between byte {where.offset} and {_end(where)}: "
            "its checksum differs."
        )
    return loads(memoryview(data), path)


def load_part(run_dir: Path, where: Location, indices: Sequence[Any]) -> Any:
    """A part of the value at ``where``, without reading large buffers as a whole.

    They are mapped: what is changed in them changes for this process alone. Their checksum is not
    verified; that of the head is, and the length of the file.

    Raises
    ------
    DamagedError
        As for :func:`load`.
    """
    return apply_path(opened(run_dir, where) if indices else load(run_dir, where), indices)


def opened(run_dir: Path, where: Location) -> Any:
    """The value at ``where`` for somebody who wants a part of it; see :func:`load_part`."""
    mapped = view(run_dir, where)
    return load(run_dir, where) if mapped is None else loads(mapped, run_dir / where.path)


def view(run_dir: Path, where: Location) -> memoryview | None:
    """A result with large buffers as private memory whose pages are read when they are touched.

    None for a plain pickle, which is to be read and checked.

    Raises
    ------
    DamagedError
        If the file is missing or unreadable, or has another length.
    """
    if where.offset or where.length < LARGE:
        return None
    path = run_dir / where.path
    try:
        with path.open("rb", buffering=0) as file:
            if file.read(len(MAGIC)) != MAGIC:
                return None
            size = os.fstat(file.fileno()).st_size
            if size != where.length:
                # touching what is not there would kill the process
                raise DamagedError(f"{path} has {size} bytes instead of {where.length}.")
            return memoryview(_mapped(file.fileno(), size))
    except OSError as error:
        raise unreadable(run_dir, where, error) from error


def pickle_of(run_dir: Path, where: Location) -> memoryview:
    """The pickle of a result, without its large buffers, as pages that are read when they are touched.

    Raises
    ------
    DamagedError
        If the file is missing, unreadable or too short, or its head is damaged.
    """
    path = run_dir / where.path
    mapped = view(run_dir, where)
    if mapped is not None and (head := open_head(mapped, path)) is not None:
        return head.pickle
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size < _end(where):
                raise DamagedError(f"{path} ends at byte {size}, before byte {_end(where)}.")
            return memoryview(_mapped(file.fileno(), size))[where.offset : _end(where)]
    except OSError as error:
        raise unreadable(run_dir, where, error) from error


def loads(data: memoryview | bytes, path: Path) -> Any:
    """The value in the bytes of a result; ``path`` is for messages.

    Raises
    ------
    DamagedError
        If a head is damaged.
    """
    head = open_head(data, path)
    if head is None:
        return pickle.loads(data)
    return pickle.loads(head.pickle, buffers=head.buffers)


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of a result with large buffers."""

    pickle: memoryview
    buffers: list[memoryview]


def open_head(data: memoryview | bytes, path: Path) -> Head | None:
    """The head of a result that has large buffers, checked; None for a plain pickle.

    Raises
    ------
    DamagedError
        If it is damaged, or of a later version.
    """
    whole = memoryview(data)
    if bytes(whole[: len(MAGIC)]) != MAGIC:
        return None
    damaged = DamagedError(f"{path} was changed or damaged: the head of the result is wrong.")
    if len(whole) < _FIXED.size:
        raise damaged
    _, version, _, count, head_crc, length = _FIXED.unpack_from(whole)
    if version != VERSION:
        raise DamagedError(f"{path} has version {version}, which this MatForge does not know.")
    end = _FIXED.size + _PLACE.size * count
    head = whole[end + _CRC.size : end + _CRC.size + length]
    if len(head) != length or _CRC.unpack_from(whole, end)[0] != zlib.crc32(whole[:end]):
        raise damaged
    if zlib.crc32(head) != head_crc:
        raise damaged
    places = [_PLACE.unpack_from(whole, _FIXED.size + _PLACE.size * i) for i in range(count)]
    return Head(head, [whole[offset : offset + length] for offset, length in places])


def _checksum(data: bytearray) -> int:
    crc = 0
    for start in range(0, len(data), _STEP):
        crc = zlib.crc32(memoryview(data)[start : start + _STEP], crc)
    return crc


def _read_into(file: IO[bytes], offset: int, data: bytearray) -> int:
    file.seek(offset)
    rest, got = memoryview(data), 0
    while rest and (count := file.readinto(rest)):  # type: ignore[attr-defined]
        got += count
        rest = rest[count:]
    return got


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    """The file as private memory, which need not all fit: pages come from the file until they are changed."""
    flags, protection = mmap.MAP_PRIVATE | NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
    return mmap.mmap(descriptor, size, flags=flags, prot=protection)


def _end(where: Location) -> int:
    return where.offset + where.length
