"""Warm chores and jobs share the cores by one rule: nobody overtakes who stands at the head of the queue."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import chores
import pytest
from harness import Gate, Harness

from matforge.executors.local import LocalExecutor
from matforge.executors.protocol import Finished, Started, Task
from matforge.model import Lane, Resources

TWO_CORES = Resources(cores_per_task=2)
ALONE = Resources(cores_per_task=2, isolated=True)


@pytest.fixture
def two_cores(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(LocalExecutor(2), tmp_path / "run")
    yield harness
    harness.executor.close(kill=True)


def job(harness: Harness) -> Task:
    return harness.command("true", resources=TWO_CORES)


def alone(harness: Harness) -> Task:
    return harness.task(chores.brief, resources=ALONE, lane=Lane.JOB)


def warm(harness: Harness) -> Task:
    return harness.task(chores.brief)


def spans(harness: Harness, tasks: list[Task]) -> list[tuple[float, float]]:
    """When each has begun and ended, in the order of submission; all have succeeded."""
    ends = harness.run(*tasks)
    assert all(isinstance(e, Finished) and e.failure is None for e in ends)
    return [
        (e.usage.started_at, e.usage.started_at + e.usage.wall_s) for e in ends if isinstance(e, Finished)
    ]


CLOCKS_S = 0.002
"""Start and duration are taken from two clocks."""


def check_order(tasks: list[Task], times: list[tuple[float, float]]) -> None:
    """A job starts after everything that was submitted before it, and before everything after it."""
    for i, task in enumerate(tasks):
        if task.resources.cores == 2:
            assert all(end <= times[i][0] + CLOCKS_S for _, end in times[:i])
            assert all(begin >= times[i][1] - CLOCKS_S for begin, _ in times[i + 1 :])


@pytest.mark.parametrize("make", [job, alone], ids=["commands", "functions in processes of their own"])
def test_jobs_and_warm_chores_start_in_the_order_of_submission(
    two_cores: Harness, make: Callable[[Harness], Task]
) -> None:
    tasks = [f(two_cores) for _ in range(12) for f in (make, warm)]
    check_order(tasks, spans(two_cores, tasks))


def test_the_order_holds_however_the_lanes_are_mixed(two_cores: Harness) -> None:
    random = Random(3)
    tasks = [random.choice((job, warm, warm, warm))(two_cores) for _ in range(150)]
    check_order(tasks, spans(two_cores, tasks))


def test_a_waiting_job_gets_the_cores_of_idle_slots_and_no_new_slot_starts_before_it(
    two_cores: Harness, tmp_path: Path
) -> None:
    two_cores.run(*(warm(two_cores) for _ in range(20)))  # two warm slots, idle now
    gate = Gate(tmp_path / "gate")
    held = two_cores.task(chores.wait_at, gate.path)
    waiting, behind = job(two_cores), [warm(two_cores) for _ in range(20)]
    two_cores.executor.submit([held])
    two_cores.wait_until_started(held)
    two_cores.executor.submit([waiting, *behind])
    two_cores.executor.submit([other := warm(two_cores)])
    # one core and one warm slot are free, and yet nothing starts, because the job needs both cores
    assert two_cores.executor.poll(0.2) == []
    gate.open()
    first, *rest = two_cores.wait_for([waiting, *behind, other])
    assert isinstance(first, Finished)
    assert all(isinstance(e, Finished) and e.usage.started_at >= first.usage.started_at for e in rest)
    started = [r.attempt for r in two_cores.reports if isinstance(r, Started)]
    assert started[0] == held.attempt


def feed(harness: Harness, tasks: list[Task], in_flight: int) -> dict[str, Any]:
    """Submit as a manager does, never more at a time than ``in_flight``; rate and longest wait."""
    begun = time.monotonic()
    left = tasks[::-1]
    sent: dict[Any, float] = {}
    waits = []
    while left or sent:
        batch = [left.pop() for _ in range(min(len(left), in_flight - len(sent)))]
        sent.update({task.attempt: time.monotonic() for task in batch})
        harness.executor.submit(batch)
        for report in harness.executor.poll(30.0):
            if isinstance(report, Finished):
                assert report.failure is None, report.failure
                waits.append(time.monotonic() - sent.pop(report.attempt))
    wall = time.monotonic() - begun
    return {"chores": len(waits), "chores_per_s": round(len(waits) / wall, 1), "longest_wait_s": max(waits)}


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [job, alone], ids=["commands", "functions in processes of their own"])
def test_as_many_jobs_as_warm_chores_all_finish(
    two_cores: Harness,
    make: Callable[[Harness], Task],
    count: int,
    record_property: Callable[[str, Any], None],
) -> None:
    depth = 8
    tasks = [f(two_cores) for _ in range(count) for f in (make, warm)]
    seen = feed(two_cores, tasks, depth)
    record_property("mix", seen)
    print(f"1:1 mix of {count} jobs of two cores and {count} warm chores on {os.cpu_count()} cores: {seen}")
    assert seen["chores"] == 2 * count
    # nobody waits longer than those before it in the queue take, with room for a busy machine
    assert seen["longest_wait_s"] < 10 * depth / seen["chores_per_s"] + 2.0
