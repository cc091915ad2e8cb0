"""Graph and journal in step: whatever happens and wherever it is cut off, a replay ends in the same place."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from matforge.chore import Call
from matforge.engine import journal
from matforge.engine.events import Cancelled, Reprioritised
from matforge.engine.journal import Journal
from matforge.engine.records import Ending
from matforge.engine.run import Run
from matforge.engine.steps import Step, Stop
from matforge.engine.store import RunStore
from matforge.model import (
    Attempt,
    ChoreState,
    Failure,
    FailureKind,
    Location,
    MatForgeError,
    OutputReference,
    Resources,
    Usage,
)
from matforge.packing import pack

BOOM = Failure(FailureKind.EXCEPTION, "boom")
UNREAD = Failure(FailureKind.STORAGE, "An input is missing.", input=0)
GONE = Failure(FailureKind.WORKER_LOST, "gone")
OFF = Failure(FailureKind.NODE_LOST, "off")
LATE = Failure(FailureKind.WALLTIME, "the allocation ends")
STOPPED = Failure(FailureKind.CANCELLED, "stopped")
HERE = Location("segments/1-slot.seg", 0, 1, 0)


_OPEN: list[Run] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_all()


def close_all() -> None:
    """Close the files of every run that a test made."""
    while _OPEN:
        run = _OPEN.pop()
        run.store.close()
        run.journal.abandon()


def new_run(folder: Path, **options: Any) -> Run:
    """An empty run in ``folder``."""
    run = Run(RunStore(folder, layout="packed"), Journal(folder / "journal.jsonl"), **options)
    _OPEN.append(run)
    run.journal.append({"e": "run"})
    return run


def replayed(run_dir: Path, *, epoch: int = 1) -> Run:
    """What a later driver makes of what is in the journal."""
    records, tail = journal.read(run_dir / "journal.jsonl")
    again = Run(
        RunStore(run_dir, layout="packed", epoch=epoch),
        Journal.reopen(run_dir / "journal.jsonl", tail, len(records)),
        epoch=epoch,
    )
    _OPEN.append(again)
    again.replay(records)
    return again


def call(name: str = "work", *arguments: Any, nice: int = 0, key: str | None = None) -> Call:
    """A call of a function that nobody will run."""
    payload, inputs = pack((arguments, {}))
    return Call(name, payload, inputs, name, Resources(), nice, key)


def submit(run: Run) -> Attempt:
    """Submit the next ready chore."""
    instruction = run.submit_next()
    assert instruction is not None
    return Attempt(instruction.id, run.epoch, instruction.number)


def succeed(run: Run, attempt: Attempt, **report: Any) -> None:
    """Let an attempt publish a result."""
    run.succeeded(attempt, HERE, report=report, usage=Usage("host", 1, 2.0, 3.0))


def answer(run: Run, *steps: Step, state: str | None = None, error: str = "") -> Ending:
    """Answer the oldest ending with these decisions."""
    ending = run.outbox[0]
    run.decisions.settle(ending, steps, state=state, error=error)
    return ending


def kinds(run: Run) -> list[str]:
    """The journal's records by kind, ``w`` marking endings that wait for an answer."""
    run.journal.flush(0.0)
    records, _ = journal.read(run.store.path / "journal.jsonl")
    return [r["e"] + ("-w" if "w" in r else "") for r in records]


def portrait(run: Run) -> dict[str, Any]:
    """Everything that a resume must restore, and nothing that it need not.

    A chore that was given to the executor, and was not to be stopped, is simply READY again.
    """
    chores = {}
    for name, node in run.graph.nodes.items():
        stopping = node.state is ChoreState.RUNNING and node.cancelling
        state = ChoreState.READY if node.state is ChoreState.RUNNING and not stopping else node.state
        lost = (node.losses, node.doubts)
        chores[name] = (state, stopping, node.nice, lost, node.failure, run.records[name].result)
    return {
        "chores": chores,
        "keys": run.keys,
        "unanswered": [(e.chore.id, e.state, dict(e.facts.report)) for e in run.outbox],
        "unwritten": [e.chore.id for e in run.unwritten],
        "state": run.decisions.strategy_state,
        "errors": run.decisions.strategy_errors,
        "tally": run.tally,
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """An empty run."""
    return new_run(tmp_path)


def is_what_a_replay_gives(run: Run) -> None:
    """Assert that nothing would be lost or changed if this driver died now."""
    run.graph.check()
    if any(ending.facts.number for ending in run.unwritten):
        return  # not yet on its way to the disk
    run.flush(0.0)
    again = replayed(run.store.path)
    again.journal.abandon()
    again.graph.check()
    mine, its = portrait(run), portrait(again)
    # a final state has no future, so how often a chore was lost before it does not matter
    for chores in (mine["chores"], its["chores"]):
        for name, (state, stopping, nice, losses, *rest) in chores.items():
            final = state.final
            chores[name] = (state, stopping, 0 if final else nice, (0, 0) if final else losses, *rest)
    assert mine == its


# ---------------------------------------------------------------- identity


def test_a_chore_is_known_by_what_it_does_and_not_by_when_it_was_added(tmp_path: Path) -> None:
    keys = []
    for order in (("a", "b"), ("b", "a")):
        (tmp_path / order[0]).mkdir()
        run = new_run(tmp_path / order[0])
        keys.append({name: run.add(call(name, 1)).key for name in order})
    assert keys[0] == keys[1]


def test_equal_calls_are_different_chores_with_keys_of_their_own(run: Run) -> None:
    one, other = run.add(call("work", 1)), run.add(call("work", 1))
    assert one.key != other.key
    assert one.seed != other.seed
    assert (one.id, other.id) == ("chore-work-0001", "chore-work-0002")


def test_a_key_depends_on_the_chores_that_the_arguments_refer_to(run: Run) -> None:
    a, b = run.add(call("source", 1)), run.add(call("source", 2))
    keys = {run.add(call("work", OutputReference(source.id))).key for source in (a, b)}
    assert len(keys) == 2


def test_a_named_key_that_is_there_already_is_the_same_chore(run: Run) -> None:
    first = run.add(call("work", 1, key="only"))
    assert run.add(call("work", 2, key="only")) is first
    attempt = submit(run)
    succeed(run, attempt)
    answer(run, call("work", 3, key="only"), call("work", 4, key="second"))
    assert len(run.records) == 2
    is_what_a_replay_gives(run)


def test_spawned_chores_are_known_by_parent_and_ordinal(run: Run) -> None:
    run.add(call("parent"))
    succeed(run, submit(run))
    answer(run, call("work", 1), call("work", 1))
    spawned = [record.chore for record in run.records.values() if record.chore.parent]
    assert len({chore.key for chore in spawned}) == 2
    assert {chore.parent for chore in spawned} == {"chore-parent-0001"}


def test_a_key_that_a_user_chose_never_meets_one_of_ours(run: Run) -> None:
    run.decisions.decide([call("work", 1)], state=None, origin="start")
    run.add(call("work", 2, key="start-0"))
    assert len(run.records) == 2


# ---------------------------------------------------------------- one record, or two


def test_an_answer_that_comes_at_once_is_one_record_with_its_event(run: Run) -> None:
    run.add(call())
    succeed(run, submit(run), x=1)
    answer(run, call("work", 1), state="s1")
    assert kinds(run) == ["run", "add", "end"]
    records, _ = journal.read(run.store.path / "journal.jsonl")
    assert records[-1]["p"] == {"x": 1}
    assert records[-1]["st"] == "s1"
    assert records[-1]["d"][0][0] == "spawn"
    is_what_a_replay_gives(run)


def test_what_has_ended_is_written_although_the_strategy_still_thinks(run: Run) -> None:
    run.add(call())
    succeed(run, submit(run), x=1)
    run.write_endings()
    run.flush(0.0)
    again = replayed(run.store.path, epoch=2)
    assert again.graph.nodes["chore-work-0001"].state is ChoreState.COMPLETED
    assert [e.chore.id for e in again.outbox] == ["chore-work-0001"]
    assert again.outbox[0].facts.report == {"x": 1}
    answer(run, call("work", 1))
    assert kinds(run) == ["run", "add", "end-w", "answer"]
    is_what_a_replay_gives(run)


def test_an_answer_without_decisions_needs_no_second_record_however_late(run: Run) -> None:
    for number in range(3):
        run.add(call("work", number))
    for attempt in [submit(run) for _ in range(3)]:
        succeed(run, attempt)
    for number in range(3):
        answer(run, state=f"s{number}")
    assert kinds(run)[-3:] == ["end"] * 3
    is_what_a_replay_gives(run)


def test_a_decision_that_comes_after_the_graph_has_moved_on_is_replayed_after_it(run: Run) -> None:
    """Cancelling a chore that has completed meanwhile must not undo it in a replay."""
    a, b = run.add(call("a")), run.add(call("b"))
    first, second = submit(run), submit(run)
    succeed(run, first)
    succeed(run, second)
    answer(run, Cancelled(b.id))
    answer(run)
    assert run.graph.nodes[b.id].state is ChoreState.COMPLETED
    assert a.id in run.records
    is_what_a_replay_gives(run)


def test_a_chore_spawned_on_one_that_has_failed_meanwhile_is_replayed_in_order(run: Run) -> None:
    a, b, c = (run.add(call(name)) for name in "abc")
    attempts = [submit(run) for _ in range(3)]
    succeed(run, attempts[0])
    run.failed(attempts[1], BOOM, Usage())
    run.failed(attempts[2], BOOM, Usage())
    answer(run, call("child", OutputReference(b.id), OutputReference(c.id)))
    assert [e.chore.id for e in run.outbox] == [b.id, c.id, "chore-child-0004"]
    assert run.outbox[2].failure is not None
    assert run.outbox[2].failure.root == b.id
    is_what_a_replay_gives(run)
    while run.outbox:
        answer(run)
    is_what_a_replay_gives(run)
    assert a.id == attempts[0].chore_id


def test_a_persons_cancellation_stands_behind_what_had_ended_before_it(run: Run) -> None:
    a = run.add(call("a"))
    b = run.add(call("b", OutputReference(a.id)))
    succeed(run, submit(run))
    attempt = submit(run)
    assert attempt.chore_id == b.id
    run.decisions.cancel(b.id)
    succeed(run, attempt)  # it was faster than the cancellation
    answer(run)
    answer(run)
    assert run.graph.nodes[b.id].state is ChoreState.COMPLETED
    is_what_a_replay_gives(run)


def test_a_loss_stands_behind_what_had_ended_before_it(run: Run) -> None:
    a = run.add(call("a"))
    b = run.add(call("b", OutputReference(a.id)))
    succeed(run, submit(run))
    run.lost(submit(run), GONE)
    assert run.graph.nodes[b.id].losses == 1
    is_what_a_replay_gives(run)


def test_a_running_chore_that_was_to_be_cancelled_may_complete_or_not(run: Run) -> None:
    ways = (
        lambda attempt: succeed(run, attempt),
        lambda attempt: run.failed(attempt, STOPPED, Usage()),
        lambda attempt: run.lost(attempt, GONE),
    )
    for end in ways:
        chore = run.add(call("work", len(run.records)))
        attempt = submit(run)
        run.decisions.cancel(chore.id)
        is_what_a_replay_gives(run)
        end(attempt)
        answer(run)
        is_what_a_replay_gives(run)
    states = [node.state for node in run.graph.nodes.values()]
    assert states == [ChoreState.COMPLETED, ChoreState.CANCELLED, ChoreState.CANCELLED]


def test_cancelling_what_has_ended_or_is_being_cancelled_is_not_written(run: Run) -> None:
    chore = run.add(call())
    attempt = submit(run)
    run.decisions.cancel(chore.id)
    run.decisions.cancel(chore.id)
    succeed(run, attempt)
    answer(run, Cancelled(chore.id))
    run.decisions.cancel(chore.id)
    assert kinds(run) == ["run", "add", "cancel", "end"]


def test_stop_cancels_what_has_not_begun_and_nothing_else(run: Run) -> None:
    for number in range(4):
        run.add(call("work", number))
    first, second = submit(run), submit(run)
    succeed(run, first)
    answer(run, Stop("enough"))
    counts = run.graph.counts
    assert (counts[ChoreState.CANCELLED], counts[ChoreState.RUNNING]) == (2, 1)
    is_what_a_replay_gives(run)
    succeed(run, second)
    while run.outbox:
        answer(run, Stop())
    is_what_a_replay_gives(run)


def test_a_strategys_error_and_state_survive(run: Run) -> None:
    run.decisions.decide([], state="s0", origin="start", error="at the start")
    run.add(call())
    succeed(run, submit(run))
    answer(run, state="s1", error="later")
    run.flush(0.0)
    again = replayed(run.store.path)
    assert again.decisions.strategy_errors == ["at the start", "later"]
    assert again.decisions.strategy_state == "s1"


# ---------------------------------------------------------------- a chore's way


def test_cores_and_gpus_in_flight_follow_what_is_running(run: Run) -> None:
    payload, inputs = pack(((), {}))
    wide = Resources(cores_per_task=3, gpus_per_task=2)
    run.add(Call("wide", payload, inputs, "wide", wide))
    for end in (lambda a: run.lost(a, GONE), lambda a: run.failed(a, BOOM, Usage())):
        attempt = submit(run)
        assert (run.cores_in_flight, run.gpus_in_flight) == (3, 2)
        end(attempt)
        assert (run.cores_in_flight, run.gpus_in_flight) == (0, 0)


def test_what_can_never_fit_fails_without_being_submitted(tmp_path: Path) -> None:
    run = new_run(tmp_path, fits=lambda wants: "It is too wide." if wants.cores > 2 else "")
    payload, inputs = pack(((), {}))
    run.add(Call("wide", payload, inputs, "wide", Resources(cores_per_task=3)))
    assert run.submit_next() is None
    ending = answer(run)
    assert ending.failure == Failure(FailureKind.DOES_NOT_FIT, "It is too wide.")
    is_what_a_replay_gives(run)


def test_small_payloads_travel_in_the_message_and_large_ones_do_not(run: Run) -> None:
    small, large = run.add(call("work", "x")), run.add(call("work", "x" * 10_000))
    assert small.id in run.small_payloads
    assert large.id not in run.small_payloads


def test_reports_of_another_driver_are_not_current(run: Run) -> None:
    run.add(call())
    attempt = submit(run)
    assert run.is_current(attempt)
    assert not run.is_current(Attempt(attempt.chore_id, attempt.epoch + 1, attempt.number))
    assert not run.is_current(Attempt(attempt.chore_id, attempt.epoch, attempt.number + 1))
    assert not run.is_current(Attempt("chore-nobody-0009", 1, 1))


# ---------------------------------------------------------------- going on


def test_the_attempts_go_on_counting_and_losses_are_remembered(run: Run) -> None:
    chore = run.add(call())
    run.lost(submit(run), GONE)
    run.flush(0.0)
    again = replayed(run.store.path, epoch=2)
    again.resumed(0.0, 0)
    assert submit(again) == Attempt(chore.id, 2, 2)
    assert again.graph.nodes[chore.id].losses == 1
    assert [a["outcome"] for a in again.records[chore.id].attempts] == ["worker lost"]
    assert again.records[chore.id].attempts[0]["epoch"] == 1


def test_what_was_being_cancelled_is_cancelled_when_its_driver_is_gone_however_often(run: Run) -> None:
    chore = run.add(call("a"))
    run.add(call("b", OutputReference(chore.id)))
    submit(run)
    run.decisions.cancel(chore.id)
    for epoch in (2, 3, 4):
        run.flush(0.0)
        run = replayed(run.store.path, epoch=epoch)
        run.resumed(0.0, 0)
        run.graph.check()
        assert [node.state for node in run.graph.nodes.values()] == [ChoreState.CANCELLED] * 2
        assert [e.chore.id for e in run.outbox] == ["chore-a-0001", "chore-b-0002"]
    answer(run)
    is_what_a_replay_gives(run)


@pytest.mark.parametrize(
    "record",
    [
        {"e": "end", "id": "chore-work-0001", "s": "cancelled", "f": {"kind": "cancelled", "message": ""}},
        {"e": "end", "id": "chore-work-0001", "s": "completed", "n": 1, "r": HERE.as_list(), "twice": True},
        {"e": "answer", "id": "chore-work-0001"},
    ],
    ids=["never happened", "ends twice", "answers nothing"],
)
def test_records_that_contradict_each_other_are_refused(run: Run, record: dict[str, Any]) -> None:
    run.add(call())
    if record.pop("twice", False):
        succeed(run, submit(run))
        answer(run)
    run.journal.append(record)
    run.flush(0.0)
    with pytest.raises(MatForgeError, match=r"contradicts itself at record \d+, about chore-work-0001"):
        replayed(run.store.path)


def test_a_record_of_a_later_version_is_refused(run: Run) -> None:
    run.journal.append({"e": "telepathy"})
    run.flush(0.0)
    with pytest.raises(MatForgeError, match="a record of kind 'telepathy', which this version does not know"):
        replayed(run.store.path)


# ---------------------------------------------------------------- everything, in any order, and crashes


class RunMachine(RuleBasedStateMachine):
    """What a manager may do to a run, and a driver that dies anywhere in between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.run = new_run(self.folder)
        self.attempts: list[Attempt] = []
        self.safe = 0
        """Bytes of the journal that were handed to the operating system."""
        self.states = itertools.count()

    @initialize(count=st.integers(3, 6))
    def begin(self, count: int) -> None:
        for number in range(count):
            self.run.add(call("root", number))
        self.flush_all()

    def flush_all(self) -> None:
        self.run.write_endings()
        self.run.flush(0.0)
        self.safe = (self.folder / "journal.jsonl").stat().st_size

    # -- what the executor tells

    @rule(data=st.data(), rounds=st.integers(1, 4))
    def work(self, data: st.DataObject, rounds: int) -> None:
        for _ in range(rounds):
            self.work_once(data)

    def work_once(self, data: st.DataObject) -> None:
        """Submit some chores, let some attempts end, and then let the strategy answer some."""
        for _ in range(3):
            if (instruction := self.run.submit_next()) is not None:
                self.attempts.append(Attempt(instruction.id, self.run.epoch, instruction.number))
        words = "good good good bad stopped lost lost off off back stop unread unread"
        outcome = st.sampled_from(words.split())
        for end in data.draw(st.lists(outcome, min_size=1, max_size=4))[: len(self.attempts)]:
            attempt = self.attempts.pop(data.draw(st.integers(0, len(self.attempts) - 1)))
            if not self.run.is_current(attempt):
                continue
            if end == "stop":
                self.run.decisions.cancel(attempt.chore_id)
                self.attempts.append(attempt)
            elif end == "good":
                succeed(self.run, attempt, **data.draw(st.sampled_from([{}, {"x": 1}])))
            elif end == "lost":
                self.run.lost(attempt, GONE)
            elif end == "back":
                self.run.withdrawn(attempt)
            elif end == "off":
                failure = data.draw(st.sampled_from([OFF, OFF, LATE]))
                self.run.lost(attempt, failure, alone=data.draw(st.booleans()))
            elif end == "unread":
                self.run.failed(attempt, UNREAD, Usage())
            else:
                self.run.failed(attempt, BOOM if end == "bad" else STOPPED, Usage())
        for _ in range(data.draw(st.integers(0, 3))):
            if self.run.outbox:
                self.answer_oldest(data)

    # -- what people and strategies decide

    def steps(self, data: st.DataObject) -> list[Step]:
        some = st.sampled_from(list(self.run.records))
        spawn = st.builds(
            lambda inputs, nice, key: call("child", *map(OutputReference, inputs), nice=nice, key=key),
            st.lists(some, max_size=2),
            st.integers(-1, 1),
            st.sampled_from([None, None, None, "k1", "k2"]),
        )
        others = [st.builds(Cancelled, some), st.builds(Reprioritised, some, st.integers(-3, 3))]
        steps: list[Step] = data.draw(st.lists(st.one_of(spawn, spawn, spawn, *others), max_size=3))
        return [Stop()] if steps and data.draw(st.integers(0, 19)) == 0 else steps

    @precondition(lambda self: self.run.graph.counts[ChoreState.COMPLETED])
    @rule(data=st.data())
    def lose_a_result(self, data: st.DataObject) -> None:
        """A file that somebody has removed; whoever reads it finds out."""
        self.run.remake(data.draw(st.sampled_from(self.completed())))

    def completed(self) -> list[str]:
        return [n.id for n in self.run.graph.nodes.values() if n.state is ChoreState.COMPLETED]

    @precondition(lambda self: self.run.outbox)
    @rule(data=st.data())
    def answer_oldest(self, data: st.DataObject) -> None:
        kind = data.draw(st.integers(0, 5))
        steps = self.steps(data) if kind > 1 else []
        state = f"s{next(self.states)}" if kind % 2 else None
        answer(self.run, *steps, state=state, error="it failed" if kind == 0 else "")

    @precondition(lambda self: self.run.graph.open < 4)
    @rule(data=st.data(), name=st.integers(0, 99))
    def wish(self, data: st.DataObject, name: int) -> None:
        """A person, or the strategy's start."""
        self.run.decisions.decide(self.steps(data), state=None, origin=f"wish{next(self.states)}")
        names = list(self.run.records)
        self.run.decisions.cancel(names[name % len(names)])

    # -- writing and dying

    @rule()
    def flush(self) -> None:
        self.flush_all()

    @rule(data=st.data(), again=st.integers(0, 2))
    def die(self, data: st.DataObject, again: int) -> None:
        """Lose any part of what was not handed over yet, and go on with another driver."""
        if again:
            return
        self.run.flush(0.0)
        close_all()
        path = self.folder / "journal.jsonl"
        unsafe = path.stat().st_size - self.safe
        kept = data.draw(st.sampled_from([unsafe, unsafe, 0]) | st.integers(0, unsafe))
        os.truncate(path, self.safe + kept)
        records, tail = journal.read(path)
        self.run = replayed(self.folder, epoch=self.run.epoch + 1)
        self.run.resumed(0.0, tail.torn)
        done = set()
        for record in records:
            if record["e"] == "end" and record["s"] == "completed":
                done.add(record["id"])
            elif record["e"] in ("redo", "end"):
                done.discard(record["id"])
        assert done == set(self.completed())
        for name in data.draw(st.lists(st.sampled_from(sorted(done)), max_size=2) if done else st.just([])):
            self.run.remake(name, unanswered=True)
        self.run.flush(0.0)
        self.safe = path.stat().st_size
        assert not self.run.graph.counts[ChoreState.RUNNING]
        assert (self.run.cores_in_flight, self.run.gpus_in_flight) == (0, 0)

    @invariant()
    def a_replay_gives_the_same(self) -> None:
        is_what_a_replay_gives(self.run)

    def teardown(self) -> None:
        self.flush_all()
        records, _ = journal.read(self.folder / "journal.jsonl")
        ended = [r["id"] for r in records if r["e"] == "end"]
        answered = [r["id"] for r in records if r["e"] == "answer" or (r["e"] == "end" and "w" not in r)]
        again = Counter(r["id"] for r in records if r["e"] == "redo")
        assert all(count <= 1 + again[name] for name, count in Counter(ended).items())
        assert len(answered) == len(set(answered))
        assert len(set(self.run.keys.values())) == len(self.run.records)
        close_all()
        shutil.rmtree(self.folder)


RunMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestRunThroughAnything = RunMachine.TestCase


@pytest.mark.slow
def test_a_run_goes_through_anything_for_a_long_time() -> None:
    run_state_machine_as_test(
        RunMachine, settings=settings(max_examples=1500, stateful_step_count=50, deadline=None)
    )
