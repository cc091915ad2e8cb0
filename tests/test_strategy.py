"""What a strategy is shown, what it may answer, and that its state survives."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from matforge.chore import Chore, ChoreSpec
from matforge.model import (
    ChoreState,
    Failure,
    FailureKind,
    Location,
    MatForgeError,
    OutputReference,
    UsageError,
)
from matforge.strategy import (
    AdaptiveStrategy,
    Cancel,
    Event,
    FutureProcessingStrategy,
    NonAdaptiveStrategy,
    Reprioritise,
    Spawn,
    Stop,
    View,
    decisions_of,
    freeze_state,
    thaw_state,
)

CHORE = Chore("chore-a-0001", "ab" * 32, "a", Location("x", 0, 0, 0))
SPEC = ChoreSpec((), None, "f")


@pytest.mark.parametrize(
    ("answer", "decisions"),
    [
        (None, []),
        ([], []),
        (SPEC, [Spawn(SPEC)]),
        (Cancel("x"), [Cancel("x")]),
        ([SPEC, Reprioritise("x", 1), Stop()], [Spawn(SPEC), Reprioritise("x", 1), Stop()]),
        ((d for d in [Stop("enough")]), [Stop("enough")]),
    ],
    ids=["nothing", "none", "a spec", "one decision", "several", "a generator"],
)
def test_an_answer_may_be_nothing_a_decision_a_spec_or_many(answer: Any, decisions: list[Any]) -> None:
    assert decisions_of(answer) == decisions


@pytest.mark.parametrize("answer", [3, "stop", [None], [Stop], {"x": 1}], ids=str)
def test_anything_else_is_refused_with_what_is_allowed(answer: Any) -> None:
    with pytest.raises(UsageError, match="it may answer with Spawn, Cancel, Reprioritise, Stop or ChoreSpec"):
        decisions_of(answer)


def test_an_event_reads_the_result_only_when_asked() -> None:
    reads: list[int] = []
    event = Event(CHORE, ChoreState.COMPLETED, {"x": 1}, load=lambda: reads.append(1) or 42)
    assert event.ok
    assert event.ref == OutputReference("chore-a-0001")
    assert reads == []
    assert event.result() == 42
    assert reads == [1]


@pytest.mark.parametrize("outcome", [ChoreState.FAILED, ChoreState.CANCELLED])
def test_an_event_without_a_result_says_why(outcome: ChoreState) -> None:
    event = Event(CHORE, outcome, {}, Failure(FailureKind.EXCEPTION, "boom"), load=lambda: 42)
    assert not event.ok
    with pytest.raises(MatForgeError, match=f"chore-a-0001 has no result: it {outcome.value}"):
        event.result()


def test_a_view_counts_and_knows_single_chores() -> None:
    counts: Counter[ChoreState] = Counter(
        {ChoreState.READY: 1, ChoreState.BLOCKED: 2, ChoreState.RUNNING: 4, ChoreState.COMPLETED: 8}
    )
    view = View(counts, {"chore-a-0001": ChoreState.RUNNING}.get)
    assert (view.pending, view.running, view.completed, view.failed) == (3, 4, 8, 0)
    counts[ChoreState.FAILED] += 1
    assert view.failed == 1
    assert view.state("chore-a-0001") is view.state(OutputReference("chore-a-0001")) is ChoreState.RUNNING
    assert view.state("chore-x-0009") is None


class Drawing(FutureProcessingStrategy):
    """Keeps a random generator."""

    def __init__(self) -> None:
        self.random = random.Random(1)
        self.drawn: list[float] = []

    def draw(self) -> float:
        """The next number."""
        self.drawn.append(self.random.random())
        return self.drawn[-1]


def test_random_numbers_go_on_where_they_were_after_a_resume() -> None:
    first = Drawing()
    first.draw()
    text = freeze_state(first)
    following = [first.draw() for _ in range(3)]
    again = Drawing()
    thaw_state(again, text)
    assert [again.draw() for _ in range(3)] == following
    assert again.drawn == first.drawn


def test_a_state_may_become_empty_again() -> None:
    strategy = FutureProcessingStrategy()
    strategy.x = 1  # type: ignore[attr-defined]
    filled = freeze_state(strategy)
    del strategy.x  # type: ignore[attr-defined]
    emptied = freeze_state(strategy)
    assert emptied is not None
    assert emptied != filled
    thaw_state(strategy, filled)
    thaw_state(strategy, emptied)
    assert strategy.__dict__ == {}


class Own(FutureProcessingStrategy):
    """Says itself what its state is."""

    def __init__(self, number: int | None) -> None:
        self.number = number
        self.cache = object()

    def get_state(self) -> Any:
        """A number."""
        return self.number

    def set_state(self, state: Any) -> None:
        """A number."""
        self.number = state


def test_a_strategy_may_say_itself_what_its_state_is() -> None:
    again = Own(0)
    thaw_state(again, freeze_state(Own(7)))
    assert again.number == 7
    assert freeze_state(Own(None)) is None
    thaw_state(again, None)
    assert again.number == 7


def test_the_base_class_and_the_built_in_strategies_decide_nothing() -> None:
    view, event = View({}, lambda name: None), Event(CHORE, ChoreState.COMPLETED, {})
    for strategy in (FutureProcessingStrategy(), AdaptiveStrategy(), NonAdaptiveStrategy()):
        assert list(strategy.on_start(view) or ()) == []
        assert decisions_of(strategy.on_event(view, event)) == []
    assert (AdaptiveStrategy.backfill, NonAdaptiveStrategy.backfill) == (True, False)
