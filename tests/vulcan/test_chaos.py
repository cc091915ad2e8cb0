"""Everybody is killed at random, the Hub fails at random, and every row is there exactly once."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from matforge.vulcan.repair import repair, status
from tests.vulcan.chaos import FAULTS, REPO, ROWS, Chaos
from tests.vulcan.hub import LoopbackHub
from tests.vulcan.hub.faults import COMMIT
from tests.vulcan.staging import counts, forge


@pytest.mark.parametrize(
    ("seconds", "writers", "publishers", "budget"),
    [(6, 2, 2, 500), pytest.param(120, 8, 2, 4000, marks=pytest.mark.slow)],
    ids=["short", "two minutes"],
)
def test_every_row_is_on_the_hub_exactly_once(
    seconds: float, writers: int, publishers: int, budget: int, hub: LoopbackHub, tmp_path: Path
) -> None:
    chaos = Chaos(tmp_path, hub, budget, random.Random(7))
    hub.faults.at_random(0.15, FAULTS, seed=11)
    chaos.run(seconds, writers, publishers)
    assert chaos.kills > seconds / 4
    sent = hub.count(COMMIT)
    hub.faults.clear()

    # what was left is told, put right, and published
    later = time.time() + 3600
    repair(chaos.staging, clock=lambda: later)
    handle = forge(chaos.staging, budget=budget)
    handle.sync(endpoint=hub.endpoint)
    found = status(chaos.staging, budget)
    assert found.problems == []
    assert (counts(handle)[0], counts(handle)[2], found.open_batches) == (0, 0, [])

    begun, finished = chaos.staged()
    there = chaos.on_the_hub()
    assert len(finished) > 10
    assert finished <= set(there) <= begun
    assert set(there.values()) == {ROWS}
    # every request that reached the Hub had its slot
    slots = budget - handle.remaining_budget()
    assert sent <= slots <= budget
    assert len(hub.repositories[REPO].history()) > 2


@pytest.mark.slow
def test_the_budget_holds_while_publishers_are_killed(hub: LoopbackHub, tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, hub, 5, random.Random(3))
    hub.faults.at_random(0.3, FAULTS[:4], seed=5)
    chaos.run(5, 1, 2)
    assert 0 < hub.count(COMMIT) <= 5
