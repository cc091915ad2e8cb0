"""Slots and agents that are killed at random cost time: no result, and none of a chore's retries."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from matforge import Pipeline
from matforge.engine.graph import MAX_DOUBTS, MAX_LOSSES
from matforge.executors.local import LocalExecutor
from matforge.model import ChoreState, FailureKind, RunState
from matforge.session import Session
from matforge.vacua import load_geometry
from matforge.vacua.campaign import Tuning, start
from matforge.vacua.region import preset
from matforge.worker.processes import children_of
from tests.harness import records


class Killer:
    """Kills slots of a run, and now and then its agent, whenever so many chores have ended.

    While a chore runs that was lost twice, it waits: a third time, the chore would rightly be taken
    for what kills its slots, and be set aside.

    Parameters
    ----------
    session : Session
    slots, agents : int
        How many of each.
    every : int
        Chores between two kills.
    """

    def __init__(self, session: Session, slots: int, agents: int, every: int) -> None:
        self._executor = session.manager._executor
        self._graph = session.engine.graph
        self._random = random.Random(11169)
        self._every = every
        self._ended = 0
        self._step = max(1, slots // max(1, agents))
        self.slots_left, self.agents_left = slots, agents
        session.on_chore.append(self)

    def __call__(self, chore_id: str) -> None:
        """A chore has ended."""
        self._ended += 1
        if self._ended % self._every or not (self.slots_left or self.agents_left):
            return
        nodes = self._graph.nodes.values()
        if any(node.losses == MAX_LOSSES - 1 and node.state is ChoreState.RUNNING for node in nodes):
            return
        assert isinstance(self._executor, LocalExecutor)
        agent = self._executor.agent_pid
        slots = children_of(agent) if agent is not None else []
        if self.agents_left and self.slots_left <= self._step * (self.agents_left - 1):
            victim, self.agents_left = agent, self.agents_left - 1
        elif slots and self.slots_left:
            victim, self.slots_left = self._random.choice(slots), self.slots_left - 1
        else:
            return
        with suppress(ProcessLookupError):
            if victim is not None:
                os.kill(victim, signal.SIGKILL)


def check_losses(session: Session) -> int:
    """Nobody was charged for a kill; how many attempts were lost."""
    run = session.engine
    for name, node in run.graph.nodes.items():
        assert node.retries == (run.records[name].chore.policy.retries or 0)
    lost = [r for r in records(session.run_dir) if r["e"] == "lost"]
    kinds = {r["f"]["kind"] for r in lost}
    assert kinds <= {FailureKind.WORKER_LOST.value, FailureKind.NODE_LOST.value}
    assert not [r for r in records(session.run_dir) if r["e"] == "retry"]
    return len(lost)


def work(number: int) -> int:
    """Some milliseconds."""
    return sum(n * number for n in range(300_000))


def test_slots_and_agents_killed_at_random_cost_no_result_and_no_retry(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, workers=2, layout="packed")
    parts = pipe.chore(name="work", retries=1)(work).map(range(80))
    total = pipe.chore(name="total")(sum)(parts)
    future = pipe.submit(quiet=True)
    session = future.session
    killer = Killer(session, slots=8, agents=2, every=6)
    assert future.result(120)[total.chore_id] == sum(work(n) for n in range(80))
    assert killer.slots_left == killer.agents_left == 0
    assert check_losses(session) >= 2


def kill_the_agent(number: int, how: signal.Signals) -> None:
    """What no chore should do."""
    os.kill(os.getppid(), how)
    signal.pause()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_chores_that_kill_their_agent_are_set_aside_and_the_rest_goes_on(
    tmp_path: Path, how: signal.Signals
) -> None:
    pipe = Pipeline(tmp_path, workers=2, layout="packed")
    chore = pipe.chore(name="work", retries=1)(work)
    first = chore.map(range(6))
    pipe.chore(name="poisoned", retries=1)(kill_the_agent).map(range(2), how=how)
    parts = [*first, *chore.map(range(6, 12))]
    future = pipe.submit(quiet=True)
    run = future.session.engine
    assert future.session.wait(120) is RunState.FAILED
    states = {name: node.state for name, node in run.graph.nodes.items()}
    for reference in parts:
        assert states.pop(reference.chore_id) is ChoreState.COMPLETED
    assert list(states.values()) == [ChoreState.FAILED] * 2
    for name in states:
        failure = run.graph.nodes[name].failure
        assert failure is not None
        assert failure.kind is FailureKind.NODE_LOST
        # twice beside others, again after the doubts about all were dropped with the first, and then alone
        assert run.graph.nodes[name].number <= 2 * MAX_DOUBTS + MAX_LOSSES
    check_losses(future.session)


def digest(run_dir: Path) -> str:
    """Of the search's table."""
    return hashlib.sha256((run_dir / "vacua.parquet").read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_hundred_slots_and_ten_agents_killed_in_a_search_leave_its_result_exact(tmp_path: Path) -> None:
    chosen = preset("p11169-full")
    geometry = load_geometry(chosen.geometry)
    found = []
    for kills in (0, 100):
        session = start(
            geometry,
            chosen.region(geometry),
            tuning=Tuning(block=512),
            basedir=tmp_path / str(kills),
            workers=2,
        )
        killer = Killer(session, slots=kills, agents=kills // 10, every=2)
        assert session.wait(3000) is RunState.COMPLETED
        assert killer.slots_left == killer.agents_left == 0
        found.append(digest(session.run_dir))
        print(f"{kills} kills: {len(session.ended)} chores, {check_losses(session)} attempts lost")
    assert found[0] == found[1]
