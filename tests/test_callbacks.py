"""``@pipe.strategy``: functions that are called, as chores, with what others return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from matforge import ChoreSpec, Pipeline, Resources, RunFailedError, UsageError


def guess(low: int, high: int, number: int = 1) -> dict[str, int]:
    """The middle."""
    return {"guess": (low + high) // 2, "low": low, "high": high, "number": number}


def test_a_strategy_follows_a_chain_of_chores_to_its_end(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, workers=2)
    ask = pipe.chore()(guess)
    wanted = 77

    @pipe.strategy(bolo_list=["guess"])
    def higher_or_lower(last: dict[str, int], wanted: int = wanted) -> Any:
        if last["guess"] == wanted:
            return None
        low, high = (
            (last["guess"] + 1, last["high"]) if last["guess"] < wanted else (last["low"], last["guess"] - 1)
        )
        return ChoreSpec(
            args=(low, high, last["number"] + 1), kwargs=None, resources=Resources(), qualname="guess"
        )

    ask(1, 100)
    results = pipe.submit(quiet=True).result(120)
    guesses = [v for v in results.values() if isinstance(v, dict)]
    assert guesses[-1]["guess"] == wanted
    assert [g["number"] for g in guesses] == list(range(1, len(guesses) + 1))
    assert sum("higher_or_lower" in name for name in results) == len(guesses)


def test_a_strategy_may_spawn_several_and_two_may_watch_the_same(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, workers=2)
    root = pipe.chore("root")(lambda n: n)
    pipe.chore("leaf")(lambda n: 10 * n)

    @pipe.strategy(bolo_list=["root"], name="fan")
    def fan(n: int) -> list[ChoreSpec]:
        return [ChoreSpec((k,), qualname="leaf") for k in range(n)]

    @pipe.strategy(bolo_list=["root", "leaf"], name="watcher")
    def watcher(n: int) -> None:
        return None

    root(3)
    results = pipe.submit(quiet=True).result(120)
    assert sorted(v for name, v in results.items() if "-leaf-" in name) == [0, 10, 20]
    assert sum("-watcher-" in name for name in results) == 1 + 3


def test_a_chore_that_fails_is_not_put_to_a_strategy(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, workers=1)
    bad = pipe.chore("bad")(lambda: 1 / 0)
    pipe.strategy(bolo_list=["bad"], name="watch")(lambda result: None)
    bad()
    with pytest.raises(RunFailedError) as failed:
        pipe.submit(quiet=True).result(120)
    assert list(failed.value.failures) == ["chore-bad-0001"]
    assert len(failed.value.results) == 0


def test_a_strategy_that_returns_something_else_is_told_by_name(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, workers=1)
    root = pipe.chore("root")(lambda: 1)
    pipe.strategy(bolo_list=["root"], name="odd")(lambda result: 42)
    root()
    with pytest.raises(RunFailedError, match=r"chore-odd-0002 is a strategy and returned int \(42\)"):
        pipe.submit(quiet=True).result(120)


def test_a_function_defined_inside_another_is_known_by_its_name(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, workers=1)

    @pipe.chore()
    def inner(n: int) -> int:
        return n

    @pipe.strategy(bolo_list=["inner"])
    def once_more(n: int) -> ChoreSpec | None:
        return ChoreSpec((n + 1,), qualname="inner") if n < 3 else None

    inner(1)
    values = [v for v in pipe.submit(quiet=True).result(60).values() if isinstance(v, int)]
    assert values == [1, 2, 3]


def test_an_unknown_name_in_the_list_is_told_with_the_nearest(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path)
    pipe.chore()(guess)
    with pytest.raises(UsageError, match=r"bolo_list names 'gues', .*did you mean 'guess'"):
        pipe.strategy(bolo_list=["gues"])
    with pytest.raises(UsageError, match=r"Write @pipe.strategy\(bolo_list="):
        pipe.strategy(bolo_list="guess")
    with pytest.raises(UsageError, match=r"Write @pipe.strategy\(bolo_list="):
        pipe.strategy(guess)  # type: ignore[arg-type]


def test_a_strategy_is_not_called_by_the_script(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path)
    pipe.chore()(guess)
    decorated = pipe.strategy(bolo_list=["guess"], name="mine")(lambda result: None)
    with pytest.raises(UsageError, match="'mine' is a strategy: the run calls it, not the script"):
        decorated({})


def test_a_pipeline_has_one_kind_of_strategy(tmp_path: Path) -> None:
    from matforge import AdaptiveStrategy

    pipe = Pipeline(tmp_path)
    pipe.chore()(guess)
    pipe.strategy(bolo_list=["guess"], name="mine")(lambda result: None)
    with pytest.raises(UsageError, match="has strategies of its own"):
        pipe.submit(processing_strategy=AdaptiveStrategy())
