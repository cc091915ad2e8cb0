"""Thompson sampling: right posteriors, most pulls for the best arm, more reward than random search."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from matforge.strategies.thompson import Thompson
from scipy import stats

from matforge import UsageError
from tests.harness import outcome
from tests.strategies.objectives import (
    BOOM,
    RandomSearch,
    continues_exactly,
    error_of,
    played,
    solved,
    state_of,
)

RATES = (0.3, 0.4, 0.5, 0.6, 0.7)
ARMS = range(len(RATES))


def coin(rng: random.Random, arm: int) -> float:
    """One with the arm's rate."""
    return float(rng.random() < RATES[arm])


def gauss(rng: random.Random, arm: int) -> float:
    """Normal around the arm's rate."""
    return rng.gauss(RATES[arm], 0.3)


@pytest.mark.parametrize(
    ("posterior", "function", "told"), [("beta", coin, 29), ("normal", gauss, 31)], ids=["beta", "normal"]
)
def test_it_gains_more_than_random_search_and_finds_the_best_arm_as_often_as_is_told(
    folder: Path, posterior: Any, function: Any, told: int
) -> None:
    wins = right = 0
    for seed in range(40):
        strategy = Thompson("f", arms=ARMS, posterior=posterior, budget=100, seed=seed)
        pulled = [args[0] for args, _ in solved(folder, function, strategy).calls]
        search = RandomSearch("f", {"arm": list(ARMS)}, budget=100, seed=seed)
        drawn = [kwargs["arm"] for _, kwargs in solved(folder, function, search).calls]
        wins += sum(RATES[arm] for arm in pulled) > sum(RATES[arm] for arm in drawn)
        right += strategy.best == 4
    assert wins == 40
    assert right >= told, f"it found the best arm in {right} of 40"


def test_the_least_is_found_too(folder: Path) -> None:
    for posterior, function in (("beta", coin), ("normal", gauss)):
        strategy = Thompson("f", arms=ARMS, posterior=posterior, goal="min", budget=200)
        solved(folder, function, strategy)
        assert strategy.best in (0, 1)


def told(rewards: list[float], **parameters: Any) -> Thompson:
    """A strategy with one arm that has given these rewards."""
    strategy = Thompson("f", arms=[0], **parameters)
    for reward in rewards:
        trial = strategy.ask(random.Random(0))
        assert trial is not None
        strategy.tell(trial, reward)
    return strategy


def test_draws_have_the_distribution_of_the_posterior() -> None:
    rng = random.Random(2)
    beta = told([1.0, 1.0, 0.0, 0.5])
    draws = [beta._draw(0, rng) for _ in range(4000)]
    assert stats.kstest(draws, stats.beta(1 + 2.5, 1 + 1.5).cdf).pvalue > 0.01
    rewards = [1.0, 3.0, 2.0, 5.0, 4.0]
    normal = told(rewards, posterior="normal")
    draws = [normal._draw(0, rng) for _ in range(4000)]
    scale = (10.0 / (5 * 3)) ** 0.5  # the sum of squared deviations is 10
    assert stats.kstest(draws, stats.t(3, loc=3.0, scale=scale).cdf).pvalue > 0.01
    least = told(rewards, posterior="normal", goal="min")
    draws = [least._draw(0, rng) for _ in range(4000)]
    assert stats.kstest(draws, stats.t(3, loc=-3.0, scale=scale).cdf).pvalue > 0.01


@pytest.mark.parametrize("parallel", [1, 4, 13])
def test_each_arm_is_first_pulled_until_it_has_a_posterior(folder: Path, parallel: int) -> None:
    strategy = Thompson("f", arms=ARMS, posterior="normal", budget=15, parallel=parallel)
    calls = solved(folder, gauss, strategy, workers=3).calls
    assert Counter(args[0] for args, _ in calls) == dict.fromkeys(ARMS, 3)


def test_more_in_flight_than_first_pulls_are_spread_over_the_arms(folder: Path) -> None:
    strategy = Thompson("f", arms=ARMS, posterior="normal", budget=25, parallel=25)
    calls = solved(folder, gauss, strategy, workers=25).calls
    assert Counter(args[0] for args, _ in calls) == dict.fromkeys(ARMS, 5)


def test_equal_rewards_leave_no_doubt(folder: Path) -> None:
    strategy = Thompson("f", arms=ARMS, posterior="normal", budget=30, parallel=1)
    calls = solved(folder, lambda rng, arm: RATES[arm], strategy).calls
    assert Counter(args[0] for args, _ in calls)[4] == 3 + 15


def test_a_pull_gives_the_same_whenever_it_comes(folder: Path) -> None:
    seen: dict[str, Any] = {}
    counts = set()
    for salt, workers in ((0, 1), (1, 4), (2, 9)):
        times = random.Random(salt)
        strategy = Thompson("f", arms=ARMS, posterior="normal", budget=60)
        session, _, _ = played(
            folder, gauss, strategy, workers=workers, duration=lambda arm, t=times: t.uniform(1, 9)
        )
        counts.add(tuple(strategy.pulls))
        for key, found in outcome(session).items():
            assert seen.setdefault(key, found) == found
    assert len(counts) > 1, "the runs took different ways"


def test_an_arm_that_keeps_failing_is_pulled_no_more(folder: Path) -> None:
    def function(rng: random.Random, arm: int) -> Any:
        return BOOM if arm == 4 else coin(rng, arm)

    for posterior in ("beta", "normal"):
        strategy = Thompson("f", arms=ARMS, posterior=posterior, budget=80, parallel=2)
        session, _, objective = played(folder, function, strategy)
        assert session.engine.decisions.strategy_errors == []
        assert 3 <= sum(args[0] == 4 for args, _ in objective.calls) <= 4
        assert strategy.best != 4
        assert strategy.summary()[4]["mean"] is None


def test_if_all_arms_fail_it_ends_early(folder: Path) -> None:
    strategy = Thompson("f", arms=ARMS, posterior="normal", budget=1000)
    _, _, objective = played(folder, lambda rng, arm: BOOM, strategy)
    assert 15 <= len(objective.calls) <= 20
    assert strategy.best is None


def test_a_reward_that_is_no_rate_is_complained_of(folder: Path) -> None:
    said = error_of(folder, lambda rng, arm: 1.5, Thompson("f", arms=ARMS))
    assert "needs rewards between 0 and 1, but arm" in said
    assert "posterior='normal'" in said


@pytest.mark.parametrize("posterior", ["beta", "normal"])
def test_a_run_killed_after_any_record_goes_on_as_if_nothing_had_happened(
    folder: Path, posterior: Any
) -> None:
    def function(rng: random.Random, arm: int) -> Any:
        return BOOM if rng.random() < 0.1 else coin(rng, arm)

    def make() -> Thompson:
        return Thompson("f", arms=ARMS, posterior=posterior, budget=30)

    assert continues_exactly(folder, function, make, every=2) == 30


def test_the_state_does_not_hold_the_arms_and_does_not_grow(folder: Path) -> None:
    strategy = Thompson("f", arms=[f"an arm with a long name, number {i}" for i in range(20)], budget=200)
    session, _, _ = played(folder, lambda rng, arm: 0.5, strategy)
    state, length = state_of(session)
    assert "arms" not in state
    assert length < 2000


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "needs at least one arm"),
        ({"arms": []}, "needs at least one arm"),
        ({"arms": [1], "posterior": "gamma"}, "posterior must be one of 'beta', 'normal', not 'gamma'"),
        ({"arms": [1], "goal": "most"}, "goal must be one of 'min', 'max', not 'most'"),
        ({"arms": ARMS, "posterior": "normal", "budget": 14}, "a budget of 14 is too small for 5 arms"),
        ({"arms": ARMS, "budget": 3}, r"budget \(3\) must be at least parallel \(4\)"),
    ],
)
def test_parameters_that_cannot_work_are_refused_in_one_sentence(
    parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        Thompson("f", **parameters)
