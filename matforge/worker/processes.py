"""Processes and what the operating system knows of them. Standard library only.

Everything that is special to Linux is here, and says what happens elsewhere: without it, a chore
whose grandchildren leave its session may outlive it.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import select
import signal
import sys
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LEAST_RSS = 2 << 30
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
TOKEN = "MATFORGE_TOKEN"
"""Environment variable by which the processes of one agent are found again if it was killed."""


def _prctl(option: int, value: int) -> bool:
    if not LINUX:
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.prctl(option, value, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def adopt_orphans() -> bool:
    """Become the parent of every descendant whose own parent ends (Linux)."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Be sent signal ``number`` when ``parent`` ends; exits at once if it has ended already.

    Without Linux only the second half holds, and the caller must watch a pipe.
    """
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def leave() -> NoReturn:
    """End this process after its exit handlers, without taking apart all that it has loaded.

    With JAX that takes a quarter of a second, and threads that a chore left could keep it for ever.
    """
    try:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    finally:
        os._exit(0)


def readable_within(descriptor: int, seconds: float) -> bool:
    """Whether there is something to read, the end of the file included, or comes in time."""
    poller = select.poll()  # select.select knows no descriptors above 1023
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(1000 * seconds))


def children_of(pid: int) -> list[int]:
    """Direct children of ``pid``, zombies included; empty where the system does not tell."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += [int(p) for p in file.read().split()]
        except OSError:  # that thread has just ended, or the kernel was built without this file
            continue
    return found


def descendants_of(pid: int) -> list[int]:
    """All living descendants of ``pid``, parents before children."""
    found: list[int] = []
    level = children_of(pid)
    while level:
        found += level
        level = [child for parent in level for child in children_of(parent)]
    return found


def ends_within(pid: int, seconds: float) -> bool:
    """Whether a process has ended, or does so in time; that its parent has asked how is not needed.

    One that is about to end closes its files first, so others may hear of it a moment too early.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except (AttributeError, OSError):  # a system without them
        return False
    try:
        return readable_within(descriptor, seconds)
    finally:
        os.close(descriptor)


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped by a signal (not by a debugger); False where unknown."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False


def memory_of(pids: Iterable[int]) -> int:
    """Resident memory (bytes) of processes together; pages that they share count for each."""
    total = 0
    for pid in pids:
        with suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/statm", "rb") as file:
            total += int(file.read().split()[1]) * _PAGE
    return total


def proportional_memory_of(pids: Iterable[int]) -> int:
    """As :func:`memory_of`, with every shared page divided among those who share it."""
    total = 0
    for pid in pids:
        with suppress(OSError, StopIteration, ValueError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            total += 1024 * int(next(line.split()[1] for line in file if line.startswith(b"Pss:")))
    return total


def send(pid: int, number: int) -> None:
    """Signal one process if it is still there."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def signal_tree(leader: int, number: int) -> None:
    """Signal ``leader``, the process group it leads, and all its descendants in other groups."""
    below = descendants_of(leader)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
    for pid in (leader, *below):
        send(pid, number)


def kill_children(spare: Iterable[int] = ()) -> int:
    """SIGKILL and reap the caller's children except ``spare``, and what falls to it meanwhile.

    For a process that adopts orphans: killing a child hands the grandchildren to the caller, so
    this repeats until nothing is left.

    Returns
    -------
    int
        How many were reaped.
    """
    kept = set(spare)
    reaped = 0
    while True:
        targets = [pid for pid in children_of(os.getpid()) if pid not in kept]
        if not targets:
            return reaped
        for pid in targets:
            send(pid, signal.SIGKILL)
        for pid in targets:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
                reaped += 1


def has_children() -> bool:
    """Whether the caller has any child, living or zombie; one system call."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def ended_child(*, wait: bool) -> int | None:
    """A child that has ended, not yet reaped, so that its number is still its own.

    Parameters
    ----------
    wait : bool
        Whether to wait until there is one.

    Returns
    -------
    int or None
        Its process id; None if none has ended, or there is no child at all.
    """
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | (0 if wait else os.WNOHANG))
    except ChildProcessError:
        return None
    return found.si_pid if found is not None else None


class OomWatch:
    """Tells whether the kernel has just killed for want of memory.

    It counts when it chooses its victim, and a large process takes a while to end after that; so
    what counts is whether the number has grown within the last seconds.
    """

    window_s = 10.0

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque([(0.0, oom_kills())])

    def look(self, now: float) -> None:
        """Remember the present count; to be called once a second or so."""
        self._seen.append((now, oom_kills()))
        while len(self._seen) > 1 and now - self._seen[1][0] > self.window_s:
            self._seen.popleft()

    def recent(self, now: float) -> bool:
        """Whether there was a kill within the last seconds."""
        self.look(now)
        return self._seen[-1][1] > self._seen[0][1]


def sweep(token: str) -> int:
    """SIGKILL every process of this user whose environment holds ``MATFORGE_TOKEN=token``.

    The last resort after an agent was killed: its slots die with it, what they had started may
    not. Returns how many were found.
    """
    wanted = f"{TOKEN}={token}".encode()
    found = 0
    for _ in range(10):  # a tree that forks while it is killed
        round_ = 0
        for name in _proc_entries():
            try:
                if wanted in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    os.kill(int(name), signal.SIGKILL)
                    round_ += 1
            except OSError:
                continue
        found += round_
        if not round_:
            break
    return found


def _proc_entries() -> list[str]:
    try:
        return [n for n in os.listdir("/proc") if n.isdigit() and int(n) != os.getpid()]
    except OSError:
        return []


def usable_cores() -> list[int]:
    """Numbers of the cores this process may use, cut down to a CPU limit of its cgroup."""
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(os.cpu_count() or 1))
    limit = _cgroup_cpu_limit()
    return cores[: max(1, int(limit))] if limit is not None else cores


def _cgroup_dirs(controller: str, root: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """Directories of this process's cgroup and its ancestors: unified first, then ``controller``."""
    found: list[Path] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, names, path = line.split(":", 2)
        if names == "":
            bases = [root, root / "unified"]
        elif controller in names.split(","):
            bases = [root / names, root / controller]
        else:
            continue
        for base in bases:
            here = base / path.lstrip("/")
            found += [p for p in (here, *here.parents) if p == base or base in p.parents]
    return [p for p in found if p.is_dir()]


def _cgroup_cpu_limit() -> float | None:
    """CPUs this process's cgroup may use at a time, or None without a limit."""
    limits: list[float] = []
    for folder in _cgroup_dirs("cpu"):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text().split()
            limits += [int(quota) / int(period)] if quota != "max" else []
        with suppress(OSError, ValueError, ZeroDivisionError):
            share = int((folder / "cpu.cfs_quota_us").read_text())
            limits += [share / int((folder / "cpu.cfs_period_us").read_text())] if share > 0 else []
    return min(limits) if limits else None


def memory_limit() -> int:
    """Bytes of memory that this process and its cgroup may use; 0 where that is unknown."""
    known: list[int] = []
    with suppress(OSError, ValueError):
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for folder in _cgroup_dirs("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                known.append(int((folder / name).read_text()))
    return min((k for k in known if k > 0), default=0)


def fair_share(workers: int) -> int:
    """Bytes that one of ``workers`` slots may occupy before it is replaced."""
    return max(_LEAST_RSS, int(0.8 * memory_limit() / workers))


def oom_kills(folders: Iterable[Path] | None = None, vmstat: Path = Path("/proc/vmstat")) -> int:
    """How often the kernel has killed for want of memory, as far as it concerns this process.

    Counted in the process's own cgroup where there is one, else on the whole machine.
    """
    for folder in _cgroup_dirs("memory") if folders is None else folders:
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError, ValueError, StopIteration):
                return _counter(folder / name, "oom_kill")
    with suppress(OSError, ValueError, StopIteration):
        return _counter(vmstat, "oom_kill")
    return 0


def _counter(path: Path, key: str) -> int:
    pairs = (line.split() for line in path.read_text().splitlines())
    return int(next(pair[1] for pair in pairs if len(pair) == 2 and pair[0] == key))


def tail(path: Path | str, limit: int = 4096) -> str:
    """The last ``limit`` bytes of a file as text; empty if there is none."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - limit))
            return file.read(limit).decode(errors="replace")
    except OSError:
        return ""
