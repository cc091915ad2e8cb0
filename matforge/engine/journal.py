"""The journal: one line for everything that happened, enough to rebuild the run from nothing.

Each line is a JSON object that ends in the CRC-32 of what stands before it::

    {"seq":17,"t":1700000000.1,...,"crc":"89abcdef"}

A record is an event *together with* the decisions it led to and the strategy's state afterwards,
so a crash can neither forget a spawned chore nor double it. Records are handed to the operating
system once a loop of the driver (a killed process loses nothing that was journalled) and synced
in groups at most a second apart (a power failure loses at most that second).

A write that was cut short leaves a last line without its newline: that is a torn tail, and it is
cut off. Anything else that does not check out is damage, and nothing is guessed about it.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matforge.engine.locations import sync_path
from matforge.model import MatForgeError

FORMAT_VERSION = 1
SYNC_INTERVAL_S = 1.0
_CRC_TAIL = len(',"crc":"00000000"}')
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_from_json = json.JSONDecoder().raw_decode


class JournalError(MatForgeError):
    """The journal cannot be used; the text names the file and the byte offset."""


def encode(record: dict[str, Any]) -> bytes:
    """One line with its checksum, newline included."""
    body = _to_json(record)[:-1].encode()
    return body + b',"crc":"%08x"}\n' % zlib.crc32(body)


def decode(line: bytes) -> dict[str, Any] | None:
    """The record in ``line`` (without newline), or None if it is damaged."""
    body, tail = line[:-_CRC_TAIL], line[-_CRC_TAIL:]
    if tail != b',"crc":"%08x"}' % zlib.crc32(body):
        return None
    record: dict[str, Any] = _from_json(f"{body.decode()}}}")[0]
    return record


@dataclass(frozen=True, slots=True)
class Tail:
    """How a journal ended: ``end`` is the offset behind the last whole record."""

    end: int
    torn: int
    """Bytes after ``end`` that are the torn end of a write that never finished."""


def read(path: Path) -> tuple[list[dict[str, Any]], Tail]:
    """All records, and where they end.

    Raises
    ------
    JournalError
        If the file cannot be read, or a whole line is damaged or out of sequence.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    records: list[dict[str, Any]] = []
    end = 0
    for offset, line, complete in _lines(data):
        if not complete:
            break
        record = decode(line)
        if record is None:
            raise _damaged(path, offset, f"is damaged at byte {offset} (record {len(records)})")
        if record.get("seq") != len(records):
            what = f"has record {record.get('seq')} at byte {offset}, where {len(records)} belongs"
            raise _damaged(path, offset, what)
        records.append(record)
        end = offset + len(line) + 1
    return records, Tail(end, len(data) - end)


def select(path: Path, keep: Callable[[bytes], object]) -> Iterator[dict[str, Any]]:
    """Those records whose line ``keep`` picks, in order; a reader beside the driver, that keeps nothing.

    Raises
    ------
    JournalError
        If the file cannot be read, or a picked line is damaged.
    """
    try:
        with path.open("rb") as file:
            offset = 0
            for line in file:
                if keep(line) and line.endswith(b"\n"):  # without one: it is being written, or torn
                    record = decode(line[:-1])
                    if record is None:
                        raise _damaged(path, offset, f"is damaged at byte {offset}")
                    yield record
                offset += len(line)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> JournalError:
    return JournalError(f"{path} cannot be read: {error.strerror or error}.")


def _damaged(path: Path, offset: int, what: str) -> JournalError:
    return JournalError(
        f"{path} {what}; restore the file from a copy, or cut it off there "
        f"(truncate -s {offset}) to repeat what came later."
    )


def _lines(data: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """(offset, line, whether a newline ended it) of each line."""
    offset = 0
    while offset < len(data):
        stop = data.find(b"\n", offset)
        if stop < 0:
            yield offset, data[offset:], False
            return
        yield offset, data[offset:stop], True
        offset = stop + 1


class Journal:
    """Appends records to a file.

    Parameters
    ----------
    path : Path
        The file; created if missing.
    sequence : int
        Number of the next record (0 for a new journal).
    sync_every_write : bool
        Sync to the disk at every :meth:`flush` (``durability="power"``).
    """

    def __init__(self, path: Path, *, sequence: int = 0, sync_every_write: bool = False) -> None:
        self.path = path
        self.sequence = sequence
        self._sync_every_write = sync_every_write
        self._pending: list[bytes] = []
        self._unsynced = False
        self._torn = False
        """Whether a write failed half-way, so that bytes after :attr:`_end` have to go first."""
        self._synced_at = 0.0
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._end = os.fstat(self._fd).st_size
        if self._end == 0:
            sync_path(path.parent)

    @classmethod
    def reopen(cls, path: Path, tail: Tail, sequence: int, *, sync_every_write: bool = False) -> Journal:
        """Continue a journal that was :func:`read`; a torn end is cut off first."""
        if tail.torn:
            os.truncate(path, tail.end)
        return cls(path, sequence=sequence, sync_every_write=sync_every_write)

    @staticmethod
    def detach(path: Path) -> None:
        """Go on in a new file of that name: what a driver that stood still has yet to write, and it has
        the old one open, will never be read."""
        beside = path.with_name(f".{path.name}.new")
        shutil.copyfile(path, beside)
        sync_path(beside)
        os.replace(beside, path)
        sync_path(path.parent)

    def append(self, record: dict[str, Any]) -> None:
        """Queue a record; it is on its way to the disk after the next :meth:`flush`."""
        self._pending.append(encode({"seq": self.sequence, **record}))
        self.sequence += 1

    def flush(self, now: float) -> None:
        """Hand the queued records to the operating system; sync if a second has passed."""
        if self._pending:
            self._write(b"".join(self._pending))
            self._pending.clear()
            self._unsynced = True
        if self.will_sync(now):
            os.fdatasync(self._fd)
            self._synced_at, self._unsynced = now, False

    def will_sync(self, now: float) -> bool:
        """Whether a :meth:`flush` now would sync; what its records point to has to be synced first."""
        if not self._unsynced and not self._pending:
            return False
        return self._sync_every_write or not 0 <= now - self._synced_at < SYNC_INTERVAL_S

    def _write(self, data: bytes) -> None:
        """All or nothing: after half a record, nothing that follows could be read."""
        if self._torn:
            os.ftruncate(self._fd, self._end)
        self._torn = True
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        self._torn = False
        self._end += len(data)

    @property
    def sync_due(self) -> float | None:
        """When the next sync is due, or None if everything is on the disk."""
        return self._synced_at + SYNC_INTERVAL_S if self._unsynced else None

    def close(self) -> None:
        """Flush, sync and close; idempotent, and closed even if the flush fails."""
        if self._fd >= 0:
            try:
                self.flush(float("inf"))
            finally:
                self.abandon()

    def abandon(self) -> None:
        """Close without writing what is queued; idempotent."""
        self._pending.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
