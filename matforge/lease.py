"""A lock that is a file with a lease, made of operations that work on shared file systems.

No flock, no SQLite, no mmap. The holder writes who it is (host, boot id, pid) and renews the
lease; another process takes over only when the holder is known to be dead (it ran where process
ids mean what they mean here, and there is no such process) or has not renewed for a while.

Each lock has a token of its own. Whoever replaces, renews or removes the lock with that token first
makes a file that is named after it, exclusively, so of many that find a stale lock one takes it
over, by a single rename, and nobody mistakes the new lock for the old one. A process that stood
still, and whose lock was taken over meanwhile, notices before it does anything to the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matforge.model import MatForgeError

LEASE_S = 60.0
RENEW_S = 10.0


class HeldError(MatForgeError):
    """Another process holds the lock (exit code 75)."""


def place() -> dict[str, str]:
    """Where process ids mean what they mean here: host, boot of it, and container."""
    found = {"host": socket.gethostname(), "boot": "unknown", "namespace": "unknown"}
    with contextlib.suppress(OSError):
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found["namespace"] = os.readlink("/proc/self/ns/pid")
    return found


def _process_start(pid: int) -> str:
    """Start time of a process in clock ticks, so that a recycled pid is not taken for the holder.

    Empty for one that has ended, although its parent may not have taken notice yet.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def _alive(pid: int, start: str) -> bool:
    known = _process_start(pid)
    if known or start:
        return known == start
    try:  # no /proc here
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _parse(path: Path) -> dict[str, Any]:
    """What a lock file says; nothing, if it was never filled."""
    try:
        data = json.loads(path.read_text())
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _content(path: Path) -> dict[str, Any] | None:
    """Who made the lock file ``path``; None if there is none.

    One that cannot be read is somebody's, who never lets go: nothing is guessed about it.
    """
    try:
        # empty: made by a process that died, or still is, between creating and filling it
        return _parse(path) or {"renewed_at": path.stat().st_mtime}
    except FileNotFoundError:
        return None
    except OSError:
        return {"renewed_at": float("inf")}


def _identity(now: float) -> dict[str, Any]:
    """This process, and a token that nothing else has."""
    pid = os.getpid()
    token = secrets.token_hex(8)
    return {"token": token, **place(), "pid": pid, "start": _process_start(pid), "renewed_at": now}


def _made(path: Path, content: dict[str, Any]) -> bool:
    """Make a file that nobody else has made; False if it is there."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    # a lock that cannot be filled must not stay behind, whatever happens from here on
    try:
        with os.fdopen(fd, "w") as file:
            json.dump(content, file)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return True


class Lease:
    """One lock file.

    Parameters
    ----------
    path
        The file; it exists while somebody holds the lock.
    """

    error: type[HeldError] = HeldError
    """What is raised when another process holds the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mine: dict[str, Any] = {}
        self._renewed = 0.0
        self.seized = False
        """Whether it was taken from a holder that is silent, and not known to be dead."""

    def busy_sentence(self, who: str) -> str:
        """What a person is told when ``who`` holds the lock."""
        return f"{self.path} is held by {who}."

    def lost_sentence(self) -> str:
        """What a person is told when the lock was taken over by another process."""
        return f"{self.path} was taken over by another process; this one stops."

    @property
    def token(self) -> str:
        """What tells this holder from all others; empty while the lock is not held."""
        return str(self._mine.get("token", ""))

    def holder(self, now: float) -> dict[str, Any] | None:
        """What the living holder wrote into the file; None if there is none."""
        held = self._read()
        return None if held is None or self._stale(held, now) else held

    def acquire(self, now: float) -> None:
        """Take the lock.

        Raises
        ------
        HeldError
            If a living process holds it.
        """
        while not self._create(now):
            held = self._read()
            if held is None:
                continue  # released in between
            if not self._stale(held, now):
                who = f"process {held['pid']} on {held['host']}" if "pid" in held else "another process"
                raise self.error(self.busy_sentence(who))
            if self._take_over(held, now):
                self.seized = "pid" in held and not self._is_here(held)
                return

    def _create(self, now: float) -> bool:
        mine = _identity(now)
        if not _made(self.path, mine):
            return False
        self._mine, self._renewed = mine, now
        return True

    def _read(self) -> dict[str, Any] | None:
        return _content(self.path)

    def _is_here(self, held: dict[str, Any]) -> bool:
        """Whether process ids of the holder mean what they mean here."""
        return all(held.get(name) == here for name, here in place().items())

    def _stale(self, held: dict[str, Any], now: float) -> bool:
        try:
            if self._is_here(held):
                return not _alive(int(held["pid"]), held.get("start", ""))
            return now - float(held.get("renewed_at", 0)) > LEASE_S
        except (KeyError, TypeError, ValueError):
            return False  # something that is not understood is somebody's

    def _take_over(self, held: dict[str, Any], now: float) -> bool:
        """Put a lock of ours in the place of a stale one; False if that is another one by now."""
        with self._guarded(held, now) as free:
            if not free:
                raise self.error(self.busy_sentence("another process, which is just taking it over"))
            there = self._read()
            if there is None or there.get("token") != held.get("token") or not self._stale(there, now):
                return False
            mine = _identity(now)
            self._replace(mine)
            self._mine, self._renewed = mine, now
        return True

    def _replace(self, content: dict[str, Any]) -> None:
        beside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.new")
        try:
            beside.write_text(json.dumps(content))
            os.replace(beside, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise

    @contextlib.contextmanager
    def _guarded(self, held: dict[str, Any], now: float) -> Iterator[bool]:
        """Be the only one to change the lock with this token; yields whether we are."""
        guard = self.path.with_name(f"{self.path.name}.{held.get('token', 'unfilled')}.guard")
        free = _made(guard, _identity(now))
        if not free and (other := _content(guard)) is not None and self._stale(other, now):
            # it died within the instant in which it had the guard
            aside = guard.with_name(f"{guard.name}.{secrets.token_hex(4)}")
            with contextlib.suppress(FileNotFoundError):
                os.rename(guard, aside)
                aside.unlink()
            free = _made(guard, _identity(now))
        try:
            yield free
        finally:
            if free:
                with contextlib.suppress(OSError):
                    guard.unlink()

    def renew(self, now: float) -> None:
        """Extend the lease, at most every :data:`RENEW_S` seconds.

        Raises
        ------
        HeldError
            If another process has taken the lock meanwhile.
        """
        if now - self._renewed < RENEW_S:
            return
        with self._guarded(self._mine, now) as free:
            if not free:
                raise self.error(self.lost_sentence())
            self.check()
            self._mine["renewed_at"] = self._renewed = now
            self._replace(self._mine)

    def check(self) -> None:
        """Raise :class:`HeldError` if another process has taken the lock meanwhile."""
        held = self._read()
        if held is None or held.get("token") != self._mine.get("token"):
            raise self.error(self.lost_sentence())

    def release(self) -> None:
        """Give the lock back; does nothing if it is no longer ours."""
        if not self._mine:
            return
        with contextlib.suppress(OSError):  # then the lease runs out by itself
            try:
                with self._guarded(self._mine, self._renewed) as free:
                    if free:
                        self._remove()
            except OSError:  # no room for the guard, and so for nobody's
                self._remove()
        self._mine = {}

    def _remove(self) -> None:
        held = self._read()
        if held is not None and held.get("token") == self._mine["token"]:
            self.path.unlink()
