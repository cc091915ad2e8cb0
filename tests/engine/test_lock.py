"""One driver a run, on file systems that know no locks."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from matforge.engine.lock import LEASE_S, RENEW_S, LockedError, RunLock, holder, is_held, place

NOW = 1.7e9


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the lock will be."""
    return tmp_path / "run.lock"


def held_by(path: Path, **holder: Any) -> None:
    """Write the lock file of somebody else."""
    known = {"token": "theirs", **place(), "pid": 1, "start": "", "renewed_at": NOW}
    path.write_text(json.dumps({**known, **holder}))


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def start_of(pid: int) -> str:
    """When a process started, in clock ticks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def test_a_lock_says_who_holds_it(path: Path) -> None:
    lock = RunLock(path)
    lock.acquire(NOW)
    holder = json.loads(path.read_text())
    assert holder["pid"] == os.getpid()
    assert holder["renewed_at"] == NOW
    assert {name: holder[name] for name in ("host", "boot", "namespace")} == place()
    lock.release()
    assert not path.exists()


def test_a_run_has_one_driver_and_the_other_is_told_which(path: Path) -> None:
    first, second = RunLock(path), RunLock(path)
    first.acquire(NOW)
    with pytest.raises(LockedError, match=f"is being run by process {os.getpid()} on {place()['host']}"):
        second.acquire(NOW + 10 * LEASE_S)  # it lives, however long it has been silent
    first.release()
    second.acquire(NOW)


@pytest.mark.parametrize(
    ("holder", "silent_s", "stale"),
    [
        ({"pid": -1}, 0.0, True),
        ({"pid": os.getpid(), "start": "1"}, 0.0, True),
        ({"pid": os.getpid(), "start": start_of(os.getpid())}, 1e6, False),
        ({"host": "elsewhere"}, LEASE_S - 1, False),
        ({"host": "elsewhere"}, LEASE_S + 1, True),
        ({"boot": "an earlier one"}, LEASE_S - 1, False),
        ({"boot": "an earlier one"}, LEASE_S + 1, True),
        ({"namespace": "of a container"}, LEASE_S - 1, False),
        ({"namespace": "of a container"}, LEASE_S + 1, True),
    ],
    ids=["dead", "recycled pid", "alive", "other host", "other host, lease over", "other boot",
         "other boot, lease over", "other container", "other container, lease over"],
)  # fmt: skip
def test_a_lock_is_taken_over_only_from_whoever_is_known_to_be_gone(
    path: Path, holder: dict[str, Any], silent_s: float, stale: bool
) -> None:
    held_by(path, **holder)
    if holder.get("pid") == -1:
        held_by(path, pid=dead_process(), start="12345")
    lock = RunLock(path)
    if not stale:
        with pytest.raises(LockedError):
            lock.acquire(NOW + silent_s)
        assert json.loads(path.read_text())["token"] == "theirs"
        return
    lock.acquire(NOW + silent_s)
    assert json.loads(path.read_text())["pid"] == os.getpid()
    assert [p.name for p in path.parent.iterdir()] == ["run.lock"]


@pytest.mark.parametrize("content", ["", '{"token": "ab', "[]", "7"])
def test_a_lock_that_was_never_filled_counts_by_its_age(path: Path, content: str) -> None:
    path.write_text(content)
    os.utime(path, (NOW, NOW))
    with pytest.raises(LockedError):
        RunLock(path).acquire(NOW + LEASE_S - 1)
    lock = RunLock(path)
    lock.acquire(NOW + LEASE_S + 1)
    lock.renew(NOW + 2 * LEASE_S)
    lock.release()
    assert list(path.parent.iterdir()) == []


def test_without_proc_a_living_process_is_known_by_its_number_alone(path: Path) -> None:
    held_by(path, pid=dead_process())
    RunLock(path).acquire(NOW)


def test_whoever_wants_to_know_can_see_whether_a_run_is_driven(path: Path) -> None:
    assert not is_held(path)
    lock = RunLock(path)
    lock.acquire(NOW)
    assert is_held(path)
    lock.release()
    assert not is_held(path)


def test_a_driver_that_was_killed_is_gone_before_its_parent_takes_notice(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    held_by(path, pid=process.pid, start=start_of(process.pid))
    assert holder(path) is not None
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped
    assert holder(path) is None
    process.communicate()


def test_the_lease_is_renewed_now_and_then(path: Path) -> None:
    lock = RunLock(path)
    lock.acquire(NOW)
    lock.renew(NOW + RENEW_S - 0.1)
    assert json.loads(path.read_text())["renewed_at"] == NOW
    lock.renew(NOW + RENEW_S)
    assert json.loads(path.read_text())["renewed_at"] == NOW + RENEW_S
    assert [p.name for p in path.parent.iterdir()] == ["run.lock"]


@pytest.mark.parametrize("gone", [True, False], ids=["removed", "taken over"])
def test_a_holder_that_lost_its_lock_notices_and_touches_nothing(path: Path, gone: bool) -> None:
    lock = RunLock(path)
    lock.acquire(NOW)
    if gone:
        path.unlink()
    else:
        held_by(path)
    with pytest.raises(LockedError, match="was taken over by another driver; this one stops"):
        lock.renew(NOW + RENEW_S)
    lock.release()
    assert path.exists() is not gone


def test_releasing_what_is_not_held_does_nothing(path: Path) -> None:
    held_by(path)
    RunLock(path).release()
    assert path.exists()
    path.unlink()
    lock = RunLock(path)
    lock.acquire(NOW)
    lock.release()
    lock.release()


@pytest.mark.parametrize("content", ["directory", '{"renewed_at": "soon"}', '{"renewed_at": null}'])
def test_a_lock_that_cannot_be_read_or_understood_is_held(path: Path, content: str) -> None:
    if content == "directory":
        path.mkdir()
    else:
        path.write_text(content)
    with pytest.raises(LockedError, match="is being run by another process"):
        RunLock(path).acquire(NOW + 10 * LEASE_S)
    assert is_held(path)
    assert [p.name for p in path.parent.iterdir()] == ["run.lock"]


def test_a_lock_that_cannot_be_written_is_not_left_behind(path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            RunLock(path).acquire(NOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not path.exists()


def test_of_many_that_want_a_stale_lock_exactly_one_gets_it(path: Path) -> None:
    for _ in range(20):
        held_by(path, pid=2**22 + 1, start="12345")
        gate = threading.Barrier(8)
        winners: list[RunLock] = []

        def try_it(gate: threading.Barrier = gate, winners: list[RunLock] = winners) -> None:
            lock = RunLock(path)
            gate.wait()
            try:
                lock.acquire(NOW)
            except LockedError:
                return
            winners.append(lock)

        threads = [threading.Thread(target=try_it) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        (winner,) = winners
        winner.renew(NOW + RENEW_S)
        winner.release()
        assert list(path.parent.iterdir()) == []
