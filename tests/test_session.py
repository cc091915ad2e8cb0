"""A run that is killed anywhere goes on as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matforge.chore import Call, ChoreSpec
from matforge.engine.store import JOURNAL_NAME, LOCK_NAME
from matforge.executors.protocol import Task
from matforge.executors.simulated import Outcome, SimulatedExecutor
from matforge.model import (
    Attempt,
    ChoreState,
    Failure,
    FailureKind,
    MatForgeError,
    OutputReference,
    RunState,
    UsageError,
)
from matforge.session import InterruptedRunError, RunFailedError, Settings, begin, reopen
from matforge.strategy import (
    Cancel,
    Decision,
    Event,
    FutureProcessingStrategy,
    Reprioritise,
    Spawn,
    Stop,
    View,
    thaw_state,
)
from tests.harness import (
    call,
    completed_in,
    killed_after,
    outcome,
    play,
    records,
    ref,
    registry,
    resume,
    scratch,
)

BOOM = Failure(FailureKind.EXCEPTION, "boom", traceback="Traceback ...", stderr="oh no\n")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory."""
    path = scratch()
    yield path
    shutil.rmtree(path)


# ---------------------------------------------------------------- a run in which everything happens


class Busy(FutureProcessingStrategy):
    """Spawns three levels deep, cancels what runs and what waits, reprioritises; counts every event once."""

    inline = True

    def __init__(self) -> None:
        self.seen = 0
        self.failures = 0

    def on_start(self, view: View) -> Iterable[Decision]:
        return [Spawn(ChoreSpec((), None, "grow")), Spawn(ChoreSpec((), None, "endless", key="endless"))]

    def on_event(self, view: View, event: Event) -> Iterable[Decision]:
        self.seen += 1
        self.failures += event.outcome is ChoreState.FAILED
        if event.chore.name == "trigger" and event.ok:
            yield Cancel(ref("endless", 1))
            yield Reprioritise(ref("slow", 4), -5)
        if event.ok and event.report.get("children"):
            level = {"grow": "twig", "twig": "leaf"}[event.chore.name]
            for number in range(event.report["children"]):
                yield Spawn(ChoreSpec((event.ref, number), None, level))
            yield ChoreSpec((ref("endless", 1), event.ref), None, "never")


class BusyThreaded(Busy):
    """The same in a thread of its own."""

    inline = False


BUSY_NAMES = ("endless", "never", "grow", "twig", "leaf", "trigger", "slow", "bad", "after", "merge")


def busy_calls() -> list[Call]:
    """Ten chores to begin with."""
    return [
        call("endless"),
        call("never", ref("endless", 1)),
        call("trigger"),
        call("slow", 1),
        call("slow", 2),
        call("bad"),
        call("after", ref("bad", 6), ref("slow", 4)),
        call("after", ref("after", 7)),
        call("grow", 2),
        call("merge", [ref("slow", 4), {"x": ref("slow", 5)}], ref("grow", 9)),
    ]


def busy(task: Task) -> Outcome:
    """What becomes of a chore: decided by what it is."""
    lost = task.seed % 3 == 0 and task.attempt.number == 1 and task.attempt.epoch == 1
    if lost:
        return Outcome(0.5, lost=True)
    if task.name == "endless":
        return Outcome(1e12)
    if task.name == "bad" or (task.name == "leaf" and task.seed % 4 == 0):
        return Outcome(1.0, failure=BOOM)
    children = {"grow": 3, "twig": task.seed % 3}.get(task.name, 0)
    return Outcome(0.1 + task.seed % 17 / 10, task.seed % 1000, {"children": children} if children else None)


def undisturbed(folder: Path, strategy: Busy, **options: Any) -> tuple[Path, dict[str, Any]]:
    """The busy run from start to end: its directory and what became of every chore."""
    session, _ = play(folder, busy_calls(), busy, strategy, names=BUSY_NAMES, **options)
    assert session.wait(60) is RunState.FAILED
    assert len(outcome(session)) > 20
    states = {state for state, *_ in outcome(session).values()}
    assert states == {"completed", "failed", "cancelled"}
    return session.run_dir, outcome(session)


@pytest.mark.parametrize("layout", ["full", "packed"])
@pytest.mark.parametrize("strategy", [Busy, BusyThreaded])
def test_a_run_killed_after_any_journal_record_ends_the_same(
    folder: Path, strategy: type[Busy], layout: str
) -> None:
    run_dir, expected = undisturbed(folder, strategy(), layout=layout)
    written = records(run_dir)
    first = next(n for n, r in enumerate(written) if r["e"] == "submitted") + 1
    for count in range(first, len(written) + 1):
        copy = killed_after(run_dir, count, folder / f"killed-{count}")
        session, executor = resume(copy, busy)
        assert session.wait(60) is RunState.FAILED
        assert outcome(session) == expected
        started = {attempt.chore_id for attempt in executor.history}
        assert not started & completed_in(written[:count])
        state = Busy()
        thaw_state(state, session.engine.strategy_state)
        assert state.seen == len(expected)
        assert state.failures == sum(kind[0] == "failed" for kind in expected.values())
        shutil.rmtree(copy)


def test_a_run_killed_again_and_again_ends_the_same(folder: Path) -> None:
    run_dir, expected = undisturbed(folder, BusyThreaded())
    at = 14
    for life in range(12):
        copy = killed_after(run_dir, at, folder / f"life-{life}")
        before = records(copy)
        session, executor = resume(copy, busy, workers=1 + life % 4)
        session.wait(60)
        assert outcome(session) == expected
        assert not {a.chore_id for a in executor.history} & completed_in(before)
        assert {a.epoch for a in executor.history} <= {2 + life}
        run_dir, at = copy, min(at + 5, len(records(copy)))


def test_a_run_killed_before_everything_was_submitted_has_to_be_started_again(folder: Path) -> None:
    run_dir, _ = undisturbed(folder, Busy())
    first = next(n for n, r in enumerate(records(run_dir)) if r["e"] == "submitted")
    for count in range(first + 1):
        copy = killed_after(run_dir, count, folder / f"killed-{count}")
        with pytest.raises(MatForgeError, match=r"start it again instead|run the script again"):
            reopen(copy, made=SimulatedExecutor(), quiet=True)
        assert not (copy / LOCK_NAME).exists()


# ---------------------------------------------------------------- any run, killed anywhere


class Growing(FutureProcessingStrategy):
    """Spawns what the reports ask for, on whatever the chore itself stood on."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_event(self, view: View, event: Event) -> Iterable[Decision]:
        self.seen.append(event.chore.key[:8])
        depth = int(event.chore.name[1:])
        for number in range(event.report.get("children", 0) if depth < 3 else 0):
            inputs = [OutputReference(name) for name in event.chore.inputs]
            yield Spawn(ChoreSpec((event.ref, number, inputs), None, f"g{depth + 1}", nice=number - 1))


class GrowingInline(Growing):
    """The same without a thread."""

    inline = True


def by_key(salt: int) -> Any:
    """Durations are drawn with ``salt``; what becomes of a chore is in its key."""

    def behaviour(task: Task) -> Outcome:
        duration = 0.05 + (task.seed * 31 + salt * 17 + task.attempt.number) % 97 / 50
        if task.seed % 11 == 0 and task.attempt.number < 3 and task.attempt.epoch == 1:
            return Outcome(duration, lost=True)
        if task.seed % 9 == 0:
            return Outcome(duration, failure=BOOM)
        return Outcome(duration, task.seed, {"children": task.seed % 5 % 4})

    return behaviour


DAG = st.lists(st.lists(st.integers(1, 6), max_size=3), min_size=1, max_size=7)


@settings(max_examples=25, deadline=None)
@given(
    shape=DAG,
    salts=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    cuts=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    threaded=st.booleans(),
    layout=st.sampled_from(["full", "packed"]),
    workers=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_any_run_killed_anywhere_ends_the_same_on_any_number_of_workers(
    shape: list[list[int]],
    salts: tuple[int, int],
    cuts: list[float],
    threaded: bool,
    layout: str,
    workers: tuple[int, int],
) -> None:
    folder = scratch()
    names = [f"g{depth}" for depth in range(4)]
    calls = [
        call("g0", n, [ref("g0", n + 1 - back) for back in inputs if back <= n])
        for n, inputs in enumerate(shape)
    ]
    strategy = Growing() if threaded else GrowingInline()
    try:
        session, _ = play(
            folder, calls, by_key(salts[0]), strategy, names=names, workers=workers[0], layout=layout
        )
        session.wait(60)
        expected = outcome(session)
        run_dir = session.run_dir
        for life, cut in enumerate(cuts):
            written = records(run_dir)
            first = next(n for n, r in enumerate(written) if r["e"] == "submitted") + 1
            count = first + round(cut * (len(written) - first))
            run_dir = killed_after(run_dir, count, folder / f"life-{life}")
            session, executor = resume(run_dir, by_key(salts[1]), workers=workers[1])
            session.wait(60)
            assert outcome(session) == expected
            assert not {a.chore_id for a in executor.history} & completed_in(written[:count])
            state = Growing()
            thaw_state(state, session.engine.strategy_state)
            assert sorted(state.seen) == sorted(key[:8] for key in expected)
    finally:
        shutil.rmtree(folder)
