"""One driver a run: several that want it, and one that stood still while another went on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from matforge.engine.lock import LEASE_S, RENEW_S, LockedError, RunLock, place
from matforge.engine.store import JOURNAL_NAME, LOCK_NAME
from matforge.executors.protocol import Task
from matforge.executors.simulated import Outcome, SimulatedExecutor
from matforge.model import RunState
from matforge.opening import reopen
from tests.durability import frozen_driver
from tests.harness import call, outcome, play, records

NOW = 1.7e9
ROOT = Path(__file__).parents[2]


def stale(path: Path) -> None:
    """The lock of a driver on another host, which has been silent for long."""
    held = {"token": "theirs", **place(), "host": "elsewhere", "pid": 1, "start": "", "renewed_at": 0.0}
    path.write_text(json.dumps(held))


def value(task: Task) -> Outcome:
    """As the frozen driver's."""
    return Outcome(1.0, task.seed)


def test_a_driver_that_stood_still_while_another_went_on_writes_nothing(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.durability.frozen_driver", str(folder), str(2 * LEASE_S)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=ROOT) as old:
        assert old.stdin is not None
        assert old.stdout is not None
        try:
            assert old.stdout.readline() == "waiting\n"
            old.send_signal(signal.SIGSTOP)
            (run_dir,) = folder.glob("matforge*")
            early = SimulatedExecutor(value, start_time=time.time() + LEASE_S / 2)
            with pytest.raises(LockedError, match=f"is being run by process {old.pid} on another"):
                reopen(run_dir, made=early, quiet=True)
            late = SimulatedExecutor(value, start_time=time.time() + 2 * LEASE_S)
            session = reopen(run_dir, made=late, quiet=True)
            assert session.wait(60) is RunState.COMPLETED
            expected, journal = outcome(session), (run_dir / JOURNAL_NAME).read_bytes()
            status = (run_dir / "status.json").read_bytes()
            old.send_signal(signal.SIGCONT)
            old.stdin.write("go on\n")
            old.stdin.flush()
            assert "was taken over by another driver; this one stops" in old.stdout.read()
            assert old.wait(60) == 75
        finally:
            old.kill()
    assert (run_dir / JOURNAL_NAME).read_bytes() == journal
    assert (run_dir / "status.json").read_bytes() == status
    again = reopen(run_dir, made=SimulatedExecutor(value), quiet=True)
    assert again.wait(60) is RunState.COMPLETED
    assert outcome(again) == expected
    assert len(expected) == len(frozen_driver.CALLS)


def test_a_driver_that_was_stopped_within_a_write_writes_into_a_file_that_nobody_reads(folder: Path) -> None:
    """The worst moment: it has just seen that the lock is its own."""
    session, _ = play(folder, [call("work", n) for n in range(3)], value)
    session.wait(30)
    path = session.run_dir / JOURNAL_NAME
    with path.open("ab") as of_the_old_driver:
        stale(session.run_dir / LOCK_NAME)
        again = reopen(session.run_dir, made=SimulatedExecutor(value), quiet=True)
        assert again.wait(30) is RunState.COMPLETED
        of_the_old_driver.write(b'{"seq":9999,"e":"end"}\n')
    assert [r["seq"] for r in records(session.run_dir)] == list(range(len(records(session.run_dir))))


@pytest.mark.parametrize("count", [2, 3])
def test_of_several_drivers_that_find_a_stale_lock_one_takes_the_run_and_the_rest_are_told(
    folder: Path, count: int
) -> None:
    session, _ = play(folder, [call("work", n) for n in range(3)], value)
    session.wait(30)
    for _ in range(10):
        stale(session.run_dir / LOCK_NAME)
        gate = threading.Barrier(count)
        taken: list[Any] = []
        refused: list[LockedError] = []

        def drive(gate: threading.Barrier = gate, taken: Any = taken, refused: Any = refused) -> None:
            lock = RunLock(session.run_dir / LOCK_NAME)
            gate.wait()
            try:
                lock.acquire(NOW)
            except LockedError as error:
                refused.append(error)
            else:
                taken.append(lock)

        threads = [threading.Thread(target=drive) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        (winner,) = taken
        assert len(refused) == count - 1
        winner.renew(NOW + RENEW_S)
        winner.release()
        assert not [path for path in session.run_dir.iterdir() if LOCK_NAME in path.name]


def test_whoever_found_a_lock_stale_does_not_break_its_successor(tmp_path: Path) -> None:
    """Three drivers: one has read the stale lock, and before it acts another has taken over."""
    path = tmp_path / LOCK_NAME
    stale(path)
    slow = RunLock(path)
    seen = slow._read()
    assert seen is not None
    quick = RunLock(path)
    quick.acquire(NOW)
    assert not slow._take_over(seen, NOW)
    with pytest.raises(LockedError):
        slow.acquire(NOW)
    quick.renew(NOW + RENEW_S)
    third = RunLock(path)
    with pytest.raises(LockedError):
        third.acquire(NOW + RENEW_S)


def test_a_driver_that_died_while_it_took_a_run_over_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / LOCK_NAME
    stale(path)
    dead = {"token": "dead", **place(), "pid": 2**22 + 1, "start": "12345", "renewed_at": NOW}
    (tmp_path / f"{LOCK_NAME}.theirs.guard").write_text(json.dumps(dead))
    lock = RunLock(path)
    lock.acquire(NOW)
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_while_another_takes_a_run_over_nobody_else_does(tmp_path: Path) -> None:
    path = tmp_path / LOCK_NAME
    stale(path)
    alive = {"token": "alive", **place(), "host": "third", "pid": 1, "start": "", "renewed_at": NOW}
    (tmp_path / f"{LOCK_NAME}.theirs.guard").write_text(json.dumps(alive))
    with pytest.raises(LockedError, match="another process, which is just taking it over"):
        RunLock(path).acquire(NOW)
    assert json.loads(path.read_text())["token"] == "theirs"
