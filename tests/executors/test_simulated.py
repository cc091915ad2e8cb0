"""The harness itself: exact times, exact faults, nothing that depends on the machine."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from matforge.engine.locations import read
from matforge.executors.protocol import (
    CapacityChanged,
    Executor,
    Finished,
    Lost,
    Report,
    RunContext,
    Started,
    Task,
)
from matforge.executors.simulated import Outcome, SimulatedExecutor
from matforge.model import Attempt, Failure, FailureKind, Resources

BEGIN = 1.7e9
BOOM = Failure(FailureKind.EXCEPTION, "boom")
Behaviour = Callable[[Task], Outcome]
Make = Callable[..., SimulatedExecutor]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes executors that have started, and closes them."""
    made: list[SimulatedExecutor] = []

    def maker(behaviour: Behaviour = lambda task: Outcome(), workers: int = 2) -> SimulatedExecutor:
        executor = SimulatedExecutor(behaviour, workers=workers)
        made.append(executor)
        executor.start(RunContext(tmp_path, "test", 1))
        return executor

    yield maker
    for executor in made:
        executor.close()


def task(number: int, cores: int = 1, directory: str | None = None) -> Task:
    """A task that nobody runs."""
    attempt, resources = Attempt(f"chore-work-{number:04d}", 1, 1), Resources(cores_per_task=cores)
    return Task(attempt, "work", resources, function="work", directory=directory, seed=number)


def drain(executor: SimulatedExecutor) -> list[Report]:
    """All reports until nothing runs."""
    found: list[Report] = []
    while True:
        found += executor.poll(None) if executor.running else executor.poll(0)
        if not executor.running:
            return found + executor.poll(0)


def numbers(reports: list[Report], kind: type) -> list[int]:
    """The tasks that reports of a kind are about."""
    return [int(r.attempt.chore_id[-4:]) for r in reports if isinstance(r, kind)]  # type: ignore[union-attr]


def test_it_keeps_the_protocol(make: Make) -> None:
    assert isinstance(make(), Executor)
    capacity = make(workers=7).capacity()
    assert (capacity.nodes, capacity.total_cores, capacity.total_gpus) == (1, 7, 0)


def test_everything_takes_exactly_as_long_as_it_is_told_and_no_real_time(make: Make) -> None:
    began = time.monotonic()
    executor = make(lambda task: Outcome(1e5 * task.seed))
    executor.submit([task(n) for n in (1, 2, 3)])
    reports = drain(executor)
    assert numbers(reports, Finished) == [1, 2, 3]
    assert executor.now() == BEGIN + 4e5  # 1 and then 3 on one slot
    walls = [r.usage.wall_s for r in reports if isinstance(r, Finished)]
    assert walls == [1e5, 2e5, 3e5]
    assert time.monotonic() - began < 5


def test_tasks_start_in_the_order_of_submission_and_a_wide_one_is_not_overtaken(make: Make) -> None:
    executor = make(workers=2)
    executor.submit([task(1), task(2, cores=2), task(3)])
    assert [a.chore_id[-1] for a in executor.running] == ["1"]
    drain(executor)
    assert [a.chore_id[-1] for a in executor.history] == ["1", "2", "3"]


def test_what_is_wider_than_everything_runs_alone(make: Make) -> None:
    executor = make(workers=2)
    executor.submit([task(1, cores=5), task(2)])
    assert len(executor.running) == 1
    assert numbers(drain(executor), Finished) == [1, 2]


def test_a_poll_lets_the_clock_run_no_further_than_its_timeout(make: Make) -> None:
    executor = make(lambda task: Outcome(10.0))
    executor.submit([task(1)])
    assert numbers(executor.poll(0), Started) == [1]
    assert executor.poll(4.0) == []
    assert executor.now() == BEGIN + 4
    assert executor.poll(0) == []
    assert executor.now() == BEGIN + 4
    assert numbers(executor.poll(100.0), Finished) == [1]
    assert executor.now() == BEGIN + 10


def test_a_poll_with_nothing_running_lets_its_time_pass_unless_it_is_woken(make: Make) -> None:
    executor = make()
    assert executor.poll(1000.0) == []
    assert executor.now() == BEGIN + 1000.0
    executor.wake()
    assert executor.poll(1000.0) == []
    assert executor.poll(None) == []
    assert executor.now() == BEGIN + 1000.0


@pytest.mark.parametrize("directory", [None, "out/chore-work-0001"])
def test_results_are_written_where_a_worker_would_write_them(
    make: Make, tmp_path: Path, directory: str | None
) -> None:
    executor = make(lambda task: Outcome(1.0, {"x": task.seed}, {"r": 1}))
    executor.submit([task(1, directory=directory)])
    (finished,) = (r for r in drain(executor) if isinstance(r, Finished))
    assert finished.report == {"r": 1}
    assert finished.result is not None
    assert finished.inline is not None
    assert pickle.loads(finished.inline) == pickle.loads(read(tmp_path, finished.result)) == {"x": 1}
    expected = f"{directory}/result.pickle.e1a1" if directory else "segments/1-simulated.seg"
    assert finished.result.path == expected


def test_faults_are_reported_as_what_they_are(make: Make) -> None:
    ways = {
        1: Outcome(1.0, failure=BOOM),
        2: Outcome(1.0, lost=True),
        3: Outcome(1.0, lost=True, failure=Failure(FailureKind.NODE_LOST, "off")),
        4: Outcome(1.0, silent=True),
    }
    executor = make(lambda task: ways[task.seed], workers=4)
    executor.submit([task(n) for n in ways])
    reports = drain(executor)
    assert [r.failure for r in reports if isinstance(r, Finished)] == [BOOM]
    assert [r.failure.kind for r in reports if isinstance(r, Lost)] == [
        FailureKind.WORKER_LOST, FailureKind.NODE_LOST, FailureKind.NODE_LOST,
    ]  # fmt: skip


def test_a_node_takes_all_along_that_is_there_and_it_is_told_whether_that_was_one_alone(
    make: Make,
) -> None:
    off = Outcome(1.0, lost=True, failure=Failure(FailureKind.NODE_LOST, "off"))
    for others in ((2, 3), ()):
        executor = make(lambda task: off if task.seed == 1 else Outcome(2.0), workers=2)
        executor.submit([task(n) for n in (1, *others)])
        lost = [r for r in drain(executor) if isinstance(r, Lost)]
        assert [(r.attempt.chore_id[-1], r.alone) for r in lost] == [
            (str(n), not others) for n in (1, *others)
        ]


def test_a_timeout_ends_what_takes_longer_at_the_very_moment(make: Make) -> None:
    executor = make(lambda task: Outcome(10.0 * task.seed))
    executor.submit([replace(task(i), timeout_s=15.0) for i in (1, 2)])
    ends = {r.attempt.chore_id: r for r in drain(executor) if isinstance(r, Finished)}
    assert ends["chore-work-0001"].failure is None
    late = ends["chore-work-0002"]
    assert late.failure is not None
    assert (late.failure.kind, late.usage.wall_s) == (FailureKind.TIMEOUT, 15.0)
    assert executor.now() == BEGIN + 15.0


def test_a_slot_can_be_killed_from_outside(make: Make) -> None:
    executor = make(lambda task: Outcome(1e9), workers=1)
    executor.submit([task(1), task(2)])
    executor.lose_slot(Attempt("chore-work-0001", 1, 1))
    executor.lose_slot(Attempt("chore-nobody-0009", 1, 1))
    reports = executor.poll(0)
    assert numbers(reports, Lost) == [1]
    assert numbers(reports, Started) == [1, 2]


def test_what_is_cancelled_ends_at_once_queued_or_running_and_makes_room(make: Make) -> None:
    executor = make(lambda task: Outcome(1e9), workers=1)
    executor.submit([task(n) for n in range(1, 5)])
    executor.poll(0)
    executor.cancel(Attempt(f"chore-work-{n:04d}", 1, 1) for n in (1, 3, 9))
    reports = executor.poll(0)
    failures = [r.failure for r in reports if isinstance(r, Finished)]
    assert {f.kind for f in failures if f is not None} == {FailureKind.CANCELLED}
    assert sorted(numbers(reports, Finished)) == [1, 3]
    assert numbers(reports, Started) == [2]
    assert executor.now() == BEGIN


def test_a_capacity_that_changes_is_told_and_kept(make: Make) -> None:
    executor = make(lambda task: Outcome(float(task.seed)), workers=3)
    executor.submit([task(n) for n in range(1, 8)])
    executor.resize(1)
    assert any(isinstance(r, CapacityChanged) for r in executor.poll(0))
    assert executor.capacity().total_cores == 1
    while len(executor.running) > 1:
        executor.poll(None)
    executor.poll(None)
    assert len(executor.running) == 1
    assert len(numbers(drain(executor), Finished)) > 0
    executor.resize(2)
    executor.submit([task(11), task(12), task(13)])
    assert len(executor.running) == 2


def test_time_may_pass_without_the_driver(make: Make) -> None:
    executor = make(lambda task: Outcome(5.0))
    executor.submit([task(1)])
    executor.stall(100.0)
    assert executor.now() == BEGIN + 100
    assert numbers(drain(executor), Finished) == [1]
    assert executor.now() == BEGIN + 100


def test_closing_forgets_everything_and_may_be_repeated(make: Make) -> None:
    executor = make(lambda task: Outcome(1e9))
    executor.submit([task(n) for n in range(5)])
    executor.close(kill=True)
    executor.close()
    assert executor.closed
    assert executor.running == []


def test_the_same_tasks_give_the_same_reports(make: Make) -> None:
    def behaviour(task: Task) -> Outcome:
        return Outcome(task.seed * 7 % 5, failure=BOOM if task.seed % 3 else None)

    def play() -> list[Report]:
        executor = make(behaviour, workers=3)
        executor.submit([task(n, cores=1 + n % 2) for n in range(20)])
        executor.cancel([Attempt(f"chore-work-{n:04d}", 1, 1) for n in (0, 5, 7, 11)])
        return drain(executor)

    first, second = play(), play()
    assert [type(r) for r in first] == [type(r) for r in second]
    assert numbers(first, Finished) == numbers(second, Finished)
