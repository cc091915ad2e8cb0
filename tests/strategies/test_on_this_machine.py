"""Strategies steer real chores on the local executor, from the public interface alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from matforge.strategies.thompson import Thompson
from matforge.strategies.until_precise import UntilPrecise

from matforge import Pipeline, RunFailedError


def test_thompson_sampling_finds_the_best_arm_of_real_chores(tmp_path: Path) -> None:
    pipe = Pipeline(basedir=tmp_path, executor="local", workers=2)

    @pipe.chore(name="pull")
    def pull(rate: float) -> bool:
        return random.random() < rate

    @pipe.chore(name="report")
    def report(found: list[dict[str, float]]) -> float:
        return max(found, key=lambda entry: entry["n"])["arm"]

    strategy = Thompson("pull", arms=[0.1, 0.9], budget=60, parallel=4, conclude="report")
    results = pipe.submit(processing_strategy=strategy, quiet=True).result(60)
    assert len(results) == 61
    assert strategy.best == 0.9
    assert [value for name, value in results.items() if "report" in name] == [0.9]


def test_a_mistake_in_a_strategy_ends_the_run_in_one_sentence(tmp_path: Path) -> None:
    pipe = Pipeline(basedir=tmp_path, executor="local", workers=1)

    @pipe.chore(name="simulate")
    def simulate() -> str:
        return "done"

    future = pipe.submit(processing_strategy=UntilPrecise("simulate", tolerance=1, parallel=1), quiet=True)
    with pytest.raises(RunFailedError, match="UntilPrecise needs a number, but chore-simulate-0001 gave str"):
        future.result(60)
