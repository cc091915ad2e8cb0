"""The agent's queue, with a real slot."""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from matforge.model import FailureKind
from matforge.worker.pool import TOLD_AFTER_S, Pool
from matforge.worker.slotproc import SlotProcess
from matforge.worker.wire import FINISHED, LOST, AgentConfig, Profile

PATIENCE_S = 30.0


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """The queue of an agent with one core."""
    run_dir, scratch = tmp_path / "run", tmp_path / "home"
    (run_dir / "out" / "registry").mkdir(parents=True)
    (run_dir / "out" / "registry" / "sum").write_bytes(pickle.dumps(sum))
    scratch.mkdir()
    config = AgentConfig(
        str(run_dir), 1, 1, "", "agent-1", "test-token", str(scratch), 1,
        sys_path=[p for p in sys.path if p], python=sys.executable,
    )  # fmt: skip
    config.save(tmp_path / "agent.json")
    one = Pool(config, str(tmp_path / "agent.json"), lambda slot: None, -1)
    yield one
    for slot in one.slots.values():
        slot.process.kill()
        slot.process.wait()
        slot.discard()


def add(pool: Pool, handles: range) -> None:
    """Tasks that are done in no time."""
    payload = pickle.dumps((([1, 2, 3],), {}))
    tasks = [[n, 0, f"chore-sum-{n:04d}", "e1a1", "sum", len(payload), None, None, None, 1] for n in handles]
    pool.add({"0": Profile().as_dict()}, tasks, payload * len(tasks))


def work(pool: Pool, reports: int) -> SlotProcess:
    """Turn the pool over as an agent does, until there are so many reports."""
    deadline = time.monotonic() + PATIENCE_S
    while len(pool.reports) < reports and time.monotonic() < deadline:
        pool.dispatch(time.monotonic())
        (slot,) = pool.slots.values()
        select.select([slot.near], [], [], 0.1)
        pool.receive(slot, time.monotonic())
    assert len(pool.reports) == reports
    return slot


def test_a_slot_from_which_everything_is_taken_back_gets_work_again(pool: Pool) -> None:
    """On a crowded machine a slot may not run for so long that not even its first task was begun."""
    add(pool, range(1))
    slot = work(pool, 1)
    os.kill(slot.pid, signal.SIGSTOP)
    os.waitpid(slot.pid, os.WUNTRACED)
    add(pool, range(1, 4))
    slot.pace = 0.0  # tasks so short that some are given ahead
    pool.dispatch(slot.since, [slot])
    assert len(slot.assigned) == 3
    pool.tick(slot.since + 2 * TOLD_AFTER_S)
    assert not slot.assigned
    assert pool.waiting == 3
    os.kill(slot.pid, signal.SIGCONT)
    work(pool, 4)
    assert [report[1] for report in pool.reports] == [0, 1, 2, 3]


def test_what_runs_when_the_agent_is_told_to_end_was_lost_with_its_node(pool: Pool, tmp_path: Path) -> None:
    """Three lost slots set a chore aside; the end of its agent is not the chore's fault."""
    (tmp_path / "run" / "out" / "registry" / "exec").write_bytes(pickle.dumps(exec))
    os.mkfifo(tmp_path / "begun")
    code = f"import signal; open({str(tmp_path / 'begun')!r}, 'w').close(); signal.pause()"
    payload = pickle.dumps(((code,), {}))
    task = [1, 0, "chore-exec-0001", "e1a1", "exec", len(payload), None, None, None, 1]
    pool.add({"0": Profile().as_dict()}, [task], payload)
    pool.dispatch(time.monotonic())
    (slot,) = pool.slots.values()
    (tmp_path / "begun").read_bytes()  # which waits until the chore has opened it, too
    pool.close(kill=True, now=time.monotonic())
    os.waitid(os.P_PID, slot.pid, os.WEXITED | os.WNOWAIT)
    pool.reap(time.monotonic())
    ((kind, handle, failure),) = pool.reports
    assert (kind, handle, failure["kind"]) == (LOST, 1, FailureKind.NODE_LOST)
    assert pool.slots == {}


@pytest.mark.parametrize("how", ["cancelled", "withdrawn"])
def test_a_slot_that_has_just_been_started_is_not_lost_with_the_task_that_is_taken_back(
    pool: Pool, how: str
) -> None:
    """It was never told what it is and failed; three of these, and the run was given up."""
    add(pool, range(1))
    pool.dispatch(time.monotonic())
    (started,) = pool.slots.values()
    if how == "cancelled":
        pool.cancel([0], time.monotonic())
    else:
        pool.withdraw()
    assert len(pool.reports) == 1
    add(pool, range(1, 3))
    slot = work(pool, 3)
    assert slot is started
    assert pool.failed is None
    assert [report[0] for report in pool.reports[1:]] == [FINISHED, FINISHED]
