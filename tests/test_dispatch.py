"""Retries, pauses, memory and the end of the allocation, on a virtual clock."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from matforge.chore import Call, ChoreSpec
from matforge.dispatch import GRACE_S
from matforge.executors.protocol import Task
from matforge.executors.simulated import Outcome, SimulatedExecutor
from matforge.model import ChoreState, Failure, FailureKind, Resources, RunState, UsageError
from matforge.opening import reopen
from matforge.policy import Policy
from matforge.session import Session
from matforge.strategy import Cancel, Decision, Event, FutureProcessingStrategy, Spawn, View
from tests.harness import call, completed_in, killed_after, outcome, play, records, ref, resume, scratch


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory."""
    path = scratch()
    yield path
    shutil.rmtree(path)


def with_policy(one: Call, **policy: object) -> Call:
    """A call whose chore has this policy."""
    return replace(one, policy=Policy(**policy))  # type: ignore[arg-type]


def fails(kind: FailureKind, times: int, duration: float = 1.0) -> object:
    """A behaviour: each chore fails so often, then completes."""

    def behaviour(task: Task) -> Outcome:
        if task.name == "flaky" and task.attempt.number <= times:
            return Outcome(duration, failure=Failure(kind, f"try {task.attempt.number}"))
        return Outcome(duration, 7)

    return behaviour


def run_of(folder: Path, calls: Sequence[Call], behaviour: object, **more: object) -> tuple[Session, float]:
    """Run to the end on one worker; the session and the virtual seconds it took."""
    executor = SimulatedExecutor(behaviour, workers=1)  # type: ignore[arg-type]
    begun = executor.now()
    session, _ = play(folder, calls, executor=executor, **more)  # type: ignore[arg-type]
    session.wait(60)
    return session, executor.now() - begun


# ---------------------------------------------------------------- retries


@pytest.mark.parametrize(("retries", "state"), [(1, "failed"), (2, "completed"), (5, "completed")])
def test_a_chore_is_tried_again_as_often_as_its_author_said(folder: Path, retries: int, state: str) -> None:
    calls = [with_policy(call("flaky"), retries=retries), call("after", ref("flaky", 1))]
    session, _ = run_of(folder, calls, fails(FailureKind.EXCEPTION, 2))
    states = [node.state.value for node in session.engine.graph.nodes.values() if node.state]
    assert states == [state, state]
    assert session.engine.graph.nodes["chore-flaky-0001"].number == min(retries, 2) + 1


def test_without_retries_a_failure_is_final(folder: Path) -> None:
    session, _ = run_of(folder, [call("flaky")], fails(FailureKind.EXCEPTION, 1))
    assert session.failures["chore-flaky-0001"].message == "try 1"


def test_what_can_never_succeed_is_not_tried_again(folder: Path) -> None:
    calls = [with_policy(call("flaky"), retries=5)]
    session, _ = run_of(folder, calls, fails(FailureKind.CANNOT_PICKLE_RESULT, 1))
    assert session.engine.graph.nodes["chore-flaky-0001"].number == 1


def test_the_metadata_keep_why_every_attempt_failed(folder: Path) -> None:
    calls = [with_policy(call("flaky"), retries=2)]
    session, _ = run_of(folder, calls, fails(FailureKind.EXIT_CODE, 2))
    text = (session.run_dir / "out" / "chore-flaky-0001" / "metadata.json").read_text()
    attempts = json.loads(text)["attempts"]
    assert [a["outcome"] for a in attempts] == ["exit code", "exit code", "completed"]
    assert [a["failure"]["message"] for a in attempts[:2]] == ["try 1", "try 2"]


def test_pauses_between_tries_grow_where_the_kind_calls_for_it(folder: Path) -> None:
    calls = [with_policy(call("flaky"), retries=3)]
    _, at_once = run_of(folder, calls, fails(FailureKind.EXCEPTION, 3, 0.1))
    _, paused = run_of(folder, calls, fails(FailureKind.CANNOT_LOAD, 3, 0.1))
    assert at_once < 1
    assert 1 + 2 + 4 < paused < 9


def test_others_go_on_during_a_pause(folder: Path) -> None:
    calls = [with_policy(call("flaky", nice=-1), retries=3), *(call("other", n) for n in range(20))]
    session, took = run_of(folder, calls, fails(FailureKind.CANNOT_LOAD, 3, 0.5))
    assert session.manager.status.state is RunState.COMPLETED
    assert took < 20 * 0.5 + 4 * 0.5 + 1


def test_a_paused_chore_can_be_cancelled(folder: Path) -> None:
    executor = SimulatedExecutor(fails(FailureKind.CANNOT_LOAD, 99), workers=1)  # type: ignore[arg-type]
    calls = [with_policy(call("flaky"), retries=90), call("other")]
    session, _ = play(folder, calls, executor=executor)
    session.manager.cancel("chore-flaky-0001")
    assert session.wait(60) is RunState.COMPLETED
    assert session.engine.graph.counts[ChoreState.CANCELLED] == 1


def test_a_run_with_retries_is_resumed_after_any_record_with_as_many_tries_left(folder: Path) -> None:
    calls = [
        with_policy(call("flaky", 1), retries=2),
        with_policy(call("flaky", 2), retries=1),
        call("after", ref("flaky", 1)),
        call("after", ref("flaky", 2)),
    ]
    behaviour = fails(FailureKind.EXCEPTION, 2)
    session, _ = run_of(folder, calls, behaviour)
    expected, found = outcome(session), records(session.run_dir)
    assert {state for state, *_ in expected.values()} == {"completed", "failed"}
    first = next(n for n, r in enumerate(found) if r["e"] == "submitted") + 1
    for count in range(first, len(found)):
        copy = killed_after(session.run_dir, count, folder / "copy")
        again, executor = resume(copy, behaviour, workers=2)  # type: ignore[arg-type]
        again.wait(60)
        assert outcome(again) == expected
        assert not {a.chore_id for a in executor.history} & completed_in(found[:count])
        shutil.rmtree(copy)


# ---------------------------------------------------------------- stop


def test_a_failure_that_stops_the_run_starts_nothing_more(folder: Path) -> None:
    calls = [call("work", n) for n in range(5)]
    calls += [with_policy(call("flaky"), on_failure="stop"), *(call("work", n) for n in range(50))]
    session, _ = run_of(folder, calls, fails(FailureKind.EXCEPTION, 1))
    counts = session.engine.graph.counts
    assert counts[ChoreState.FAILED] == 1
    assert counts[ChoreState.CANCELLED] >= 40
    assert counts[ChoreState.COMPLETED] + counts[ChoreState.CANCELLED] == 55


def test_a_stop_that_the_driver_died_before_is_made_up_for(folder: Path) -> None:
    calls = [with_policy(call("flaky"), on_failure="stop"), *(call("work", n) for n in range(50))]
    session, _ = run_of(folder, calls, fails(FailureKind.EXCEPTION, 1))
    found = records(session.run_dir)
    at = next(n for n, r in enumerate(found) if r["e"] == "end" and r["s"] == "failed")
    copy = killed_after(session.run_dir, at + 1, folder / "copy")
    again, executor = resume(copy, fails(FailureKind.EXCEPTION, 1))  # type: ignore[arg-type]
    assert again.wait(60) is RunState.FAILED
    assert executor.history == []


class Eager(FutureProcessingStrategy):
    """Wants another chore for each that has completed."""

    def on_event(self, view: View, event: Event) -> Iterator[Decision]:
        if event.ok:
            yield Spawn(ChoreSpec((view.completed,), qualname="work"))


def test_after_a_failure_that_stops_the_run_neither_a_strategy_nor_a_retry_starts_anything(
    folder: Path,
) -> None:
    times = {"bad": 10.0, "work": 30.0, "flaky": 20.0}

    def behaviour(task: Task) -> Outcome:
        if task.name == "work":
            return Outcome(times[task.name], 1)
        return Outcome(times[task.name], failure=Failure(FailureKind.EXCEPTION, "no"))

    calls = [with_policy(call("bad"), on_failure="stop"), with_policy(call("flaky"), retries=3), call("work")]
    session, executor = play(folder, [*calls, call("work", 2)], behaviour, Eager(), workers=3)
    assert session.wait(60) is RunState.FAILED
    assert [a.chore_id for a in executor.history] == ["chore-bad-0001", "chore-flaky-0002", "chore-work-0003"]
    counts = session.engine.graph.counts
    assert (counts[ChoreState.COMPLETED], counts[ChoreState.FAILED]) == (1, 1)
    assert counts[ChoreState.CANCELLED] == 3
    expected = outcome(session)
    found = records(session.run_dir)
    begun = next(n for n, r in enumerate(found) if r["e"] == "submitted") + 1
    at = next(n for n, r in enumerate(found) if r["e"] == "end" and r["s"] == "failed") + 1
    for count in range(begun, len(found)):
        copy = killed_after(session.run_dir, count, folder / f"copy-{count}")
        again, executor = resume(copy, behaviour)
        assert again.wait(60) is RunState.FAILED
        if count >= at:  # what had begun and nobody knows the end of is started again by nobody
            assert executor.history == []
        assert {k: v for k, v in outcome(again).items() if v[0] == "failed"} == {
            k: v for k, v in expected.items() if v[0] == "failed"
        }
        shutil.rmtree(copy)


# ---------------------------------------------------------------- chores that kill their node


def test_a_chore_that_kills_its_node_is_found_and_set_aside_and_those_beside_it_are_not_blamed(
    folder: Path,
) -> None:
    off = Failure(FailureKind.NODE_LOST, "The node was lost.")
    beside: dict[str, set[str]] = {}

    class Watched(SimulatedExecutor):
        def submit(self, tasks: Sequence[Task]) -> None:
            for task in tasks:
                assert not (task.alone and self.running)
            assert not any(task.alone for task in tasks) or len(tasks) == 1
            super().submit(tasks)

    def behaviour(task: Task) -> Outcome:
        poisoned = task.name == "poisoned"
        with_it = {a.chore_id for a in executor.running}
        beside[f"{task.attempt.chore_id}.{task.attempt.number}"] = with_it
        return Outcome(1.0, lost=True, failure=off) if poisoned else Outcome(10.0, 1)

    executor = Watched(behaviour, workers=3)
    calls = [call("work", n) for n in range(3)] + [call("poisoned")] + [call("work", n) for n in range(3, 9)]
    session, _ = play(folder, [with_policy(one, retries=1) for one in calls], executor=executor)
    assert session.wait(60) is RunState.FAILED
    nodes = session.engine.graph.nodes
    (bad,) = [node for node in nodes.values() if node.state is ChoreState.FAILED]
    assert (bad.id, bad.failure) == ("chore-poisoned-0004", off)
    assert session.engine.graph.counts[ChoreState.COMPLETED] == 9
    assert all(node.retries == 1 for node in nodes.values())
    assert [beside[f"{bad.id}.{number}"] for number in (3, 4, 5)] == [set()] * 3
    assert bad.number == 5
    # nobody is lost more often than it takes to see that it was beside the other
    assert max(node.number for node in nodes.values() if node is not bad) == 3
    expected = outcome(session)
    found = records(session.run_dir)
    begun = next(n for n, r in enumerate(found) if r["e"] == "submitted") + 1
    for count in range(begun, len(found), 3):
        copy = killed_after(session.run_dir, count, folder / f"copy-{count}")
        executor = Watched(behaviour, workers=3)
        again = reopen(copy, made=executor, quiet=True)
        assert again.wait(60) is RunState.FAILED
        assert outcome(again) == expected
        shutil.rmtree(copy)


# ---------------------------------------------------------------- storage


def test_a_full_disk_stops_the_run_and_costs_nothing(folder: Path) -> None:
    session, _ = run_of(
        folder, [call("flaky"), call("after", ref("flaky", 1))], fails(FailureKind.STORAGE, 1)
    )
    assert session.manager.status.state is RunState.INTERRUPTED
    assert session.manager.problem == "try 1"
    again, _ = resume(session.run_dir, fails(FailureKind.STORAGE, 1))  # type: ignore[arg-type]
    assert again.wait(60) is RunState.COMPLETED


# ---------------------------------------------------------------- memory


def test_chores_that_declare_memory_run_only_as_many_as_fit(folder: Path) -> None:
    running: set[str] = set()

    def behaviour(task: Task) -> Outcome:
        assert task.memory == 40
        running.add(task.attempt.chore_id)
        return Outcome(1.0)

    executor = SimulatedExecutor(behaviour, workers=8, memory=100)
    calls = [replace(call("big", n), resources=Resources(memory=40)) for n in range(10)]
    session, _ = play(folder, calls, executor=executor)
    session.wait(60)
    assert len(running) == 10
    assert executor.now() - 1.7e9 == pytest.approx(5.0)  # two at a time


def test_a_chore_that_no_node_has_the_memory_for_is_told_before_work_starts(folder: Path) -> None:
    call_ = replace(call("big"), resources=Resources(memory=3 * 2**30))
    with pytest.raises(UsageError, match=r"It needs 3\.0 GiB of memory, and a node has 2\.0 GiB"):
        play(folder, [call_], executor=SimulatedExecutor(memory=2 * 2**30))


# ---------------------------------------------------------------- the end of the allocation


def lasting(seconds: float) -> object:
    """A behaviour: everything takes so long."""
    return lambda task: Outcome(seconds, task.seed % 9)


def short_of_time(
    folder: Path, calls: Sequence[Call], behaviour: object, lasts: float, workers: int = 1
) -> tuple[Session, SimulatedExecutor]:
    executor = SimulatedExecutor(behaviour, workers=workers, lasts_s=lasts)  # type: ignore[arg-type]
    session, _ = play(folder, calls, executor=executor)
    session.wait(60)
    return session, executor


def test_nothing_is_started_that_cannot_finish_as_declared(folder: Path) -> None:
    calls = [with_policy(call("long", n), expected=100.0) for n in range(5)]
    session, executor = short_of_time(folder, calls, lasting(100.0), 350.0)
    assert session.manager.status.state is RunState.INTERRUPTED
    assert session.manager.problem == "the allocation ends; 2 chores have not ended"
    assert len(executor.history) == 3
    again, _ = resume(session.run_dir, lasting(100.0))  # type: ignore[arg-type]
    assert again.wait(60) is RunState.COMPLETED


def test_what_is_not_declared_is_learned_from_chores_of_the_same_name(folder: Path) -> None:
    session, executor = short_of_time(folder, [call("long", n) for n in range(20)], lasting(60.0), 200.0)
    assert session.manager.status.state is RunState.INTERRUPTED
    assert session.engine.graph.counts[ChoreState.COMPLETED] == 3
    assert len(executor.history) == 3


def test_what_an_earlier_driver_has_learned_is_known_to_the_next(folder: Path) -> None:
    session, _ = play(folder, [call("long", n) for n in range(20)], lasting(60.0), workers=1)  # type: ignore[arg-type]
    session.wait(60)
    found = records(session.run_dir)
    at = next(n for n, r in enumerate(found) if r["e"] == "end") + 1
    copy = killed_after(session.run_dir, at, folder / "copy")
    executor = SimulatedExecutor(lasting(60.0), workers=1, lasts_s=65.0)  # type: ignore[arg-type]
    again = reopen(copy, made=executor, quiet=True)
    assert again.wait(60) is RunState.INTERRUPTED
    assert executor.history == []


def test_a_run_that_waits_for_nothing_but_what_is_too_late_ends_although_some_of_it_was_cancelled(
    folder: Path,
) -> None:
    calls = [with_policy(call("long", n), expected=500.0) for n in range(3)]
    calls.append(with_policy(call("short"), expected=10.0))
    executor = SimulatedExecutor(lasting(10.0), workers=1, lasts_s=400.0)  # type: ignore[arg-type]
    session, _ = play(folder, calls, executor=executor, strategy=CancelsTheFirst())
    assert session.wait(60) is RunState.INTERRUPTED
    assert executor.now() - 1.7e9 < 50.0
    assert session.engine.graph.counts[ChoreState.CANCELLED] == 1


class CancelsTheFirst(FutureProcessingStrategy):
    """Wants no more of the first chore once another has ended."""

    def on_event(self, view: View, event: Event) -> Iterator[Decision]:
        if event.ok:
            yield Cancel("chore-long-0001")


def test_shorter_chores_go_on_when_long_ones_are_too_late(folder: Path) -> None:
    calls = [with_policy(call("long", n), expected=100.0) for n in range(2)]
    calls += [with_policy(call("short", n), expected=10.0) for n in range(4)]
    session, executor = short_of_time(
        folder, calls, lambda t: Outcome(100.0 if t.name == "long" else 10.0), 160.0
    )
    names = [a.chore_id for a in executor.history]
    assert names[0].startswith("chore-long")
    assert sum(name.startswith("chore-short") for name in names) == 4
    assert session.engine.graph.open == 1


def test_what_still_runs_at_the_end_is_stopped_in_time_and_tried_again_later(folder: Path) -> None:
    session, executor = short_of_time(folder, [call("endless")], lasting(1e6), 300.0)
    assert session.manager.status.state is RunState.INTERRUPTED
    assert executor.now() == pytest.approx(1.7e9 + 300.0 - GRACE_S, abs=1.0)
    run_dir = session.run_dir
    for number in (2, 3, 4):  # that it ran into the end again and again is not the chore's fault
        executor = SimulatedExecutor(lasting(1e6), workers=1, lasts_s=300.0)  # type: ignore[arg-type]
        session = reopen(run_dir, made=executor, quiet=True)
        assert session.wait(60) is RunState.INTERRUPTED
        assert [a.number for a in executor.history] == [number]
    again, _ = resume(run_dir, lasting(1.0))  # type: ignore[arg-type]
    assert again.wait(60) is RunState.COMPLETED
    text = (run_dir / "out" / "chore-endless-0001" / "metadata.json").read_text()
    attempts = json.loads(text)["attempts"]
    assert [a["outcome"] for a in attempts] == ["walltime"] * 4 + ["completed"]
    why = attempts[0]["failure"]
    assert why["message"] == "chore-endless-0001: it was stopped while it ran (the allocation ends)."
    assert (why["host"], why["slot"], why["attempt"]) == ("simulated", 0, 1)
    assert why["wall_s"] == pytest.approx(300.0 - GRACE_S, abs=1.0)


def test_allocations_of_two_fifths_of_the_time_finish_a_run_in_three_and_nothing_runs_twice(
    folder: Path,
) -> None:
    def behaviour(task: Task) -> Outcome:
        return Outcome(4.0 + task.seed % 20, task.seed % 9)

    calls = [call("work", n) for n in range(150)]
    whole = SimulatedExecutor(behaviour, workers=3)
    undisturbed, _ = play(folder / "undisturbed", calls, executor=whole)
    assert undisturbed.wait(60) is RunState.COMPLETED
    lasts = 0.4 * (whole.now() - 1.7e9)
    executors = [SimulatedExecutor(behaviour, workers=3, lasts_s=lasts) for _ in range(3)]
    session, _ = play(folder / "restarted", calls, executor=executors[0])
    states = [session.wait(60)]
    for executor in executors[1:]:
        session = reopen(session.run_dir, made=executor, quiet=True)
        states.append(session.wait(60))
    assert states == [RunState.INTERRUPTED, RunState.INTERRUPTED, RunState.COMPLETED]
    assert outcome(session) == outcome(undisturbed)
    # not even begun twice: nothing had to be stopped
    begun = [attempt.chore_id for executor in executors for attempt in executor.history]
    assert sorted(begun) == sorted(session.engine.records)


def test_a_run_that_ends_in_time_does_not_notice(folder: Path) -> None:
    session, _ = short_of_time(folder, [call("short", n) for n in range(5)], lasting(1.0), 3600.0)
    assert session.manager.status.state is RunState.COMPLETED


def test_draining_starts_nothing_more_and_lets_what_runs_end(folder: Path) -> None:
    known = threading.Event()

    def behaviour(task: Task) -> Outcome:
        assert known.wait(30)
        last = task.attempt.chore_id == "chore-work-0003"
        if last:
            session.drain("a test")
        return Outcome(10.0 if last else 0.001, 1)  # so short that many wait at the executor

    executor = SimulatedExecutor(behaviour, workers=1)
    session, _ = play(folder, [call("work", n) for n in range(50)], executor=executor, log_delay=0.0)
    known.set()
    assert session.wait(60) is RunState.INTERRUPTED
    assert session.engine.graph.counts[ChoreState.COMPLETED] == len(executor.history) == 3
    assert session.manager.problem == "a test; 47 chores have not ended"
    # what had waited at the executor counts as never tried
    again, executor = resume(session.run_dir, lambda task: Outcome(1.0, 1))
    assert again.wait(60) is RunState.COMPLETED
    assert len(executor.history) == 47
    assert max(len(record.attempts) for record in again.engine.records.values()) <= 1


def test_after_a_failure_that_stops_the_run_short_chores_that_wait_at_agents_do_not_start(
    folder: Path,
) -> None:
    calls = [call("work", n) for n in range(20)]
    calls += [with_policy(call("flaky"), on_failure="stop"), *(call("work", n) for n in range(20, 40))]
    behaviour = fails(FailureKind.EXCEPTION, 1, 0.01)
    executor = SimulatedExecutor(behaviour, workers=1)  # type: ignore[arg-type]
    session, _ = play(folder, calls, executor=executor)
    assert session.wait(60) is RunState.FAILED
    assert executor.history[-1].chore_id in ("chore-flaky-0021", "chore-work-0022")


def test_draining_has_an_end(folder: Path) -> None:
    known = threading.Event()

    def behaviour(task: Task) -> Outcome:
        assert known.wait(30)
        session.drain("a test", within=20.0)
        return Outcome(1e9)

    executor = SimulatedExecutor(behaviour, workers=1)
    session, _ = play(folder, [call("work")], executor=executor)
    known.set()
    assert session.wait(60) is RunState.INTERRUPTED
    assert executor.now() - 1.7e9 == pytest.approx(20.0, abs=2.0)
