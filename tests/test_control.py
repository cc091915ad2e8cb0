"""A strategy with full control takes events and decides when it likes."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matforge.chore import ChoreSpec
from matforge.control import RunOverError
from matforge.executors.protocol import Task
from matforge.executors.simulated import Outcome
from matforge.model import ChoreState, RunState
from matforge.strategy import FutureProcessingStrategy, Stop, made
from tests.harness import call, completed_in, killed_after, outcome, play, records, resume, scratch


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory."""
    path = scratch()
    yield path
    shutil.rmtree(path)


def quick(task: Task) -> Outcome:
    return Outcome(0.1 + task.seed % 5 / 10, task.seed % 10)


class Tree(FutureProcessingStrategy):
    """Every chore of a generation spawns two of the next, up to the fourth."""

    def __init__(self, manager: Any) -> None:
        super().__init__(manager)
        self.seen: list[str] = []

    def process_futures(self, buffer_time: float) -> None:
        for event in self.manager.wait(buffer_time or None):
            self.seen.append(event.chore.key[:6])
            level = int(event.chore.name[1:])
            if event.ok and level < 4:
                specs = [
                    ChoreSpec((event.ref, k), None, f"g{level + 1}", key=f"{event.chore.key}/{k}")
                    for k in range(2)
                ]
                self.manager.apply(specs)


NAMES = [f"g{k}" for k in range(5)]


def test_it_grows_a_tree(folder: Path) -> None:
    session, _ = play(folder, [call("g1"), call("g1", 2)], quick, made(Tree), names=NAMES)
    assert session.wait(60) is RunState.COMPLETED
    assert len(session.results) == 2 * (1 + 2 + 4 + 8)


def test_it_is_resumed_after_any_record_and_sees_every_chore_once(folder: Path) -> None:
    session, _ = play(folder, [call("g1"), call("g1", 2)], quick, made(Tree), names=NAMES)
    session.wait(60)
    expected, found = outcome(session), records(session.run_dir)
    first = next(n for n, r in enumerate(found) if r["e"] == "submitted") + 1
    for count in range(first, len(found), 3):
        copy = killed_after(session.run_dir, count, folder / "copy")
        again, executor = resume(copy, quick)
        assert again.wait(60) is RunState.COMPLETED
        assert outcome(again) == expected
        assert not {a.chore_id for a in executor.history} & completed_in(found[:count])
        shutil.rmtree(copy)


class Impatient(FutureProcessingStrategy):
    """Decides without having heard anything."""

    def __init__(self) -> None:
        self.rounds = 0

    def process_futures(self, buffer_time: float) -> None:
        self.rounds += 1
        if self.rounds <= 3:
            self.manager.apply(ChoreSpec((self.rounds,), None, "extra"))
        self.manager.wait(0.01)


def test_decisions_without_an_event_count_too_and_survive(folder: Path) -> None:
    session, _ = play(folder, [call("g1")], quick, Impatient(), names=["extra"])
    assert session.wait(60) is RunState.COMPLETED
    names = [record.chore.name for record in session.engine.records.values()]
    assert names.count("extra") >= 1
    decided = [r for r in records(session.run_dir) if r["e"] == "decide" and r.get("d")]
    assert sum(len(r["d"]) for r in decided) <= names.count("extra")
    again, executor = resume(session.run_dir, quick)
    again.wait(60)
    assert executor.history == []


class Broken(FutureProcessingStrategy):
    """Throws at the first chore, then spawns one."""

    def __init__(self) -> None:
        self.thrown = False

    def process_futures(self, buffer_time: float) -> None:
        events = self.manager.wait(None)
        if events and not self.thrown:
            self.thrown = True
            raise ValueError("not today")
        if any(event.chore.name == "g2" for event in events):
            self.manager.apply(Stop("done"))


def test_one_that_throws_is_told_about_and_called_again(folder: Path) -> None:
    calls = [call("g1"), call("g2", 2), call("g2", 3)]
    session, _ = play(folder, calls, quick, Broken(), workers=1)
    assert session.wait(60) is RunState.FAILED
    assert session.engine.decisions.strategy_errors == ["ValueError: not today (in process_futures)"]
    assert session.engine.graph.counts[ChoreState.COMPLETED] >= 2


class Wrong(FutureProcessingStrategy):
    """Names a chore that is not registered."""

    def process_futures(self, buffer_time: float) -> None:
        if self.manager.wait(None):
            self.manager.apply(ChoreSpec((), None, "g11"))


def test_a_wrong_decision_is_told_with_the_nearest_name(folder: Path) -> None:
    session, _ = play(folder, [call("g1")], quick, Wrong())
    assert session.wait(60) is RunState.FAILED
    assert (
        "'g11', which is not a registered chore (did you mean 'g1'?)"
        in session.engine.decisions.strategy_errors[0]
    )


class Idle(FutureProcessingStrategy):
    """Never waits for anything."""

    calls = 0

    def process_futures(self, buffer_time: float) -> None:
        type(self).calls += 1


def test_one_that_never_waits_does_not_turn_for_nothing(folder: Path) -> None:
    session, _ = play(folder, [call("g1", n) for n in range(5)], quick, Idle())
    assert session.wait(60) is RunState.COMPLETED
    assert Idle.calls <= 8


class Sleeper(FutureProcessingStrategy):
    """Waits inside one call for as long as the run lasts."""

    ended = threading.Event()

    def process_futures(self, buffer_time: float) -> None:
        try:
            while True:
                self.manager.wait(None)
        except RunOverError:
            type(self).ended.set()
            raise


def test_waiting_ends_with_the_run(folder: Path) -> None:
    session, _ = play(folder, [call("g1")], quick, Sleeper())
    assert session.wait(60) is RunState.COMPLETED
    assert Sleeper.ended.wait(10)
