"""An answer of many decisions is carried out in slices, and survives a crash between any two of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from matforge import Pipeline
from matforge.chore import Call, ChoreSpec
from matforge.engine.plan import SLICE
from matforge.executors.protocol import Task
from matforge.executors.simulated import Outcome
from matforge.model import ChoreState, RunState
from matforge.strategy import (
    Cancel,
    Decision,
    Event,
    FutureProcessingStrategy,
    Reprioritise,
    Spawn,
    Stop,
    View,
)
from tests.harness import call, completed_in, killed_after, outcome, play, records, ref, resume, scratch

MANY = 2 * SLICE + 200


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory."""
    path = scratch()
    yield path
    shutil.rmtree(path)


class Lavish(FutureProcessingStrategy):
    """Answers the end of ``start`` with very many decisions of every kind."""

    inline = True

    def __init__(self) -> None:
        self.answered = 0

    def on_event(self, view: View, event: Event) -> Iterable[Decision]:
        self.answered += 1
        if event.chore.name == "start" and event.ok:
            yield Reprioritise(ref("other", 3), -7)
            for number in range(MANY):
                yield Spawn(ChoreSpec((number,), None, "child", nice=number % 3))
                if number == SLICE + 50:
                    yield Cancel(ref("other", 4))
                    yield Spawn(ChoreSpec((event.ref,), None, "child", key="named"))
                    yield Spawn(ChoreSpec((0,), None, "child", key="named"))
            yield Spawn(ChoreSpec(([ref("other", 4)],), None, "never"))


class LavishAtTheStart(FutureProcessingStrategy):
    """Spawns very many before anything has ended."""

    inline = True

    def on_start(self, view: View) -> Iterable[Decision]:
        yield from (Spawn(ChoreSpec((number,), None, "child")) for number in range(MANY))


class Moody(LavishAtTheStart):
    """Spawns very many, and stops."""

    def on_start(self, view: View) -> Iterable[Decision]:
        yield from super().on_start(view)
        yield Stop("enough")


NAMES = ("child", "never")


def calls() -> list[Call]:
    """One that is answered, and forty others."""
    return [call("start"), *(call("other", n) for n in range(40))]


def short(task: Task) -> Outcome:
    forever = task.attempt.chore_id == "chore-other-0004"  # until it is cancelled
    return Outcome(1e12 if forever else 0.01 + task.seed % 7 / 100, task.seed % 100)


def test_a_large_answer_does_what_a_small_one_would(folder: Path) -> None:
    session, _ = play(folder, calls(), short, Lavish(), names=NAMES, layout="packed")
    assert session.wait(60) is RunState.COMPLETED
    states = [node.state for node in session.engine.graph.nodes.values()]
    assert states.count(ChoreState.COMPLETED) == 1 + 40 - 1 + MANY + 1
    assert states.count(ChoreState.CANCELLED) == 2
    ids = list(session.engine.records)
    assert [int(name.rpartition("-")[2]) for name in ids] == list(range(1, len(ids) + 1))


def test_a_large_answer_is_one_record_and_its_slices_are_small_ones(folder: Path) -> None:
    session, _ = play(folder, calls(), short, Lavish(), names=NAMES, layout="packed")
    session.wait(60)
    found = records(session.run_dir)
    plans = [r for r in found if "plan" in r]
    assert len(plans) == 1
    assert plans[0]["id"] == "chore-start-0001"
    assert sum(r["n"] for r in found if r["e"] == "take") == len(plans[0]["plan"]) == MANY + 4
    assert all(r["n"] <= SLICE for r in found if r["e"] == "take")


class Children(FutureProcessingStrategy):
    """Answers the first chore of all with very many."""

    def on_event(self, view: View, event: Event) -> Iterable[Decision]:
        if event.chore.name == "start":
            yield from (Spawn(ChoreSpec((n,), None, "child", nice=1)) for n in range(20_000))


def test_other_chores_go_on_while_a_large_answer_is_carried_out(folder: Path) -> None:
    pipe = Pipeline(folder, workers=2, layout="packed")
    pipe.chore("start", nice=-1)(lambda: None)()
    pipe.chore("child")(lambda n: None)
    pipe.chore("other")(lambda n: None).map(range(3000))
    future = pipe.submit(quiet=True, processing_strategy=Children())
    assert all(one.result() is None for one in pipe.as_completed())
    future.cancel()
    future.wait(60)
    found = records(future.run_dir)
    begun = next(n for n, r in enumerate(found) if r["e"] == "end" and r["id"] == "chore-start-0001")
    over = max((n for n, r in enumerate(found) if r["e"] == "take"), default=len(found))
    between = [r["id"] for r in found[begun + 1 : over] if r["e"] == "end" and r["s"] == "completed"]
    assert sum(name.startswith("chore-other") for name in between) > 100


@pytest.mark.parametrize("strategy", [Lavish, LavishAtTheStart])
def test_a_run_killed_around_any_slice_of_a_large_answer_ends_the_same(
    folder: Path, strategy: type[FutureProcessingStrategy]
) -> None:
    session, _ = play(
        folder,
        calls() if strategy is Lavish else [],
        short,
        strategy(),
        names=NAMES,
        workers=2,
        layout="packed",
    )
    session.wait(60)
    expected = outcome(session)
    found = records(session.run_dir)
    first = next(n for n, r in enumerate(found) if r["e"] == "submitted") + 1
    around = {n + k for n, r in enumerate(found) if "plan" in r or r["e"] == "take" for k in range(-1, 3)}
    assert len(around) >= 6
    for count in sorted(n for n in around if n >= first):
        copy = killed_after(session.run_dir, count, folder / "copy")
        again, executor = resume(copy, short, workers=3)
        assert again.wait(60) is RunState.COMPLETED
        assert {k: v[:2] for k, v in outcome(again).items()} == {k: v[:2] for k, v in expected.items()}
        assert not {a.chore_id for a in executor.history} & completed_in(found[:count])
        shutil.rmtree(copy)


def test_stop_in_a_large_answer_cancels_what_it_has_just_spawned(folder: Path) -> None:
    session, _ = play(folder, [], short, Moody(), names=NAMES, layout="packed")
    session.wait(60)
    counts = session.engine.graph.counts
    assert counts[ChoreState.CANCELLED] + counts[ChoreState.COMPLETED] == MANY
    assert counts[ChoreState.CANCELLED] > 0
