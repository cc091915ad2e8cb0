"""Typical use of the public API, for mypy (strict): nothing here is run.

``assert_type`` holds what a user's editor will say; wrong use is marked ``type: ignore`` with its
code, and mypy complains about an ignore that ignores nothing.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, assert_type

import matforge
from matforge import (
    Cancel,
    ChoreExecutor,
    ChoreRegistry,
    ChoreSpec,
    CommandResult,
    Decision,
    Event,
    Failure,
    FailureKind,
    FutureProcessingStrategy,
    OutputReference,
    Pipeline,
    Reprioritise,
    Resources,
    RunFailedError,
    Spawn,
    Stop,
    View,
    WithReport,
)


def build() -> Pipeline:
    """Chores, references, commands."""
    pipe = Pipeline(basedir=Path("runs"), workers=2, name="study", campaign="melting", layout="packed")

    @pipe.chore(name="simulate", cores_per_task=2, env={"OMP_NUM_THREADS": "2"})
    def simulate(temperature: float, steps: int = 100) -> WithReport:
        return WithReport({"energy": temperature * steps}, {"temperature": temperature})

    @pipe.chore()
    def total(parts: list[Any]) -> float:
        return float(sum(parts))

    one = simulate(300.0, steps=10)
    assert_type(one, OutputReference)
    assert_type(one["energy"], OutputReference)
    many = simulate.map([1.0, 2.0], steps=5)
    assert_type(many, list[OutputReference])
    urgent = simulate.options(nice=-1, resources=Resources(isolated=True), key="first")(400.0)
    assert_type(urgent, OutputReference)
    whole = total([one["energy"], *many])
    told = pipe.exec(["echo", whole], name="tell", deps=[one], nice=3)
    assert_type(told, OutputReference)
    pipe.exec("sort --version", num_tasks=2)
    return pipe


def registered() -> None:
    """Functions known beforehand."""
    registry = ChoreRegistry()
    registry.register(abs, name="abs", resources=Resources(cores_per_task=2))
    with Pipeline(registry=registry) as pipe:
        assert_type(pipe.call("abs", -1, nice=2, key="one"), OutputReference)


def decorated(pipe: Pipeline) -> None:
    """A strategy that is a chore."""

    @pipe.strategy(bolo_list=["simulate"], name="next", cores_per_task=1)
    def following(found: dict[str, float]) -> ChoreSpec | list[ChoreSpec] | None:
        return ChoreSpec((found["energy"],), qualname="simulate") if found else None


class Careful(FutureProcessingStrategy):
    """Every decision there is."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def on_start(self, view: View) -> Iterable[Decision]:
        return [Spawn(ChoreSpec((1.0,), {"steps": 3}, "simulate"))]

    def on_event(self, view: View, event: Event) -> Iterator[Decision]:
        assert_type(event.ok, bool)
        assert_type(event.failure, Failure | None)
        assert_type(view.pending + view.running + view.completed + view.failed, int)
        if event.failure is not None and event.failure.kind is FailureKind.EXCEPTION:
            yield Stop(event.failure.message)
        elif event.report.get("temperature", 0.0) > self.limit:
            yield Cancel(event.ref)
            yield Reprioritise(event.chore.id, nice=5)


def run(pipe: Pipeline) -> Mapping[str, Any]:
    """Waiting, in every way."""
    future = pipe.submit(processing_strategy=Careful(900.0), log_delay=1.0, quiet=True)
    standard: concurrent.futures.Future[Any] = future
    assert_type(future.run_dir, Path)
    assert_type(standard.done(), bool)
    for reference in pipe.as_completed(timeout=60.0):
        assert_type(reference, OutputReference)
        result = reference.result(timeout=1.0)
        if isinstance(result, CommandResult):
            assert_type(result.exit_code, int)
    partial: Mapping[str, Any] = future.partial()
    try:
        return future.result(timeout=60.0)
    except RunFailedError as error:
        kinds = [failure.kind for failure in error.failures.values()]
        assert_type(kinds, list[FailureKind])
        return {**partial, **error.results}


def facade() -> list[int]:
    """What other code knows as an executor."""
    executor: concurrent.futures.Executor
    with ChoreExecutor(workers=2, basedir="runs") as executor:
        assert_type(executor.submit(pow, 2, 3).result(), Any)
        return list(executor.map(abs, [-1, 2]))


def drawn(pipe: Pipeline) -> str:
    """The graph."""
    graph = pipe.graph()
    graph.save(Path("graph.svg"))
    return graph.mermaid() + graph.dot()


def draws() -> int:
    """A chore's own random numbers."""
    return matforge.seed()


def wrong(pipe: Pipeline) -> None:
    """What a checker finds before anything runs."""
    pipe.submit(log_delay="often")  # type: ignore[arg-type]
    Pipeline(worker=2)  # type: ignore[call-arg]
    ChoreSpec((1,), nice="high", qualname="simulate")  # type: ignore[arg-type]
