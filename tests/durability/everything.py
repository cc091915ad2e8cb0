"""A run in which everything happens, on a virtual clock: what becomes of a chore is in its key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from matforge.chore import Call, ChoreSpec
from matforge.executors.protocol import Task
from matforge.executors.simulated import Outcome
from matforge.model import ChoreState, Failure, FailureKind, RunState
from matforge.policy import Policy
from matforge.session import Session
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
from tests.harness import call, outcome, play, ref, resume

NAMES = (
    "endless",
    "never",
    "grow",
    "twig",
    "leaf",
    "trigger",
    "slow",
    "flaky",
    "bad",
    "after",
    "merge",
    "forever",
)
UNENDING = 3
"""Chores that only the strategy's stop ends: one that runs forever, and two that wait for it."""


class Everything(FutureProcessingStrategy):
    """Spawns three levels deep, cancels what runs and what waits, reprioritises, reads results; stops the
    run once ``last`` chores have ended, each counted once."""

    inline = True

    def __init__(self, last: int = -1) -> None:
        self.last = last
        self.seen = 0
        self.failures = 0
        self.sum = 0

    def on_start(self, view: View) -> Iterable[Decision]:
        return [Spawn(ChoreSpec((), None, "grow")), Spawn(ChoreSpec((), None, "slow", key="extra"))]

    def on_event(self, view: View, event: Event) -> Iterable[Decision]:
        self.seen += 1
        self.failures += event.outcome is ChoreState.FAILED
        if event.ok:
            self.sum += event.result()  # a wrong result would be seen in the state
        if event.chore.name == "trigger" and event.ok:
            yield Cancel(ref("endless", 1))
            yield Reprioritise(ref("after", 16), -5)  # comes too late where a thread takes its time
            yield Reprioritise(ref("never", 13), -5)
        if event.ok and event.report.get("children"):
            level = {"grow": "twig", "twig": "leaf"}[event.chore.name]
            for number in range(event.report["children"]):
                yield Spawn(ChoreSpec((event.ref, number), None, level))
            yield ChoreSpec((ref("endless", 1), event.ref), None, "never")
        if self.seen == self.last:
            yield Cancel(ref("forever", 12))
            yield Stop("all is done")


class EverythingThreaded(Everything):
    """The same in a thread of its own."""

    inline = False


def calls() -> list[Call]:
    """What the script submits."""
    patient = Policy(retries=2)
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
        replace(call("flaky", 1), policy=patient),
        call("forever"),
        call("never", ref("forever", 12)),
        call("never", ref("forever", 12), ref("flaky", 11)),
        replace(call("flaky", 2), policy=patient),
        call("after", ref("flaky", 15)),
    ]


def behave(task: Task) -> Outcome:
    """Flaky chores fail twice, the first time with a pause; some lose their first slot."""
    if task.name in ("endless", "forever"):
        return Outcome(1e12)
    if task.seed % 3 == 0 and task.attempt.number == 1 and task.attempt.epoch == 1:
        return Outcome(0.5, lost=True)
    if task.name == "flaky" and task.attempt.number <= 2:
        kind = (FailureKind.START_FAILED, FailureKind.EXCEPTION)[task.attempt.number - 1]
        return Outcome(0.3, failure=Failure(kind, "not yet"))
    if task.name == "bad" or (task.name == "leaf" and task.seed % 4 == 0):
        return Outcome(1.0, failure=Failure(FailureKind.EXCEPTION, "boom", stderr="oh no\n"))
    children = {"grow": 3, "twig": task.seed % 3}.get(task.name, 0)
    return Outcome(0.1 + task.seed % 17 / 10, task.seed % 1000, {"children": children} if children else None)


LAST = 31
"""Chores that end before the strategy stops the run."""


def undisturbed(
    folder: Path, strategy: type[Everything] = Everything, **options: Any
) -> tuple[Path, dict[str, Any]]:
    """The run from start to end: its directory, and what became of every chore."""
    session, _ = play(folder, calls(), behave, strategy(LAST), names=NAMES, **options)
    assert session.wait(60) is RunState.FAILED  # some chores fail
    found = outcome(session)
    assert {state for state, *_ in found.values()} == {"completed", "failed", "cancelled"}
    assert len(found) == LAST + UNENDING
    return session.run_dir, found


def check_resumed(session: Session, expected: dict[str, Any]) -> None:
    """A resumed run has ended as the undisturbed one has, and its strategy has heard of each chore once."""
    assert session.wait(60) is RunState.FAILED
    assert outcome(session) == expected
    state = Everything()
    thaw_state(state, session.engine.decisions.strategy_state)
    assert state.seen == len(expected)
    assert state.failures == sum(entry[0] == "failed" for entry in expected.values())
    assert state.sum == sum(entry[1] for entry in expected.values() if entry[0] == "completed")
    session.engine.graph.check()


def go_on(run_dir: Path, expected: dict[str, Any], workers: int = 3) -> list[str]:
    """Resume a copy of the run and check its end; what was started."""
    session, executor = resume(run_dir, behave, workers=workers)
    check_resumed(session, expected)
    return [attempt.chore_id for attempt in executor.history]
