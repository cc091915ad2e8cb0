"""The Gaussian process: right formula, sensible points in flight, the optimum in a few calls."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matforge.strategies.bayes import Bayes, Model
from scipy import integrate, stats

from matforge import UsageError
from tests.strategies.objectives import (
    BOOM,
    BRANIN_MINIMUM,
    BRANIN_SPACE,
    RandomSearch,
    branin,
    continues_exactly,
    played,
    solved,
    state_of,
)


def on_branin(rng: random.Random, x: float, y: float) -> float:
    """Without noise."""
    return branin(x, y)


def wins_on_branin(folder: Path, seeds: range, budget: int) -> tuple[int, list[float]]:
    """How often it is better than random search of as many calls, and its regrets."""
    wins, regrets = 0, []
    for seed in seeds:
        strategy = Bayes("f", space=BRANIN_SPACE, budget=budget, parallel=3, seed=seed)
        solved(folder, on_branin, strategy)
        search = RandomSearch("f", BRANIN_SPACE, budget=budget, parallel=3, seed=seed)
        solved(folder, on_branin, search)
        assert strategy.best is not None
        wins += strategy.best["value"] < search.best
        regrets.append(strategy.best["value"] - BRANIN_MINIMUM)
    return wins, regrets


def test_it_beats_random_search_of_as_many_calls(folder: Path) -> None:
    wins, regrets = wins_on_branin(folder, range(8), 25)
    assert wins == 8  # by chance once in 256
    assert np.median(regrets) < 0.1


@pytest.mark.slow
def test_it_beats_random_search_of_as_many_calls_in_forty_pairs(folder: Path) -> None:
    wins, regrets = wins_on_branin(folder, range(40), 30)
    assert wins >= 37, f"it won {wins} of 40"
    assert np.median(regrets) < 0.01


def test_noise_is_fitted_and_the_largest_is_found_too(folder: Path) -> None:
    def function(rng: random.Random, x: float) -> float:
        return math.exp(-((x - 0.7) ** 2) / 0.02) + rng.gauss(0, 0.05)

    strategy = Bayes("f", space={"x": (0.0, 1.0)}, goal="max", budget=30, seed=1)
    solved(folder, function, strategy)
    assert strategy.best is not None
    assert abs(strategy.best["point"]["x"] - 0.7) < 0.1
    assert strategy.best["value"] > 0.85


def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of the unit square and a smooth function there."""
    points = np.random.default_rng(3).random((count, 2))
    return points, np.sin(5 * points[:, 0]) + points[:, 1] ** 2


def test_expected_improvement_is_the_mean_of_the_improvement() -> None:
    model = Model(*sample(12)).fit()
    where = np.random.default_rng(4).random((5, 2))
    mean, deviation = model.predict(where)
    target = float(mean.min()) + 0.1
    for found, m, s in zip(model.improvement(where, target), mean, deviation, strict=True):

        def gain(y: float, m: float = m, s: float = s) -> float:
            return (target - y) * float(stats.norm.pdf(y, m, s))

        expected, _ = integrate.quad(gain, m - 12 * s, target)
        assert found == pytest.approx(expected, abs=1e-7)


def test_the_model_predicts_a_smooth_function_and_knows_where_it_does_not() -> None:
    points, values = sample(40)
    model = Model(points, values).fit()
    where = np.random.default_rng(5).random((200, 2))
    mean, deviation = model.predict(where)
    truth = np.sin(5 * where[:, 0]) + where[:, 1] ** 2
    errors = mean * values.std() + values.mean() - truth
    assert np.sqrt(np.mean(errors**2)) < 0.02
    assert model.predict(np.array([[3.0, 3.0]]))[1] > 5 * deviation.mean()


def test_a_point_in_flight_is_not_tried_again() -> None:
    points, values = sample(12)
    model = Model(points, values).fit()
    first = model.best_point(random.Random(1))
    believing = model.believing([first])
    assert believing.predict(np.array([first]))[1] < 0.3 * model.predict(np.array([first]))[1]
    assert np.linalg.norm(np.subtract(first, believing.best_point(random.Random(1)))) > 0.01


def test_the_first_points_are_a_latin_hypercube() -> None:
    strategy = Bayes("f", space={"x": (0.0, 1.0), "y": (0.0, 1.0)}, initial=10, parallel=1)
    points = []
    for _ in range(10):
        points.append(strategy.ask(random.Random(0)))
        strategy.asked += 1
    for axis in zip(*points, strict=True):
        assert sorted(int(10 * u) for u in axis) == list(range(10))


def test_points_are_inside_the_space(folder: Path) -> None:
    space = {"x": (-3.0, -2.0), "y": (100.0, 101.0)}
    strategy = Bayes("f", space=space, budget=14, parallel=4)
    calls = solved(folder, lambda rng, x, y: x + y, strategy).calls
    assert all(-3 <= k["x"] <= -2 and 100 <= k["y"] <= 101 for _, k in calls)
    assert strategy.best is not None
    assert strategy.best["value"] < 97.2  # it runs into the corner


def test_where_calls_fail_it_looks_elsewhere(folder: Path) -> None:
    def function(rng: random.Random, x: float) -> Any:
        return BOOM if x < 0.5 else x

    strategy = Bayes("f", space={"x": (0.0, 1.0)}, budget=20, parallel=2, initial=4)
    session, _, objective = played(folder, function, strategy)
    assert session.engine.decisions.strategy_errors == []
    failed = sum(k["x"] < 0.5 for _, k in objective.calls)
    assert failed == strategy.summary()["failures"] < 10
    assert strategy.best is not None
    assert strategy.best["value"] < 0.6


def test_if_everything_fails_it_goes_on_at_random_and_has_no_best(folder: Path) -> None:
    strategy = Bayes("f", space={"x": (0.0, 1.0)}, budget=12)
    session, _, objective = played(folder, lambda rng, x: BOOM, strategy)
    assert session.engine.decisions.strategy_errors == []
    assert len({k["x"] for _, k in objective.calls}) == 12
    assert strategy.best is None


def test_a_constant_function_is_no_trouble(folder: Path) -> None:
    strategy = Bayes("f", space={"x": (0.0, 1.0)}, budget=10)
    solved(folder, lambda rng, x: 3.0, strategy)
    assert strategy.best is not None
    assert strategy.best["value"] == 3.0


def test_a_run_killed_after_any_record_goes_on_as_if_nothing_had_happened(folder: Path) -> None:
    def function(rng: random.Random, x: float, y: float) -> Any:
        return BOOM if rng.random() < 0.1 else branin(x, y)

    def make() -> Bayes:
        return Bayes("f", space=BRANIN_SPACE, budget=11, initial=6)

    assert continues_exactly(folder, function, make, every=3) == 11


def test_the_state_is_the_points_and_holds_no_class(folder: Path) -> None:
    strategy = Bayes("f", space=BRANIN_SPACE, budget=15)
    session, _, _ = played(folder, on_branin, strategy)
    state, length = state_of(session)
    assert "space" not in state
    assert len(state["points"]) == 15
    assert length < 1500


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "Bayes needs a space to search"),
        ({"space": {"x": ["a", "b"]}}, r"Bayes: space\['x'\] must be \(low, high\) with low < high"),
        ({"space": {"x": (2.0, 1.0)}}, r"Bayes: space\['x'\] must be \(low, high\) with low < high"),
        ({"space": {"x": (0.0, 1.0)}, "initial": 0}, "initial must be a whole number of at least 1, not 0"),
        ({"space": {"x": (0.0, 1.0)}, "goal": "low"}, "goal must be one of 'min', 'max', not 'low'"),
        ({"space": {"x": (0.0, 1.0)}, "budget": 2}, r"budget \(2\) must be at least parallel \(4\)"),
    ],
)
def test_parameters_that_cannot_work_are_refused_in_one_sentence(
    parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        Bayes("f", **parameters)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as if it were not installed
    with pytest.raises(UsageError, match=r"needs scikit-learn.*pip install 'matforge\[bayes\]'"):
        Bayes("f", space=BRANIN_SPACE)
