"""A result that is missing or torn is made again, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from matforge import Pipeline
from matforge.engine.history import read_stories
from matforge.engine.journal import encode
from matforge.engine.locations import is_whole
from matforge.engine.salvage import TRIES
from matforge.engine.store import JOURNAL_NAME
from matforge.executors.protocol import Task
from matforge.executors.simulated import Outcome, SimulatedExecutor
from matforge.model import ChoreState, Failure, FailureKind, RunState
from matforge.opening import reopen
from matforge.session import Session
from matforge.strategy import Decision, Event, FutureProcessingStrategy, View
from tests.harness import call, killed_after, outcome, play, records, ref, resume

Spoil = Callable[[Path], object]


def removed(path: Path) -> None:
    """Somebody's ``rm``."""
    path.unlink()


def cut(path: Path) -> None:
    """Half of it."""
    os.truncate(path, path.stat().st_size // 2)


def changed(path: Path) -> None:
    """One bit of it, at its end."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))


SPOILS = pytest.mark.parametrize("spoil", [removed, cut, changed])
CALLS = [call("a"), call("b"), call("c", ref("a", 1)), call("d", ref("c", 3), ref("b", 2))]


def value(task: Task) -> Outcome:
    """Each result is of its chore, whenever it is made."""
    return Outcome(1.0, task.seed)


class Reading(SimulatedExecutor):
    """Reads the inputs of what it runs, as a slot does."""

    def __init__(self, **more: Any) -> None:
        super().__init__(self._read, **more)

    def _read(self, task: Task) -> Outcome:
        assert self._context is not None
        for number, where in enumerate(task.inputs):
            if not is_whole(self._context.run_dir, where):
                said = f"{task.attempt.chore_id}: input {number + 1} is damaged."
                return Outcome(0.1, failure=Failure(FailureKind.STORAGE, said, input=number))
        return value(task)


def result_of(session: Session, chore_id: str) -> Path:
    """The file with a chore's result."""
    return session.run_dir / session.results[chore_id].path


# ---------------------------------------------------------------- when a run is taken up again


@SPOILS
@pytest.mark.parametrize("layout", ["full", "packed"])
def test_a_resume_makes_what_was_lost_again_although_nobody_needs_it(
    folder: Path, layout: str, spoil: Spoil
) -> None:
    session, _ = play(folder, CALLS, value, layout=layout)
    session.wait(30)
    expected, lost = outcome(session), session.results["chore-d-0004"]
    path = session.run_dir / lost.path
    if layout == "packed" and spoil is cut:
        os.truncate(path, lost.offset + lost.length - 1)
    else:
        spoil(path)
    again, executor = resume(session.run_dir, value)
    assert again.wait(30) is RunState.COMPLETED
    assert outcome(again) == expected
    started = [attempt.chore_id for attempt in executor.history]
    assert started == ["chore-d-0004"] or (layout == "packed" and spoil is removed)
    assert "made again: " in (again.run_dir / "matforge_workflow.log").read_text()
    last, executor = resume(session.run_dir, value)
    assert last.wait(30) is RunState.COMPLETED
    assert executor.history == []


def test_a_file_whose_renaming_was_undone_is_found_and_nothing_runs(folder: Path) -> None:
    session, _ = play(folder, CALLS, value, layout="full")
    session.wait(30)
    path = result_of(session, "chore-d-0004")
    path.rename(path.with_name("result.pickle.e1a1"))
    again, executor = resume(session.run_dir, value)
    assert again.wait(30) is RunState.COMPLETED
    assert executor.history == []
    assert path.exists()


class Summing(FutureProcessingStrategy):
    """Reads every result; what it saw is in its state."""

    inline = True

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_event(self, view: View, event: Event) -> Iterable[Decision]:
        self.seen.append(event.result())
        return []


def test_a_strategy_that_had_not_answered_is_asked_once_there_is_a_result_again(folder: Path) -> None:
    session, _ = play(folder, CALLS, value, Summing())
    session.wait(30)
    expected = outcome(session)
    # killed when a chore had ended and the strategy had not answered: the record says that it waits
    waiting = next(r for r in records(session.run_dir) if r["e"] == "end")
    copy = killed_after(session.run_dir, waiting["seq"], folder / "copy")
    with (copy / JOURNAL_NAME).open("ab") as file:
        waiting.pop("st")
        file.write(encode({**waiting, "w": 1}))
    (copy / waiting["r"][0]).unlink()
    again, executor = resume(copy, value)
    assert again.wait(30) is RunState.COMPLETED
    assert outcome(again) == expected
    assert again.engine.decisions.strategy_errors == []
    assert len([a for a in executor.history if a.chore_id == waiting["id"]]) == 1
    assert [r["q"] for r in records(copy) if r["e"] == "redo"] == [1]


# ---------------------------------------------------------------- while a run goes on


def spoiling(spoil: Spoil, folder: Path) -> type[Reading]:
    """An executor that spoils the result of ``a`` just before its first consumer reads it."""

    class Spoiling(Reading):
        spoiled = False

        def _read(self, task: Task) -> Outcome:
            if task.inputs and not self.spoiled:
                self.spoiled = True
                spoil(next(folder.glob("matforge*")) / task.inputs[0].path)
            return super()._read(task)

    return Spoiling


@SPOILS
def test_an_input_that_is_lost_is_made_again_and_its_chore_waits_for_it(folder: Path, spoil: Spoil) -> None:
    executor = spoiling(spoil, folder)(workers=1)
    session, _ = play(folder, CALLS, executor=executor, strategy=Summing(), layout="full")
    assert session.wait(30) is RunState.COMPLETED
    started = [attempt.chore_id for attempt in executor.history]
    assert (started.count("chore-a-0001"), started.count("chore-c-0003")) == (2, 2)
    assert len(session.engine.decisions.strategy_errors) == 0
    assert sorted(session.ended) == sorted(session.engine.records)
    undisturbed, _ = play(folder / "other", CALLS, value)
    undisturbed.wait(30)
    assert outcome(session) == outcome(undisturbed)
    counts = {name: (t.added, t.completed, t.failed) for name, t in session.engine.tally.items()}
    assert counts == dict.fromkeys("abcd", (1, 1, 0))
    told = {
        name: [attempt["outcome"] for attempt in story.attempts]
        for name, story in read_stories(session.run_dir, session.ended).items()
    }
    assert told["chore-a-0001"] == ["completed", "completed"]
    assert told["chore-c-0003"] == ["storage", "completed"]


@SPOILS
def test_a_driver_killed_while_a_result_is_made_again_loses_and_doubles_nothing(
    folder: Path, spoil: Spoil
) -> None:
    executor = spoiling(spoil, folder)(workers=1)
    session, _ = play(folder, CALLS, executor=executor, strategy=Summing(), layout="full")
    session.wait(30)
    expected, written = outcome(session), records(session.run_dir)
    assert "redo" in {r["e"] for r in written}
    first = next(n for n, r in enumerate(written) if r["e"] == "submitted") + 1
    for count in range(first, len(written) + 1):
        copy = killed_after(session.run_dir, count, folder / f"killed-{count}")
        again = reopen(copy, made=Reading(workers=2), quiet=True)
        assert again.wait(30) is RunState.COMPLETED
        assert outcome(again) == expected
        assert again.engine.decisions.strategy_errors == []
        again.engine.graph.check()


def test_a_chore_that_fails_when_it_is_made_again_takes_what_waits_for_it_along(folder: Path) -> None:
    class Failing(Reading):
        def _read(self, task: Task) -> Outcome:
            if task.name == "a" and task.attempt.number == 2:
                return Outcome(1.0, failure=Failure(FailureKind.EXCEPTION, "not this time"))
            if task.name == "c" and task.attempt.number == 1:
                removed(next(folder.glob("matforge*")) / task.inputs[0].path)
            return super()._read(task)

    session, _ = play(folder, CALLS, executor=Failing(workers=1), layout="full")
    assert session.wait(30) is RunState.FAILED
    states = {name: node.state for name, node in session.engine.graph.nodes.items()}
    assert states.pop("chore-b-0002") is ChoreState.COMPLETED
    assert set(states.values()) == {ChoreState.FAILED}
    assert session.failures["chore-d-0004"].root == "chore-a-0001"
    assert "chore-a-0001" not in session.results
    found = records(session.run_dir)
    for count in range(found.index(next(r for r in found if r["e"] == "redo")), len(found) + 1):
        copy = killed_after(session.run_dir, count, folder / f"killed-{count}")
        again = reopen(copy, made=Failing(workers=1), quiet=True)
        again.wait(30)
        again.engine.graph.check()


def test_an_input_that_only_the_worker_cannot_read_stops_the_run_in_the_end(folder: Path) -> None:
    def behaviour(task: Task) -> Outcome:
        if task.name == "c":
            return Outcome(0.1, failure=Failure(FailureKind.STORAGE, "It is not there.", input=0))
        return value(task)

    session, executor = play(folder, CALLS, behaviour)
    assert session.wait(30) is RunState.INTERRUPTED
    assert session.manager.problem == "It is not there"
    started = [attempt.chore_id for attempt in executor.history]
    assert (started.count("chore-c-0003"), started.count("chore-a-0001")) == (TRIES, 1)


# ---------------------------------------------------------------- with real slots


def test_a_slot_that_finds_an_input_damaged_gets_it_again(tmp_path: Path) -> None:
    def first() -> list[int]:
        return list(range(10))

    def spoiler(path: str, value: object) -> int:
        from pathlib import Path

        (result,) = Path(path).glob("matforge*/out/chore-first-0001/result.pickle")
        result.write_bytes(b"nonsense")
        return 1

    def total(numbers: list[int], after: int) -> int:
        return sum(numbers) + after

    pipe = Pipeline(tmp_path, workers=1, layout="full")
    numbers = pipe.chore(name="first")(first)()
    spoilt = pipe.chore(name="spoiler")(spoiler)(str(tmp_path), numbers)
    result = pipe.chore(name="total")(total)(numbers, spoilt)
    future = pipe.submit(quiet=True)
    assert future.result(60)[result.chore_id] == 46
    assert [r["id"] for r in records(future.run_dir) if r["e"] == "redo"] == ["chore-first-0001"]
