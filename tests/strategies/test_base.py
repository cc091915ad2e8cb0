"""The ask/tell base: all that is asked is told once, and never is more in flight than allowed."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matforge.strategies import load, names
from matforge.strategies.base import AskTell, draw, welford

from matforge import UsageError
from matforge.executors.simulated import Outcome
from matforge.model import Failure, FailureKind
from tests.harness import call, outcome, play, scratch
from tests.strategies.objectives import (
    BOOM,
    Objective,
    RandomSearch,
    continues_exactly,
    error_of,
    played,
    solved,
    state_of,
)


class Climb(AskTell):
    """Steps from the best point so far: the example of the documents."""

    best = (math.inf, 0.0)

    def ask(self, rng: random.Random) -> float:
        """A point near the best."""
        return rng.gauss(self.best[1], 0.3)

    def tell(self, trial: float, value: float) -> None:
        """Keep the best."""
        self.best = min(self.best, (value, trial))


class Recorder(AskTell):
    """Asks for whole numbers and remembers what came of them."""

    def __init__(self, chore: str = "f", **parameters: Any) -> None:
        super().__init__(chore, **parameters)
        self.told: list[tuple[Any, Any]] = []
        self.draws: dict[int, float] = {}
        self.most = 0

    def ask(self, rng: random.Random) -> Any:
        """The next number."""
        self.draws[self.asked] = rng.random()
        self.most = max(self.most, len(self.open) + 1)
        return self.asked

    def tell(self, trial: Any, value: Any) -> None:
        """Remember the value."""
        self.told.append((trial, value))

    def tell_failure(self, trial: Any, failure: Failure | None) -> None:
        """Remember the kind of failure."""
        self.told.append((trial, failure.kind if failure else None))


class Raw(Recorder):
    """Takes whatever the chore returned."""

    numeric = False


def parabola(rng: random.Random, x: float) -> float:
    """Least at 2."""
    return (x - 2) ** 2


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(1, 5),
    st.integers(0, 25),
    st.integers(1, 6),
    st.integers(0, 9),
    st.floats(0, 0.6),
    st.booleans(),
)
def test_everything_asked_is_told_exactly_once_and_no_more_is_in_flight_than_allowed(
    parallel: int, more: int, workers: int, salt: int, failing: float, threaded: bool
) -> None:
    chance = random.Random(salt)
    fates: dict[int, Any] = {}

    def function(rng: random.Random, number: int) -> Any:
        fates[number] = BOOM if chance.random() < failing else float(number)
        return Outcome(chance.uniform(0.1, 9), fates[number]) if fates[number] is not BOOM else BOOM

    strategy = Recorder(budget=parallel + more, parallel=parallel)
    folder = scratch()
    try:
        session, _, _ = played(folder, function, strategy, workers=workers, threaded=threaded)
    finally:
        shutil.rmtree(folder)
    assert session.engine.decisions.strategy_errors == []
    assert sorted(number for number, _ in strategy.told) == list(range(parallel + more))
    assert dict(strategy.told) == {n: BOOM.kind if v is BOOM else v for n, v in fates.items()}
    assert strategy.most == parallel
    assert strategy.open == {}


def test_the_random_numbers_of_an_ask_do_not_depend_on_who_was_faster(folder: Path) -> None:
    seen = []
    for salt, workers in ((0, 1), (1, 3), (2, 8)):
        times = random.Random(salt)
        strategy = Recorder(budget=20, parallel=5, seed=3)
        solved(folder, lambda rng, n, t=times: Outcome(t.uniform(1, 9), n), strategy, workers=workers)
        seen.append(strategy.draws)
    assert seen[0] == seen[1] == seen[2]
    other = Recorder(budget=20, parallel=5, seed=4)
    solved(folder, lambda rng, n: n, other)
    assert not set(other.draws.values()) & set(seen[0].values())


def test_a_strategy_of_six_lines_finds_the_optimum_where_random_search_does_not(folder: Path) -> None:
    wins = 0
    for seed in range(20):
        climb = Climb("f", budget=80, parallel=3, seed=seed)
        solved(folder, parabola, climb)
        search = RandomSearch("f", {"x": (-10.0, 10.0)}, budget=80, parallel=3, seed=seed)
        solved(folder, parabola, search)
        wins += climb.best[0] < search.best
    assert wins >= 18


@pytest.mark.parametrize("make", [lambda: Climb("f", budget=15), lambda: Recorder(budget=12)])
def test_a_run_killed_after_any_record_goes_on_as_if_nothing_had_happened(
    folder: Path, make: Callable[[], AskTell]
) -> None:
    def function(rng: random.Random, x: float) -> Any:
        return BOOM if rng.random() < 0.2 else x * x

    continues_exactly(folder, function, make)


def test_the_state_is_small_and_holds_no_class(folder: Path) -> None:
    strategy = Climb("f", budget=60, parallel=4)
    session, _, _ = played(folder, parabola, strategy)
    state, length = state_of(session)
    assert set(state) == {"asked", "open", "concluded", "best"}
    assert length < 300


@pytest.mark.parametrize(
    ("trial", "seen"),
    [
        ({"x": 1, "y": 2}, ((), {"x": 1, "y": 2})),
        ((1, 2), ((1, 2), {})),
        (3, ((3,), {})),
        ([1, 2], (([1, 2],), {})),
        ((), ((), {})),
    ],
    ids=str,
)
def test_a_trial_is_spread_over_the_arguments(folder: Path, trial: Any, seen: Any) -> None:
    class One(AskTell):
        def ask(self, rng: random.Random) -> Any:
            return trial

    assert solved(folder, lambda rng, *a, **k: 0, One("f", budget=1, parallel=1)).calls == [seen]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (2, 2.0), (True, 1.0), (np.float32(0.5), 0.5), (np.array(3), 3.0),
        (math.nan, None), (math.inf, None), (np.float64("nan"), None),
    ],
    ids=str,
)  # fmt: skip
def test_any_finite_number_is_told_and_what_is_not_finite_is_a_failure(
    folder: Path, value: Any, told: Any
) -> None:
    strategy = Recorder(budget=1, parallel=1)
    solved(folder, lambda rng, n: value, strategy)
    assert strategy.told == [(0, told)]


@pytest.mark.parametrize("value", ["3", None, [1.0], {"x": 1}, 1j, np.array([1.0])], ids=str)
def test_what_is_no_number_is_complained_of_in_one_sentence(folder: Path, value: Any) -> None:
    said = error_of(folder, lambda rng, n: value, Recorder(budget=9, parallel=2))
    assert "Recorder needs a number, but chore-f-0001 gave " + type(value).__name__ in said
    assert "objective=" in said
    assert "\n" not in said


def test_a_strategy_may_take_whatever_the_chore_returned(folder: Path) -> None:
    strategy = Raw(budget=2, parallel=1)
    solved(folder, lambda rng, n: {"n": n}, strategy)
    assert strategy.told == [(0, {"n": 0}), (1, {"n": 1})]


def test_the_objective_is_an_entry_of_the_report_or_else_of_the_result(folder: Path) -> None:
    strategy = Recorder(budget=1, parallel=1, objective="loss")
    solved(folder, lambda rng, n: Outcome(1.0, "large", {"loss": 0.25}), strategy)
    assert strategy.told == [(0, 0.25)]
    strategy = Recorder(budget=1, parallel=1, objective="loss")
    solved(folder, lambda rng, n: {"loss": 0.5}, strategy)
    assert strategy.told == [(0, 0.5)]
    for wrong in ({"lost": 1}, 3.0, "text"):
        strategy = Recorder(budget=1, parallel=1, objective="loss")
        said = error_of(folder, lambda rng, n, w=wrong: w, strategy)
        assert "neither the report nor the result of chore-f-0001 has an entry 'loss'" in said


def test_an_unknown_chore_is_told_with_the_nearest_one_before_work_starts(folder: Path) -> None:
    for strategy in (Climb("simulat"), Climb("simulate", conclude="simulat")):
        with pytest.raises(
            UsageError, match=r"Climb calls 'simulat', which .* \(did you mean 'simulate'\?\)\."
        ):
            played(folder, parabola, strategy, names=("simulate",))
    assert list(folder.iterdir()) == []


def test_chores_of_others_are_none_of_its_business(folder: Path) -> None:
    strategy = Recorder(budget=6, parallel=2)
    others = [call("f", 100 + i) for i in range(5)]
    objective = Objective(lambda rng, n: n)
    session, _ = play(folder, others, objective, strategy, workers=2)
    session.wait(60)
    assert sorted(strategy.told) == [(i, i) for i in range(6)]
    assert len(objective.calls) == 11


def test_what_is_cancelled_is_told_as_a_failure(folder: Path) -> None:
    strategy = Recorder(budget=3, parallel=1)
    cancelled = Failure(FailureKind.CANCELLED, "Cancelled.")
    played(folder, lambda rng, n: cancelled if n == 1 else n, strategy)
    assert strategy.told == [(0, 0), (1, FailureKind.CANCELLED), (2, 2)]


def test_an_ask_that_gives_none_waits_for_what_is_in_flight_and_ends_if_nothing_is(folder: Path) -> None:
    class Pairs(Recorder):
        """Two at a time, four in all."""

        def ask(self, rng: random.Random) -> Any:
            """None while a pair is complete but has not ended."""
            if self.asked == 4 or (self.asked == 2 and len(self.told) < 2):
                return None
            return super().ask(rng)

    strategy = Pairs(budget=50, parallel=4)
    _, executor, _ = played(folder, lambda rng, n: n, strategy, duration=lambda n: 1.0 + n)
    assert sorted(strategy.told) == [(i, i) for i in range(4)]
    assert executor.now() - 1.7e9 == pytest.approx(2 + 4)


def test_the_summary_is_given_to_a_chore_at_the_end_once(folder: Path) -> None:
    class Counting(Recorder):
        """Its summary is what was told."""

        def summary(self) -> Any:
            """Sorted, because the order of endings does not matter."""
            return sorted(self.told)

    seen: list[Any] = []

    def function(rng: random.Random, argument: Any) -> Any:
        if isinstance(argument, list):
            seen.append(argument)
        return 1.0

    strategy = Counting(budget=5, parallel=2, conclude="g")
    played(folder, function, strategy, names=("f", "g"))
    assert seen == [[(i, 1.0) for i in range(5)]]
    count = continues_exactly(folder, function, lambda: Counting(budget=5, parallel=2, conclude="f"))
    assert count == 6


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "Climb needs the name of the chore to call"),
        ({"chore": 3}, "Climb needs the name of the chore to call"),
        ({"chore": "f", "budget": 3, "parallel": 4}, r"budget \(3\) must be at least parallel \(4\)"),
        ({"chore": "f", "parallel": 0}, "parallel must be a whole number of at least 1, not 0"),
        ({"chore": "f", "budget": 2.5}, "budget must be a whole number of at least 1, not 2.5"),
        ({"chore": "f", "budget": True}, "budget must be a whole number of at least 1, not True"),
        ({"chore": "f", "seed": -1}, "seed must be a whole number of at least 0, not -1"),
    ],
)
def test_parameters_that_cannot_work_are_refused_in_one_sentence(
    parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        Climb(**parameters)


def test_two_trials_with_one_key_are_refused_rather_than_lost(folder: Path) -> None:
    class Twins(Recorder):
        """Every trial has the same key."""

        def key(self, trial: Any, number: int) -> str:
            """The same."""
            return "x"

    assert "two trials in flight have the key 'Twins/f/0/x'" in error_of(
        folder, lambda rng, n: n, Twins(budget=3, parallel=2)
    )


@pytest.mark.parametrize("name", ["successive_halving", "thompson", "bayes", "until_precise"])
def test_without_its_parameters_a_strategy_says_what_it_needs_and_how(name: str) -> None:
    assert name in names()
    with pytest.raises(UsageError, match=r"needs the name of the chore to call.*--strategy FILE\.py:Class"):
        load(name)()


def test_the_base_is_no_strategy_that_could_be_run() -> None:
    assert "base" not in names()
    with pytest.raises(UsageError, match="There is no strategy 'base'"):
        load("base")


def test_a_strategy_is_loaded_from_a_file_with_parameters_of_its_own(folder: Path) -> None:
    path = folder / "mine.py"
    path.write_text(
        "from matforge.strategies.thompson import Thompson\n"
        "class Mine(Thompson):\n"
        "    def __init__(self):\n"
        "        super().__init__('f', arms=[0.2, 0.9], budget=30)\n"
    )
    strategy = load(f"{path}:Mine")()
    session, _, objective = played(folder, lambda rng, p: float(rng.random() < p), strategy)
    assert session.engine.decisions.strategy_errors == []
    assert len(objective.calls) == 30
    assert strategy.best == 0.9


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40))
def test_moments_are_those_of_numpy(values: list[float]) -> None:
    moments = (0, 0.0, 0.0)
    for value in values:
        moments = welford(moments, value)
    assert moments[0] == len(values)
    assert moments[1] == pytest.approx(np.mean(values), rel=1e-9, abs=1e-6)
    assert moments[2] / len(values) == pytest.approx(np.var(values), rel=1e-6, abs=1e-3)


def test_points_are_drawn_from_the_whole_space() -> None:
    rng = random.Random(1)
    points = [draw({"x": (-1.0, 1.0), "kind": ["a", "b"]}, rng) for _ in range(300)]
    assert {p["kind"] for p in points} == {"a", "b"}
    assert all(-1 <= p["x"] <= 1 for p in points)
    assert min(p["x"] for p in points) < -0.95
    assert max(p["x"] for p in points) > 0.95
    assert draw(lambda rng: "own", rng) == "own"


def test_nothing_of_an_ended_run_is_kept_open(folder: Path) -> None:
    strategy = Recorder(budget=8, parallel=8)
    session, _, _ = played(folder, lambda rng, n: n, strategy, workers=2)
    assert len(outcome(session)) == 8
    assert state_of(session)[0]["open"] == {}
