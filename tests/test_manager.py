"""The driver's loop: strategies that misbehave, executors that fail, disks that refuse."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from matforge.chore import Call, ChoreSpec
from matforge.engine.status import read_status
from matforge.executors.protocol import (
    CapacityChanged,
    ExecutorFailed,
    Finished,
    Report,
    RunContext,
    Task,
)
from matforge.executors.protocol import Lost as LostReport
from matforge.executors.simulated import Outcome, SimulatedExecutor
from matforge.model import (
    Attempt,
    ChoreState,
    Failure,
    FailureKind,
    Location,
    MatForgeError,
    RunState,
    Usage,
)
from matforge.session import InterruptedRunError, RunFailedError
from matforge.strategy import (
    Cancel,
    Decision,
    Event,
    FutureProcessingStrategy,
    NonAdaptiveStrategy,
    Reprioritise,
    Spawn,
    Stop,
    View,
)
from tests.harness import call, outcome, play, records, ref, resume, scratch

BOOM = Failure(FailureKind.EXCEPTION, "boom", traceback="Traceback ...", stderr="oh no\n")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory."""
    path = scratch()
    yield path
    shutil.rmtree(path)


# ---------------------------------------------------------------- strategies


class OneAnswer(FutureProcessingStrategy):
    """Answers the first event with what it was given."""

    inline = True

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.seen = 0

    def on_event(self, view: View, event: Event) -> Any:
        self.seen += 1
        return self.answer if self.seen == 1 else None


class Thrower(FutureProcessingStrategy):
    """Fails on one chore, and does its work on the others."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_event(self, view: View, event: Event) -> Iterable[Decision]:
        if event.chore.id.endswith("0001"):
            yield Spawn(ChoreSpec((), None, "never"))
            raise self.error("no idea")
        if event.chore.name == "work":
            yield Spawn(ChoreSpec((), None, "child"))


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, MemoryError])
def test_a_strategy_that_throws_decides_nothing_and_is_told_about(
    folder: Path, error: type[BaseException]
) -> None:
    calls = [call("work", n) for n in range(3)]
    session, _ = play(folder, calls, strategy=Thrower(error), names=["child", "never"])
    assert session.wait(30) is RunState.FAILED
    names = [record.chore.name for record in session.engine.records.values()]
    assert sorted(names) == ["child"] * 2 + ["work"] * 3
    told = f"{error.__name__}: no idea (on chore-work-0001)"
    assert read_status(session.run_dir)["strategy_errors"] == [told]
    with pytest.raises(RunFailedError, match="The strategy failed: ") as failed:
        session.outcome()
    assert set(failed.value.results) == set(session.engine.records)
    assert failed.value.failures == {}


def test_a_strategys_error_is_not_forgotten_by_a_resume(folder: Path) -> None:
    session, _ = play(folder, [call("work", 1)], strategy=Thrower(ValueError), names=["child", "never"])
    session.wait(30)
    again, _ = resume(session.run_dir)
    assert again.wait(30) is RunState.FAILED
    assert read_status(again.run_dir)["strategy_errors"]


NONSENSE: dict[str, tuple[Any, str]] = {
    "a number": (7, "A strategy answered with int"),
    "a string": (["x"], "A strategy answered with str"),
    "an unknown chore": (ChoreSpec((), None, "wrok"), "wants to spawn 'wrok'.*did you mean 'work'"),
    "an unknown input": (ChoreSpec((ref("x", 99),), None, "work"), "'chore-x-0099', which is not a chore"),
    "cancels nobody": (Cancel("chore-x-0099"), "'chore-x-0099', which is not a chore of this run"),
    "an odd priority": (Reprioritise(ref("work", 1), 0.5), "a whole number, not 0.5"),  # type: ignore[arg-type]
    "a lock": (ChoreSpec((threading.Lock(),), None, "work"), "argument 1, of type lock, cannot be pickled"),
}


class Nonsense(OneAnswer):
    """Answers the first event with an entry of the list above."""

    def on_event(self, view: View, event: Event) -> Any:
        name = super().on_event(view, event)
        return NONSENSE[name][0] if name else None


@pytest.mark.parametrize("name", NONSENSE)
def test_an_answer_that_makes_no_sense_is_told_about_and_harms_nothing(folder: Path, name: str) -> None:
    session, _ = play(folder, [call("work"), call("work")], strategy=Nonsense(name))
    assert session.wait(30) is RunState.FAILED
    (told,) = session.engine.decisions.strategy_errors
    assert re.search(NONSENSE[name][1], told)
    assert [state for state, *_ in outcome(session).values()] == ["completed"] * 2


RELEASE = threading.Event()
ALL_STARTED = threading.Event()


@pytest.fixture(autouse=True)
def _unblocked() -> Iterator[None]:
    RELEASE.clear()
    ALL_STARTED.clear()
    yield
    RELEASE.set()


class Sleeper(FutureProcessingStrategy):
    """Thinks about its first event until it is released; spawns one chore an event."""

    def __init__(self) -> None:
        self.seen = 0

    def on_event(self, view: View, event: Event) -> Iterable[Decision]:
        self.seen += 1
        RELEASE.wait(60)
        return [Spawn(ChoreSpec((), None, "child"))] if event.chore.name == "work" else []


def tells_when_started(count: int) -> Callable[[Task], Outcome]:
    """A behaviour that says when ``count`` attempts have begun."""
    begun: list[Task] = []

    def behaviour(task: Task) -> Outcome:
        begun.append(task)
        if len(begun) == count:
            ALL_STARTED.set()
        return Outcome(1.0, task.name)

    return behaviour


def test_a_strategy_that_blocks_does_not_keep_chores_from_being_started(folder: Path) -> None:
    calls = [call("work", n) for n in range(20)]
    session, executor = play(folder, calls, tells_when_started(20), Sleeper(), names=["child"], workers=2)
    assert ALL_STARTED.wait(30)
    assert len(session.engine.records) == 20
    RELEASE.set()
    assert session.wait(30) is RunState.COMPLETED
    assert len(executor.history) == len(session.results) == 40


def test_what_has_ended_while_the_strategy_blocked_is_there_when_the_driver_is_gone(folder: Path) -> None:
    calls = [call("work", n) for n in range(20)]
    session, _ = play(folder, calls, tells_when_started(20), Sleeper(), names=["child"], workers=2)
    assert ALL_STARTED.wait(30)
    session.interrupt("no patience")
    assert session.wait(30) is RunState.INTERRUPTED
    with pytest.raises(InterruptedRunError, match=r"interrupted \(no patience\); `matforge resume"):
        session.outcome()
    done = {r["id"] for r in records(session.run_dir) if r["e"] == "end"}
    assert len(done) >= 17  # up to two ran, and one had not been heard of
    assert session.results.keys() == done
    RELEASE.set()
    again, executor = resume(session.run_dir)
    assert again.wait(30) is RunState.COMPLETED
    assert len(again.results) == 40
    assert not {a.chore_id for a in executor.history} & done


class Flood(FutureProcessingStrategy):
    """Answers the first event with very much."""

    def __init__(self) -> None:
        self.done = False

    def on_event(self, view: View, event: Event) -> Iterable[Decision]:
        first, self.done = not self.done, True
        return [Spawn(ChoreSpec((n,), None, "child")) for n in range(10_000)] if first else []


def test_a_strategy_may_answer_with_ten_thousand_chores(folder: Path) -> None:
    calls = [call("work", n) for n in range(5)]
    session, executor = play(folder, calls, strategy=Flood(), names=["child"], workers=64, layout="packed")
    assert session.wait(60) is RunState.COMPLETED
    assert len(session.results) == 10_005
    assert len(executor.history) == 10_005


class Unsaveable(FutureProcessingStrategy):
    """Comes to hold something that cannot be pickled."""

    def on_event(self, view: View, event: Event) -> None:
        self.lock = threading.Lock()


def test_a_state_that_cannot_be_saved_is_told_about(folder: Path) -> None:
    session, _ = play(folder, [call("work")], strategy=Unsaveable())
    assert session.wait(30) is RunState.FAILED
    assert "its state cannot be pickled" in session.engine.decisions.strategy_errors[0]


class Reader(FutureProcessingStrategy):
    """Reads results, and keeps what it has read."""

    def __init__(self) -> None:
        self.read: list[Any] = []

    def on_event(self, view: View, event: Event) -> None:
        if event.ok:
            self.read.append(event.result())
        else:
            with pytest.raises(MatForgeError, match="has no result: it failed"):
                event.result()


@pytest.mark.parametrize("layout", ["full", "packed"])
def test_a_strategy_can_read_results_small_and_large(folder: Path, layout: str) -> None:
    values = [1, "x" * 200_000, None]
    strategy = Reader()
    session, _ = play(
        folder,
        [call("work", n) for n in range(4)],
        lambda task: Outcome(1.0, failure=BOOM) if task.attempt.chore_id.endswith("4")
        else Outcome(1.0, values[int(task.attempt.chore_id[-1]) - 1]),
        strategy,
        workers=1,
        layout=layout,
    )  # fmt: skip
    session.wait(30)
    assert strategy.read == values
    assert session.engine.decisions.strategy_errors == []


def test_stop_starts_nothing_more(folder: Path) -> None:
    session, executor = play(
        folder, [call("work", n) for n in range(30)], strategy=OneAnswer([Stop("enough")]), workers=2
    )
    assert session.wait(30) is RunState.COMPLETED
    counts = session.engine.graph.counts
    assert counts[ChoreState.COMPLETED] == len(executor.history) < 30
    assert counts[ChoreState.CANCELLED] == 30 - len(executor.history)


def test_without_backfill_chores_start_in_waves(folder: Path) -> None:
    waves: dict[str, float] = {}

    def behaviour(task: Task) -> Outcome:
        waves[task.attempt.chore_id] = executor.now()
        return Outcome(1.0 + task.seed % 5)

    executor = SimulatedExecutor(behaviour, workers=4)
    calls = [*(call("work", n) for n in range(4)), *(call("next", ref("work", n)) for n in (1, 2))]
    session, _ = play(folder, calls, strategy=NonAdaptiveStrategy(), executor=executor)
    assert session.wait(30) is RunState.COMPLETED
    first_wave = [r["u"] for r in records(session.run_dir) if r["e"] == "end" and "work" in r["id"]]
    ended = max(started_at + wall for _, _, started_at, wall, *_ in first_wave)
    assert waves["chore-next-0005"] == waves["chore-next-0006"] == pytest.approx(ended)


# ---------------------------------------------------------------- cancellation


class CancelRunning(FutureProcessingStrategy):
    """Cancels a chore that runs as soon as another has ended."""

    inline = True

    def on_event(self, view: View, event: Event) -> Iterable[Decision]:
        return [Cancel(ref("long", 1))] if event.chore.name == "short" else []


class Deaf(SimulatedExecutor):
    """Hears of a cancellation too late: every attempt ends as it would have."""

    def cancel(self, attempts: Iterable[Attempt]) -> None:
        """Nothing."""


def long_and_short(task: Task) -> Outcome:
    return Outcome(100.0 if task.name == "long" else 1.0, task.name)


def test_a_running_chore_that_is_cancelled_is_stopped_with_all_that_needs_it(folder: Path) -> None:
    calls = [call("long"), call("short"), call("after", ref("long", 1))]
    session, executor = play(folder, calls, long_and_short, CancelRunning())
    assert session.wait(30) is RunState.COMPLETED
    assert [node.state.value for node in session.engine.graph.nodes.values() if node.state] == [
        "cancelled", "completed", "cancelled",
    ]  # fmt: skip
    assert executor.now() < 1.7e9 + 50
    with pytest.raises(MatForgeError, match="chore-long-0001 has no result: it was cancelled"):
        session.read_result("chore-long-0001")


def test_a_chore_that_completes_in_spite_of_being_cancelled_has_completed_for_good(folder: Path) -> None:
    calls = [call("long"), call("short"), call("after", ref("long", 1))]
    session, _ = play(folder, calls, strategy=CancelRunning(), executor=Deaf(long_and_short, workers=3))
    assert session.wait(30) is RunState.COMPLETED
    assert {state for state, *_ in outcome(session).values()} == {"completed"}
    again, executor = resume(session.run_dir)
    assert again.wait(30) is RunState.COMPLETED
    assert outcome(again) == outcome(session)
    assert executor.history == []


def test_a_person_cancels_a_chore_while_the_run_goes_on(folder: Path) -> None:
    started = threading.Event()

    def behaviour(task: Task) -> Outcome:
        if task.name == "endless":
            started.set()
        return Outcome(1e12 if task.name == "endless" else 1.0)

    session, _ = play(folder, [call("endless"), call("work"), call("after", ref("endless", 1))], behaviour)
    assert started.wait(30)
    session.manager.cancel("chore-endless-0001")
    session.manager.cancel("chore-nobody-0009")
    assert session.wait(30) is RunState.COMPLETED
    assert session.engine.graph.counts[ChoreState.CANCELLED] == 2
    status = read_status(session.run_dir)
    assert status["current"]["cancelled"] == 2
    session.manager.cancel("chore-work-0002")  # too late, and nobody is there to be woken
    session.interrupt("too late")


# ---------------------------------------------------------------- executors


class Unstartable(SimulatedExecutor):
    """Cannot be started."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def start(self, context: RunContext) -> None:
        """Fail."""
        raise self.error


@pytest.mark.parametrize("error", [MatForgeError("There is no broker."), OSError(24, "Too many open files")])
def test_an_executor_that_cannot_be_started_ends_the_run_with_its_sentence(
    folder: Path, error: Exception
) -> None:
    executor = Unstartable(error)
    session, _ = play(folder, [call("work")], executor=executor)
    assert session.wait(30) is RunState.FAILED
    assert executor.closed
    sentence = r"The simulated executor cannot be started: .*(broker|open files)"
    with pytest.raises(RunFailedError, match=sentence):
        session.outcome()
    assert read_status(session.run_dir)["workflow"]["state"] == "failed"
    assert not (session.run_dir / "run.lock").exists()
    again, _ = resume(session.run_dir)
    assert again.wait(30) is RunState.COMPLETED


def test_an_executor_with_a_fault_of_ours_leaves_no_lock_and_no_thread_waiting(folder: Path) -> None:
    executor = Unstartable(ZeroDivisionError("a bug"))
    session, _ = play(folder, [call("work")], executor=executor)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        session.wait(30)
    assert executor.closed
    assert not (session.run_dir / "run.lock").exists()
    assert read_status(session.run_dir)["workflow"]["state"] == "failed"


class Failing(SimulatedExecutor):
    """Gives up after a while, and gives everything back."""

    def poll(self, timeout: float | None) -> list[Report]:
        """As always, and then no more."""
        found = super().poll(timeout)
        if len(self.history) < 3:
            return found
        failure = Failure(FailureKind.START_FAILED, "The agent has ended 3 times.")
        return [*found, ExecutorFailed(failure), *(LostReport(a, failure) for a in self.running)]


def test_an_executor_that_gives_up_costs_no_chore_one_of_its_lives(folder: Path) -> None:
    session, _ = play(folder, [call("work", n) for n in range(4)], executor=Failing(workers=1))
    assert session.wait(30) is RunState.FAILED
    with pytest.raises(RunFailedError, match="The agent has ended 3 times"):
        session.outcome()
    assert not [r for r in records(session.run_dir) if r["e"] == "lost"]
    again, _ = resume(session.run_dir)
    assert again.wait(30) is RunState.COMPLETED
    assert len(again.results) == 4


class Babbling(SimulatedExecutor):
    """Says everything twice, and repeats what attempts of other drivers said."""

    def poll(self, timeout: float | None) -> list[Report]:
        """Every report, and stale ones around it."""
        out: list[Report] = []
        for report in super().poll(timeout):
            out.append(report)
            if isinstance(report, Finished):
                for attempt in (
                    report.attempt,
                    Attempt(report.attempt.chore_id, 7, 1),
                    Attempt(report.attempt.chore_id, 1, 9),
                    Attempt("chore-nobody-0099", 1, 1),
                ):
                    out.append(Finished(attempt, Usage(), failure=BOOM))
                    out.append(LostReport(attempt, BOOM))
        return out


def test_late_and_repeated_reports_are_discarded(folder: Path) -> None:
    session, executor = play(folder, [call("work", n) for n in range(5)], executor=Babbling(workers=2))
    assert session.wait(30) is RunState.COMPLETED
    assert len(executor.history) == 5


def test_a_slot_that_is_lost_costs_another_attempt_and_three_set_the_chore_aside(folder: Path) -> None:
    session, executor = play(
        folder,
        [call("unlucky"), call("poisoned"), call("work")],
        lambda task: Outcome(
            1.0, 1, lost=task.name == "poisoned" or (task.name == "unlucky" and task.attempt.number < 3)
        ),
    )
    assert session.wait(30) is RunState.FAILED
    states = [node.state for node in session.engine.graph.nodes.values()]
    assert states == [ChoreState.COMPLETED, ChoreState.FAILED, ChoreState.COMPLETED]
    assert [a.number for a in executor.history if "poisoned" in a.chore_id] == [1, 2, 3]
    metadata = json.loads((session.run_dir / "out/chore-unlucky-0001/metadata.json").read_text())
    assert [a["outcome"] for a in metadata["attempts"]] == ["worker lost", "worker lost", "completed"]


class Shrinking(SimulatedExecutor):
    """Loses all but one of its workers after the first poll."""

    def poll(self, timeout: float | None) -> list[Report]:
        """As always."""
        found = super().poll(timeout)
        if self.capacity().total_cores == 4:
            self.resize(1)
        return found


def test_a_capacity_that_shrinks_is_seen_and_wide_chores_still_get_their_turn(folder: Path) -> None:
    calls = [call("work", n) for n in range(6)] + [call("wide", cores=3)]
    session, _ = play(folder, calls, executor=Shrinking(workers=4))
    assert session.wait(30) is RunState.COMPLETED
    assert read_status(session.run_dir)["allocation"]["total_cores"] == 1
    assert CapacityChanged() == CapacityChanged("")


# ---------------------------------------------------------------- disks


def test_a_folder_that_cannot_be_written_ends_the_run_resumable(folder: Path) -> None:
    def behaviour(task: Task) -> Outcome:
        if task.attempt == Attempt("chore-work-0003", 1, 1):
            place = next(folder.glob("matforge*")) / "out" / "chore-work-0003"
            shutil.rmtree(place)
            place.write_text("a file where a folder is expected")
            return Outcome(1.0, failure=BOOM)  # so that the simulated worker writes nothing itself
        return Outcome(1.0, 1)

    session, _ = play(folder, [call("work", n) for n in range(5)], behaviour, workers=1)
    assert session.wait(30) is RunState.INTERRUPTED
    with pytest.raises(InterruptedRunError, match=r"out/chore-work-0003.* cannot be written: "):
        session.outcome()
    assert not (session.run_dir / "run.lock").exists()
    shutil.rmtree(session.run_dir / "out" / "chore-work-0004")
    (session.run_dir / "out" / "chore-work-0003").unlink()
    (session.run_dir / "out" / "chore-work-0003").mkdir()
    again, _ = resume(session.run_dir, lambda task: Outcome(1.0, 1))
    again.wait(30)
    assert len(again.results) >= 4


def test_a_driver_whose_run_was_taken_over_writes_nothing_more(folder: Path) -> None:
    frozen: dict[str, bytes] = {}

    def behaviour(task: Task) -> Outcome:
        if task.attempt.chore_id == "chore-work-0002":
            run_dir = next(folder.glob("matforge*"))
            (run_dir / "run.lock").write_text('{"token": "another", "host": "another", "renewed_at": 1.7e9}')
            (run_dir / "status.json").write_text('"of the other"')
            frozen["journal"] = (run_dir / "journal.jsonl").read_bytes()
            executor.stall(100.0)
        return Outcome(20.0, 1)

    executor = SimulatedExecutor(behaviour, workers=1)
    session, _ = play(folder, [call("work", n) for n in range(5)], executor=executor)
    assert session.wait(30) is RunState.INTERRUPTED
    with pytest.raises(InterruptedRunError, match="was taken over by another driver; this one stops"):
        session.outcome()
    assert (session.run_dir / "journal.jsonl").read_bytes() == frozen["journal"]
    assert (session.run_dir / "status.json").read_text() == '"of the other"'
    assert "another" in (session.run_dir / "run.lock").read_text()


# ---------------------------------------------------------------- cost


def calls_made(work: Callable[[], None]) -> int:
    """How many functions are called, in threads that ``work`` starts: nothing depends on the clock."""
    count = itertools.count()

    def profile(frame: Any, event: str, arg: Any) -> None:
        if event in ("call", "c_call"):
            next(count)

    threading.setprofile(profile)
    try:
        work()
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
    return next(count)


class Growing(FutureProcessingStrategy):
    """Spawns a chore for each of the first half that ends, and changes a priority each time."""

    inline = True

    def __init__(self, half: int) -> None:
        self.left = half

    def on_event(self, view: View, event: Event) -> Iterable[Decision]:
        self.left -= 1
        if self.left < 0:
            return []
        return [Spawn(ChoreSpec((event.ref,), None, "child")), Reprioritise(event.chore.id, self.left)]


class Stopping(FutureProcessingStrategy):
    """Says at every event that enough is done."""

    inline = True

    def on_event(self, view: View, event: Event) -> Decision:
        return Stop("enough")


def shape_of(name: str, n: int) -> tuple[list[Call], FutureProcessingStrategy | None]:
    """``n`` chores in a shape."""
    if name == "chain":
        return [call("work", *([ref("work", k)] if k else [])) for k in range(n)], None
    if name == "fan-in":
        work = [call("work") for _ in range(n - 1)]
        return [*work, call("sum", [ref("work", k + 1) for k in range(n - 1)])], None
    if name == "fan-out":
        return [call("root"), *(call("work", ref("root", 1)) for _ in range(n - 1))], None
    if name == "spawned":
        return [call("work") for _ in range(n // 2)], Growing(n // 2)
    if name == "stopped":
        return [call("work") for _ in range(n)], Stopping()
    return [call("work") for _ in range(n)], None


def run_shape(folder: Path, name: str, n: int) -> int:
    """Function calls of the driver for ``n`` chores in a shape."""
    calls, strategy = shape_of(name, n)

    def work() -> None:
        session, _ = play(folder, calls, strategy=strategy, names=["child"], workers=8, layout="packed")
        assert session.wait(300) is RunState.COMPLETED

    return calls_made(work)


SHAPES = ("independent", "chain", "fan-in", "fan-out", "spawned", "stopped")


@pytest.mark.parametrize("name", SHAPES)
def test_a_chore_costs_no_more_in_a_large_run(folder: Path, name: str) -> None:
    small, large = run_shape(folder, name, 150), run_shape(folder, name, 1500)
    assert large < 10.5 * small


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_a_chore_costs_no_more_in_a_very_large_run(folder: Path, name: str) -> None:
    small, large = run_shape(folder, name, 2000), run_shape(folder, name, 20_000)
    assert large < 10.5 * small


# ---------------------------------------------------------------- what is told


def test_metadata_holds_what_a_person_debugging_wants(folder: Path) -> None:
    session, _ = play(
        folder,
        [call("good", 1), call("bad", ref("good", 1))],
        lambda task: Outcome(2.0, 1, {"x": 1}) if task.name == "good" else Outcome(1.0, failure=BOOM),
    )
    session.wait(30)
    good, bad = (
        json.loads((session.run_dir / f"out/chore-{name}/metadata.json").read_text())
        for name in ("good-0001", "bad-0002")
    )
    assert good["format_version"] == 1
    assert good["state"] == "completed"
    assert good["report"] == {"x": 1}
    assert Location.from_list(good["result"]).path == "out/chore-good-0001/result.pickle"
    (attempt,) = good["attempts"]
    assert (attempt["host"], attempt["number"], attempt["wall_s"]) == ("simulated", 1, 2.0)
    assert bad["dependencies"] == ["chore-good-0001"]
    assert bad["failure"] == BOOM.as_dict()
    assert bad["function"] == "bad"
    assert bad["result"] is None


def test_a_packed_chore_that_failed_can_be_found_like_any_other(folder: Path) -> None:
    session, _ = play(
        folder,
        [call("good"), call("bad"), call("after", ref("bad", 2))],
        lambda task: Outcome(1.0, failure=BOOM if task.name == "bad" else None),
        layout="packed",
    )
    session.wait(30)
    assert {p.name for p in (session.run_dir / "out").iterdir()} == {"registry", "chore-bad-0002"}
    metadata = json.loads((session.run_dir / "out/chore-bad-0002/metadata.json").read_text())
    assert metadata["failure"]["stderr"] == "oh no\n"


def test_free_cores_and_gpus_are_what_is_left(folder: Path) -> None:
    session, _ = play(folder, [call("wide", cores=2)], workers=3)
    session.wait(30)
    lines = (session.run_dir / "status_history.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["free_cores"] == 3
