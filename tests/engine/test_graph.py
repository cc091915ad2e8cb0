"""The state machine: every transition, every invariant, and that no step costs more than O(log n)."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from matforge.engine.events import (
    Added,
    Cancel,
    Cancelled,
    Event,
    Failed,
    Finish,
    Lost,
    Offered,
    Publish,
    Reprioritised,
    Settled,
    Spoiled,
    Started,
    Submit,
    Succeeded,
    Withdrawn,
)
from matforge.engine.graph import TRANSITIONS, Graph
from matforge.model import ChoreState, Failure, FailureKind, UsageError

BLOCKED, READY, RUNNING = ChoreState.BLOCKED, ChoreState.READY, ChoreState.RUNNING
COMPLETED, FAILED, CANCELLED = ChoreState.COMPLETED, ChoreState.FAILED, ChoreState.CANCELLED

BOOM = Failure(FailureKind.EXCEPTION, "boom")
GONE = Failure(FailureKind.WORKER_LOST, "gone")
OFF = Failure(FailureKind.NODE_LOST, "off")
LATE = Failure(FailureKind.WALLTIME, "the allocation ends")
UNFIT = Failure(FailureKind.DOES_NOT_FIT, "too wide")


def after(*events: Event) -> Graph:
    """A graph that has taken these events."""
    graph = Graph()
    for event in events:
        graph.handle(event)
        graph.check()
    return graph


def running(name: str, number: int = 1) -> tuple[Event, ...]:
    """Events after which a chore without inputs is in its ``number``-th attempt."""
    begin: tuple[Event, ...] = (Added(name), Offered(1), Started(name, 1))
    for n in range(1, number):
        begin += (Lost(name, n, GONE), Offered(1), Started(name, n + 1))
    return begin


# ---------------------------------------------------------------- every transition

WAYS: dict[tuple[ChoreState | None, ChoreState], list[tuple[Event, ...]]] = {
    (None, BLOCKED): [(Added("a"), Added("x", ("a",)))],
    (None, READY): [(Added("x"),), (*running("a"), Succeeded("a", 1), Added("x", ("a",)))],
    (None, FAILED): [(Added("x", unfit=UNFIT),), (*running("a"), Failed("a", 1, BOOM), Added("x", ("a",)))],
    (None, CANCELLED): [(Added("a"), Cancelled("a"), Added("x", ("a",)))],
    (BLOCKED, READY): [(*running("a"), Added("x", ("a",)), Succeeded("a", 1))],
    (BLOCKED, FAILED): [(*running("a"), Added("x", ("a",)), Failed("a", 1, BOOM))],
    (BLOCKED, CANCELLED): [
        (Added("a"), Added("x", ("a",)), Cancelled("x")),
        (Added("a"), Added("x", ("a",)), Cancelled("a")),
    ],
    (READY, RUNNING): [(Added("x"), Offered(1)), (Added("x"), Started("x", 3))],
    (READY, CANCELLED): [(Added("x"), Cancelled("x"))],
    (RUNNING, READY): [(*running("x"), Lost("x", 1, GONE))],
    (RUNNING, COMPLETED): [(*running("x"), Succeeded("x", 1))],
    (RUNNING, FAILED): [(*running("x"), Failed("x", 1, BOOM)), (*running("x", 3), Lost("x", 3, GONE))],
    (RUNNING, CANCELLED): [
        (*running("x"), Cancelled("x"), Failed("x", 1, BOOM)),
        (*running("x"), Cancelled("x"), Lost("x", 1, GONE)),
        (*running("x"), Failed("x", 1, Failure(FailureKind.CANCELLED, "by hand"))),
    ],
    (RUNNING, BLOCKED): [
        (
            Added("a"),
            Started("a", 1),
            Succeeded("a", 1),
            Added("x", ("a",)),
            Started("x", 1),
            Spoiled("a"),
            Lost("x", 1, GONE),
        ),
    ],
    (COMPLETED, READY): [(*running("x"), Succeeded("x", 1), Spoiled("x"))],
}


@pytest.mark.parametrize(("before", "final"), TRANSITIONS)
def test_every_legal_transition_can_be_reached(before: ChoreState | None, final: ChoreState) -> None:
    for *earlier, last in WAYS[before, final]:
        graph = after(*earlier)
        node = graph.nodes.get("x")
        assert (node.state if node else None) is before
        graph.handle(last)
        graph.check()
        assert graph.nodes["x"].state is final


def test_every_transition_says_when_it_happens() -> None:
    assert all(TRANSITIONS.values())
    final = [(source, after) for source, after in TRANSITIONS if source is not None and source.final]
    assert final == [(COMPLETED, READY)]


def test_an_illegal_transition_is_refused() -> None:
    graph = after(*running("x"), Succeeded("x", 1))
    with pytest.raises(AssertionError, match="not a legal transition"):
        graph._move(graph.nodes["x"], RUNNING)


# ---------------------------------------------------------------- single behaviours


def test_chores_are_submitted_by_nice_and_then_by_age() -> None:
    graph = after(Added("a"), Added("b", nice=1), Added("c", nice=-1), Added("d"))
    assert [i.id for i in graph.handle(Offered(9)) if isinstance(i, Submit)] == ["c", "a", "d", "b"]


def test_no_more_than_what_was_offered_is_submitted() -> None:
    graph = after(Added("a"), Added("b"), Added("c"))
    assert len(graph.handle(Offered(2))) == 2
    assert graph.handle(Offered(0)) == []
    assert graph.next_ready() == "c"


def test_a_changed_priority_counts_for_a_chore_that_is_still_blocked() -> None:
    graph = after(*running("a"), Added("x", ("a",)), Added("y", ("a",)), Reprioritised("y", -1))
    graph.handle(Succeeded("a", 1))
    assert graph.next_ready() == "y"


def test_a_chore_reprioritised_to_and_fro_is_submitted_once() -> None:
    graph = after(Added("x"), *(Reprioritised("x", n % 3) for n in range(20)))
    assert graph.handle(Offered(30)) == [Submit("x", 1)]
    graph.handle(Lost("x", 1, GONE))
    assert graph.handle(Offered(30)) == [Submit("x", 2)]


def test_reports_about_stale_attempts_are_discarded() -> None:
    graph = after(*running("x", 2))
    late = (Started("x", 1), Succeeded("x", 1), Failed("x", 1, BOOM), Lost("x", 1, GONE))
    for event in (*late, Succeeded("x", 3), Started("x", 5)):
        assert graph.handle(event) == []
    assert graph.nodes["x"].state is RUNNING
    assert graph.nodes["x"].number == 2


@pytest.mark.parametrize(
    "event", [Started("?", 1), Succeeded("?", 1), Failed("?", 1, BOOM), Lost("?", 1, GONE), Cancelled("?"),
              Reprioritised("?", 1)]
)  # fmt: skip
def test_events_about_chores_that_do_not_exist_change_nothing(event: Event) -> None:
    graph = after(Added("x"))
    assert graph.handle(event) == []
    assert graph.nodes.keys() == {"x"}


def test_a_chore_cannot_be_added_twice_nor_need_one_that_does_not_exist() -> None:
    graph = after(Added("x"))
    with pytest.raises(UsageError, match="x was added twice"):
        graph.handle(Added("x"))
    with pytest.raises(UsageError, match="needs the result of z"):
        graph.handle(Added("y", ("z",)))
    graph.check()
    assert graph.nodes.keys() == {"x"}


def test_an_input_that_is_named_twice_is_waited_for_once() -> None:
    graph = after(*running("a"), Added("x", ("a", "a")))
    graph.handle(Succeeded("a", 1))
    assert graph.nodes["x"].state is READY


def test_a_failure_names_its_root_all_the_way_down() -> None:
    graph = after(*running("a"), Added("b", ("a",)), Added("c", ("b",)), Added("d", ("a", "c")))
    published = [i for i in graph.handle(Failed("a", 1, BOOM)) if isinstance(i, Publish)]
    assert [(p.id, p.state) for p in published] == [(name, FAILED) for name in "abcd"]
    assert published[0].failure is BOOM
    for publish in published[1:]:
        assert publish.failure is not None
        assert publish.failure.kind is FailureKind.DEPENDENCY_FAILED
        assert publish.failure.root == "a"
    graph.handle(Added("e", ("d",)))
    assert graph.nodes["e"].failure == published[1].failure


def test_a_cancellation_reaches_all_that_depends_on_it() -> None:
    graph = after(Added("a"), Added("b", ("a",)), Added("c", ("b",)), Added("other"))
    published = graph.handle(Cancelled("a"))
    assert [(p.id, p.state) for p in published if isinstance(p, Publish)] == [(n, CANCELLED) for n in "abc"]
    assert graph.nodes["c"].failure == Failure(
        FailureKind.CANCELLED, "a, which it needs, was cancelled.", root="a"
    )
    assert graph.open == 1


def test_a_running_chore_is_asked_to_stop_once_and_may_still_complete() -> None:
    graph = after(*running("x"), Added("y", ("x",)))
    assert graph.handle(Cancelled("x")) == [Cancel("x", 1)]
    assert graph.handle(Cancelled("x")) == []
    assert graph.handle(Succeeded("x", 1)) == [Publish("x", COMPLETED)]
    assert graph.nodes["y"].state is READY


def test_a_chore_that_kills_its_slot_again_and_again_is_set_aside() -> None:
    graph = Graph(max_losses=2)
    graph.handle(Added("x"))
    for number in (1, 2):
        assert graph.handle(Offered(1)) == [Submit("x", number)]
        out = graph.handle(Lost("x", number, GONE))
    assert out == [Publish("x", FAILED, GONE)]


def test_a_chore_that_kills_its_node_is_suspected_with_others_and_set_aside_when_it_was_alone() -> None:
    graph = after(*(Added(name) for name in "abc"))
    for number in (1, 2):
        assert not any(graph.nodes[name].suspect for name in "abc")
        graph.handle(Offered(3))
        for name in "abc":
            graph.handle(Lost(name, number, OFF))
    assert graph.doubted == set("abc")
    assert all(graph.nodes[name].suspect for name in "abc")
    for number in (3, 4, 5):
        assert graph.handle(Offered(1)) == [Submit("a", number)]
        out = graph.handle(Lost("a", number, OFF, alone=True))
        assert graph.nodes["a"].suspect == graph.nodes["b"].suspect == (number < 5)
    assert out == [Publish("a", FAILED, OFF)]
    assert [graph.nodes[name].losses for name in "abc"] == [3, 0, 0]
    assert not graph.doubted  # it was this one, and no other


def test_a_chore_that_completes_is_no_longer_suspected() -> None:
    graph = after(*running("x"))
    for number in (1, 2):
        graph.handle(Lost("x", number, OFF))
        graph.handle(Offered(1))
    graph.handle(Succeeded("x", 3))
    graph.check()
    assert not graph.doubted


def test_the_run_finishes_once_and_again_after_something_was_added() -> None:
    graph = after(*running("x"))
    assert graph.handle(Settled()) == []
    graph.handle(Succeeded("x", 1))
    assert graph.handle(Settled()) == [Finish()]
    assert graph.handle(Settled()) == []
    graph.handle(Added("y"))
    assert graph.handle(Settled()) == []
    graph.handle(Cancelled("y"))
    assert graph.handle(Settled()) == [Finish()]


# ---------------------------------------------------------------- against a simple model


@dataclass
class Plain:
    """A chore of the model: no counters, no heap, nothing derived."""

    inputs: tuple[str, ...]
    nice: int
    state: ChoreState
    number: int = 0
    losses: int = 0
    cancelling: bool = False
    root: str | None = None


class Model:
    """What the graph should do, worked out the slow way."""

    def __init__(self) -> None:
        self.chores: dict[str, Plain] = {}

    def add(self, name: str, inputs: tuple[str, ...], nice: int, unfit: bool) -> None:
        chore = self.chores[name] = Plain(inputs, nice, BLOCKED)
        if unfit:
            chore.state = FAILED
        self.spread()

    def spread(self) -> None:
        """Let outcomes reach whoever waits for them, until nothing changes."""
        before = None
        while before != (before := [c.state for c in self.chores.values()]):
            for chore in self.chores.values():
                if chore.state is BLOCKED:
                    self._look(chore)

    def _look(self, chore: Plain) -> None:
        for name in chore.inputs:
            source = self.chores[name]
            if source.state in (FAILED, CANCELLED):
                chore.state, chore.root = source.state, source.root or name
                return
        if all(self.chores[name].state is COMPLETED for name in chore.inputs):
            chore.state = READY

    def queue(self) -> list[str]:
        """What is ready, in order."""
        names = list(self.chores)
        ready = [n for n in names if self.chores[n].state is READY]
        return sorted(ready, key=lambda n: (self.chores[n].nice, names.index(n)))

    def current(self, name: str, number: int) -> Plain | None:
        chore = self.chores[name]
        return chore if chore.state is RUNNING and chore.number == number else None

    def end(self, chore: Plain, state: ChoreState) -> None:
        chore.state, chore.cancelling = state, False
        self.spread()


class GraphMachine(RuleBasedStateMachine):
    """All events in any order, on the graph and on the model."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()
        self.model = Model()
        self.events: list[Event] = []
        self.answers: list[list[Any]] = []
        self.published: dict[str, ChoreState] = {}

    def send(self, event: Event) -> list[Any]:
        out = self.graph.handle(event)
        self.events.append(event)
        self.answers.append(out)
        for instruction in out:
            if isinstance(instruction, Publish):
                assert instruction.id not in self.published
                self.published[instruction.id] = instruction.state
        return out

    def pick(self, data: st.DataObject) -> tuple[str, Plain]:
        name = data.draw(st.sampled_from(sorted(self.model.chores)))
        return name, self.model.chores[name]

    def number_near(self, data: st.DataObject, chore: Plain) -> int:
        return chore.number + data.draw(st.sampled_from([0, 0, 0, 0, -1, 1]))

    @rule(data=st.data(), nice=st.integers(-2, 2), unfit=st.sampled_from([False] * 9 + [True]))
    def add(self, data: st.DataObject, nice: int, unfit: bool) -> None:
        known = list(self.model.chores)
        inputs = tuple(data.draw(st.lists(st.sampled_from(known), max_size=3))) if known else ()
        name = f"c{len(known)}"
        self.send(Added(name, inputs, nice, UNFIT if unfit else None))
        self.model.add(name, inputs, nice, unfit)

    @rule(count=st.integers(0, 4))
    def offer(self, count: int) -> None:
        expected = []
        for name in self.model.queue()[:count]:
            chore = self.model.chores[name]
            chore.state, chore.number = RUNNING, chore.number + 1
            expected.append(Submit(name, chore.number))
        assert self.send(Offered(count)) == expected

    @precondition(lambda self: self.model.chores)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        name, chore = self.pick(data)
        number = self.number_near(data, chore)
        self.send(Started(name, number))
        if chore.state is READY and number > chore.number:
            chore.state, chore.number = RUNNING, number
        assert self.graph.nodes[name].started or self.model.current(name, number) is None

    @precondition(lambda self: self.model.chores)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        name, chore = self.pick(data)
        number = self.number_near(data, chore)
        self.send(Succeeded(name, number))
        if self.model.current(name, number):
            self.model.end(chore, COMPLETED)

    @precondition(lambda self: self.model.chores)
    @rule(data=st.data(), kind=st.sampled_from([FailureKind.EXCEPTION, FailureKind.CANCELLED]))
    def fail(self, data: st.DataObject, kind: FailureKind) -> None:
        name, chore = self.pick(data)
        number = self.number_near(data, chore)
        self.send(Failed(name, number, Failure(kind, "why")))
        if self.model.current(name, number):
            stopped = chore.cancelling or kind is FailureKind.CANCELLED
            self.model.end(chore, CANCELLED if stopped else FAILED)

    @precondition(lambda self: self.model.chores)
    @rule(data=st.data(), failure=st.sampled_from([GONE, OFF, LATE]), alone=st.booleans())
    def lose(self, data: st.DataObject, failure: Failure, alone: bool) -> None:
        name, chore = self.pick(data)
        number = self.number_near(data, chore)
        self.send(Lost(name, number, failure, alone))
        if self.model.current(name, number):
            chore.losses += failure is GONE or (failure is OFF and alone)
            if chore.cancelling:
                self.model.end(chore, CANCELLED)
            elif chore.losses == self.graph.max_losses:
                self.model.end(chore, FAILED)
            else:
                chore.state = READY

    @precondition(lambda self: self.model.chores)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        name, chore = self.pick(data)
        number = self.number_near(data, chore)
        self.send(Withdrawn(name, number))
        if self.model.current(name, number):
            if chore.cancelling:
                self.model.end(chore, CANCELLED)
            else:
                chore.state = READY

    @precondition(lambda self: self.model.chores)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name, chore = self.pick(data)
        out = self.send(Cancelled(name))
        if chore.state is RUNNING:
            assert out == ([] if chore.cancelling else [Cancel(name, chore.number)])
            chore.cancelling = True
        elif not chore.state.final:
            self.model.end(chore, CANCELLED)

    @precondition(lambda self: self.model.chores)
    @rule(data=st.data(), nice=st.integers(-3, 3))
    def reprioritise(self, data: st.DataObject, nice: int) -> None:
        name, chore = self.pick(data)
        assert self.send(Reprioritised(name, nice)) == []
        chore.nice = nice

    @rule()
    def settle(self) -> None:
        out = self.send(Settled())
        if any(not chore.state.final for chore in self.model.chores.values()):
            assert out == []

    @invariant()
    def holds(self) -> None:
        self.graph.check()
        known = {name: (node.state, node.number) for name, node in self.graph.nodes.items()}
        assert known == {name: (chore.state, chore.number) for name, chore in self.model.chores.items()}
        assert self.graph.next_ready() == next(iter(self.model.queue()), None)
        final = {n: c.state for n, c in self.model.chores.items() if c.state.final}
        assert self.published == final

    def teardown(self) -> None:
        for name, chore in self.model.chores.items():
            if chore.root is not None:
                failure = self.graph.nodes[name].failure
                assert failure is not None
                assert failure.root == chore.root
        again = Graph()
        assert [again.handle(event) for event in self.events] == self.answers
        assert again.nodes == self.graph.nodes


GraphMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestGraphAgainstAModel = GraphMachine.TestCase


# ---------------------------------------------------------------- cost


def lines_run(work: Callable[[], None]) -> int:
    """How many lines of Python ``work`` executes: loops count, and nothing depends on the clock."""
    count = itertools.count()

    def trace(frame: Any, event: str, arg: Any) -> Any:
        if event == "line":
            next(count)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return next(count)


def drain(graph: Graph) -> None:
    """Run everything that can be run, four at a time."""
    while submits := graph.handle(Offered(4)):
        for submit in submits:
            assert isinstance(submit, Submit)
            graph.handle(Started(submit.id, submit.number))
            graph.handle(Succeeded(submit.id, submit.number))


def independent(n: int) -> None:
    graph = Graph()
    for i in range(n):
        graph.handle(Added(f"c{i}", nice=i % 7))
    drain(graph)


def chain(n: int) -> None:
    graph = Graph()
    for i in range(n):
        graph.handle(Added(f"c{i}", (f"c{i - 1}",) if i else ()))
    drain(graph)


def fan_out(n: int) -> None:
    graph = Graph()
    graph.handle(Added("root"))
    for i in range(n):
        graph.handle(Added(f"c{i}", ("root",)))
    drain(graph)


def fan_in(n: int) -> None:
    graph = Graph()
    for i in range(n):
        graph.handle(Added(f"c{i}"))
    graph.handle(Added("sum", tuple(f"c{i}" for i in range(n))))
    drain(graph)


def failing_chain(n: int) -> None:
    graph = Graph()
    for i in range(n):
        graph.handle(Added(f"c{i}", (f"c{i - 1}",) if i else ()))
    graph.handle(Offered(1))
    graph.handle(Failed("c0", 1, BOOM))


def reprioritised(n: int) -> None:
    graph = Graph()
    for i in range(n):
        graph.handle(Added(f"c{i}"))
    for i in range(5 * n):
        graph.handle(Reprioritised(f"c{i % n}", -i))
        graph.next_ready()
    drain(graph)


def lost_once(n: int) -> None:
    graph = Graph()
    for i in range(n):
        graph.handle(Added(f"c{i}"))
    for submit in graph.handle(Offered(n)):
        assert isinstance(submit, Submit)
        graph.handle(Lost(submit.id, submit.number, GONE))
    drain(graph)


SHAPES = (independent, chain, fan_out, fan_in, failing_chain, reprioritised, lost_once)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_no_step_costs_more_in_a_large_run(shape: Callable[[int], None]) -> None:
    small, large = lines_run(lambda: shape(200)), lines_run(lambda: shape(2000))
    assert large < 10.5 * small
