"""A lock that is a file with a lease, made of operations that work on shared file systems.

No flock, no SQLite, no mmap. The holder writes who it is (host, boot id, pid) and renews the
lease; another process takes over only when the holder is known to be dead (it ran where process
ids mean what they mean here, and there is no such process) or has not renewed for a while.

While a stale lock is being broken, two processes may believe for an instant that they hold it; the
next :meth:`Lease.renew` tells all but one. Where that instant matters, whatever the lock guards has
to be decided by an exclusive creation of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
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
            self._break(held)

    def _create(self, now: float) -> bool:
        token = {
            "token": secrets.token_hex(8),
            **place(),
            "pid": os.getpid(),
            "start": _process_start(os.getpid()),
            "renewed_at": now,
        }
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return False
        # a lock that cannot be filled must not stay behind, whatever happens from here on
        self._mine, self._renewed = token, now
        try:
            with os.fdopen(fd, "w") as file:
                json.dump(token, file)
        except BaseException:
            with contextlib.suppress(OSError):
                self.path.unlink()
            raise
        return True

    def _read(self) -> dict[str, Any] | None:
        try:
            # empty: made by a process that died, or still is, between creating and filling it
            return _parse(self.path) or {"renewed_at": self.path.stat().st_mtime}
        except FileNotFoundError:
            return None

    def _stale(self, held: dict[str, Any], now: float) -> bool:
        if all(held.get(name) == here for name, here in place().items()):
            return not _alive(int(held["pid"]), held.get("start", ""))
        return now - float(held.get("renewed_at", 0)) > LEASE_S

    def _break(self, held: dict[str, Any]) -> None:
        """Set a stale lock aside; if it was another one by then, give that back."""
        aside = self.path.with_name(f"{self.path.name}.stale-{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(self.path, aside)
            if _parse(aside).get("token") != held.get("token"):
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink()

    def renew(self, now: float) -> None:
        """Extend the lease, at most every :data:`RENEW_S` seconds.

        Raises
        ------
        HeldError
            If another process has taken the lock meanwhile.
        """
        if now - self._renewed < RENEW_S:
            return
        self.check()
        self._mine["renewed_at"] = self._renewed = now
        beside = self.path.with_name(f"{self.path.name}.new")
        beside.write_text(json.dumps(self._mine))
        os.replace(beside, self.path)

    def check(self) -> None:
        """Raise :class:`HeldError` if another process has taken the lock meanwhile."""
        held = self._read()
        if held is None or held.get("token") != self._mine.get("token"):
            raise self.error(self.lost_sentence())

    def release(self) -> None:
        """Give the lock back; does nothing if it is no longer ours."""
        with contextlib.suppress(OSError):  # then the lease runs out by itself
            held = self._read()
            if held is not None and self._mine and held.get("token") == self._mine["token"]:
                self.path.unlink()
        self._mine = {}
