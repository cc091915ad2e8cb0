"""Successive halving: the rule of the paper, no core idle, and better than random search at equal cost."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matforge.strategies.successive_halving import SuccessiveHalving

from matforge import UsageError
from matforge.model import RunState
from tests.strategies.objectives import (
    BOOM,
    BRANIN_SPACE,
    RandomSearch,
    branin,
    continues_exactly,
    played,
    solved,
    state_of,
)

SPACE = {"x": (0.0, 1.0)}


def learning(rng: random.Random, x: float, y: float, resource: int) -> float:
    """A curve that falls towards Branin's value; early values are biased and noisy."""
    return branin(x, y) / 50 + (1 + 0.3 * (x + 5) / 15 + rng.gauss(0, 0.02)) / resource


@pytest.mark.parametrize(("asynchronous", "told"), [(True, 35), (False, 36)])
def test_it_beats_random_search_of_the_same_cost_as_often_as_is_told(
    folder: Path, asynchronous: bool, told: int
) -> None:
    wins = 0
    for seed in range(40):
        halving = SuccessiveHalving("f", space=BRANIN_SPACE, seed=seed, asynchronous=asynchronous)
        assert sum(k["resource"] for _, k in solved(folder, learning, halving).calls) == 324
        search = RandomSearch("f", BRANIN_SPACE, budget=324 // 27, seed=seed)
        solved(folder, lambda rng, x, y: learning(rng, x, y, 27), search)
        assert halving.best is not None
        wins += branin(**halving.best["configuration"]) < branin(**search.point)
    assert wins >= told, f"it won {wins} of 40"


def best_rule(
    losses: list[dict[int, float]], promoted: list[set[int]], eta: int, left: int
) -> tuple[int, int] | None:
    """Which configuration the paper's get_job promotes, to which rung: sets, as it is written there."""
    for k in reversed(range(len(losses) - 1)):
        ranked = sorted(losses[k], key=lambda i: (losses[k][i], i))
        candidates = [i for i in ranked[: len(ranked) // eta] if i not in promoted[k]]
        if candidates and eta ** (k + 1) <= left:
            return candidates[0], k + 1
    return None


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.integers(0, 100), st.randoms(use_true_random=False))
def test_what_is_promoted_is_what_the_paper_says(eta: int, more: int, chance: random.Random) -> None:
    left = 3 * eta**2 + more
    strategy = SuccessiveHalving("f", space=SPACE, total=left, eta=eta, max_resource=eta**2, parallel=1)
    losses: list[dict[int, float]] = [{} for _ in range(3)]
    promoted: list[set[int]] = [set() for _ in range(3)]
    flying: list[tuple[int, int]] = []
    drawn = 0
    while flying or left:
        trial = strategy.ask(chance)
        if (expected := best_rule(losses, promoted, eta, left)) is not None:
            assert trial == expected
            promoted[expected[1] - 1].add(expected[0])
        elif left:
            assert trial == (drawn, 0)
            drawn += 1
        else:
            assert trial is None
        if trial is not None:
            left -= eta ** trial[1]
            flying.append(trial)
        if trial is None or chance.random() < 0.6:
            number, k = flying.pop(chance.randrange(len(flying)))
            losses[k][number] = float(chance.randrange(6))  # ties are decided by the number
            strategy.tell((number, k), losses[k][number])


def test_rung_by_rung_exactly_the_best_go_on(folder: Path) -> None:
    strategy = SuccessiveHalving(
        "f", space=SPACE, total=92, max_resource=9, asynchronous=False, resource="steps"
    )
    calls = solved(folder, lambda rng, x, steps: x, strategy, duration=lambda x, steps: 1 + (7 * x) % 3).calls
    by_steps = {n: sorted(k["x"] for _, k in calls if k["steps"] == n) for n in (1, 3, 9)}
    assert {n: len(found) for n, found in by_steps.items()} == {1: 30, 3: 10, 9: 3}
    assert by_steps[3] == by_steps[1][:10]
    assert by_steps[9] == by_steps[1][:3]
    assert strategy.best == {"configuration": {"x": by_steps[1][0]}, "resource": 9, "value": by_steps[1][0]}
    assert strategy.summary()["rungs"] == {1: 30, 3: 10, 9: 3}


def idle(folder: Path, asynchronous: bool) -> float:
    """Fraction of 32 cores' time that is idle, with durations that differ a hundredfold."""
    strategy = SuccessiveHalving("f", space=SPACE, total=3240, parallel=32, asynchronous=asynchronous)
    spent = []

    def duration(x: float, resource: int) -> float:
        spent.append(resource * 10 ** (2 * (7 * x % 1) - 1))
        return spent[-1]

    _, executor, _ = played(folder, lambda rng, x, resource: x, strategy, workers=32, duration=duration)
    return 1 - sum(spent) / (32 * (executor.now() - 1.7e9))


def test_no_core_waits_for_a_rung(folder: Path) -> None:
    waiting, promoting = idle(folder, False), idle(folder, True)
    assert promoting < 0.75 * waiting


def test_as_long_as_there_is_something_to_spend_all_cores_have_work(folder: Path) -> None:
    flying: list[int] = []

    class Watched(SuccessiveHalving):
        """Notes how many calls are in flight after each answer."""

        def on_event(self, view: Any, event: Any) -> Any:
            """As before."""
            answer = super().on_event(view, event)
            if self.spent < self.total:
                flying.append(len(self.open))
            return answer

    strategy = Watched("f", space=SPACE, parallel=8, max_resource=9)
    solved(folder, lambda rng, x, resource: x, strategy, workers=8, duration=lambda x, resource: 1 + 9 * x)
    assert len(flying) > 100
    assert set(flying) == {8}


def test_a_promoted_configuration_is_given_what_it_had_before(folder: Path) -> None:
    strategy = SuccessiveHalving(
        "f", space=SPACE, total=27, max_resource=9, carry="before", asynchronous=False
    )
    session, _, objective = played(folder, lambda rng, x, resource, before: x, strategy)
    assert {(k["resource"], k["before"]) for _, k in objective.calls} == {
        (1, None), (3, "<a result>"), (9, "<a result>"),
    }  # fmt: skip
    chores = [record.chore for record in session.engine.records.values()]
    last = next(c for c in chores if c.inputs and len(chores) == int(c.id[-4:]))
    (before,) = last.inputs
    (first,) = session.engine.records[before].chore.inputs
    assert session.engine.records[first].chore.inputs == ()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_fails_is_not_promoted_and_holds_nothing_up(folder: Path, asynchronous: bool) -> None:
    def function(rng: random.Random, x: float, resource: int) -> Any:
        return BOOM if x < 0.3 else x

    strategy = SuccessiveHalving("f", space=SPACE, total=81, max_resource=9, asynchronous=asynchronous)
    session, _, objective = played(folder, function, strategy)
    assert session.manager.status.state is RunState.FAILED
    assert session.engine.decisions.strategy_errors == []
    assert not [k for _, k in objective.calls if k["resource"] > 1 and k["x"] < 0.3]
    assert strategy.best is not None
    assert strategy.best["resource"] == 9
    assert strategy.best["configuration"]["x"] == min(k["x"] for _, k in objective.calls if k["x"] >= 0.3)


def test_where_everything_fails_it_ends_and_has_no_best(folder: Path) -> None:
    strategy = SuccessiveHalving("f", space=SPACE, total=27, max_resource=9)
    _, _, objective = played(folder, lambda rng, x, resource: BOOM, strategy)
    assert len(objective.calls) == 27
    assert strategy.best is None


def test_the_largest_is_found_too_and_configurations_may_be_anything(folder: Path) -> None:
    strategy = SuccessiveHalving(
        "f", space=lambda rng: rng.randrange(1000), total=81, max_resource=9, goal="max", asynchronous=False
    )
    calls = solved(folder, lambda rng, number, resource: number, strategy).calls
    best = max(args[0] for args, _ in calls)
    assert strategy.best == {"configuration": best, "resource": 9, "value": best}


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_run_killed_after_any_record_goes_on_as_if_nothing_had_happened(
    folder: Path, asynchronous: bool
) -> None:
    def function(rng: random.Random, x: float, resource: int, before: Any) -> Any:
        return BOOM if rng.random() < 0.1 else x + rng.random() / resource

    def make() -> SuccessiveHalving:
        return SuccessiveHalving(
            "f", space=lambda rng: {"x": rng.random()}, total=54, max_resource=9, carry="before",
            asynchronous=asynchronous,
        )  # fmt: skip

    assert continues_exactly(folder, function, make, every=2) > 20


def test_the_state_grows_by_some_bytes_a_configuration_and_holds_no_class(folder: Path) -> None:
    strategy = SuccessiveHalving("f", space=SPACE, total=600)
    session, _, _ = played(folder, lambda rng, x, resource: x, strategy)
    state, length = state_of(session)
    assert "space" not in state
    assert length < 40 * state["drawn"]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "needs a space to search"),
        ({"space": {}}, "needs a space to search"),
        ({"space": {"x": (1, 1)}}, r"space\['x'\] must be \(low, high\) with low < high"),
        ({"space": {"x": (0, math.inf)}}, r"space\['x'\] must be \(low, high\)"),
        ({"space": {"x": []}}, r"space\['x'\] must be \(low, high\) or a list of choices"),
        ({"space": {"x": 3}}, r"space\['x'\] must be \(low, high\) or a list of choices"),
        ({"space": SPACE, "total": 107}, "a total of 107 is too small.* must be at least 108"),
        ({"space": SPACE, "parallel": 400}, "a total of 324 is too small for 400 calls in parallel"),
        ({"space": SPACE, "eta": 1}, "eta must be a whole number of at least 2, not 1"),
        ({"space": SPACE, "min_resource": 9, "max_resource": 3}, r"max_resource \(3\) must be at least"),
        ({"space": SPACE, "goal": "best"}, "goal must be one of 'min', 'max', not 'best'"),
    ],
)
def test_parameters_that_cannot_work_are_refused_in_one_sentence(
    parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        SuccessiveHalving("f", **parameters)
