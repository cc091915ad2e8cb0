"""Who may start, and what never can: rules on numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matforge.engine.arbitration import MAX_DEPTH_PER_CORE, fits_now, queue_depth, why_unfit
from matforge.model import Resources


def test_what_is_too_wide_is_told_with_both_numbers() -> None:
    wide = Resources(num_tasks=2, cores_per_task=3)
    assert why_unfit(wide, total_cores=5, total_gpus=0) == "It needs 6 cores, and there are 5 in all."
    assert why_unfit(wide, total_cores=6, total_gpus=0) == ""
    gpus = Resources(gpus_per_task=2)
    assert why_unfit(gpus, total_cores=8, total_gpus=1) == "It needs 2 GPUs, and there are 1 in all."
    assert why_unfit(gpus, total_cores=8, total_gpus=2) == ""


def test_before_anything_is_known_one_chore_a_core_is_kept_waiting() -> None:
    assert queue_depth(None, 8) == 8


def test_short_chores_queue_deep_and_long_ones_do_not() -> None:
    assert queue_depth(10.0, 4) == 4
    assert queue_depth(0.01, 4) == 24
    assert queue_depth(0.0, 4) <= (MAX_DEPTH_PER_CORE + 1) * 4


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(1, 10_000))
def test_longer_chores_never_queue_deeper(one: float, other: float, cores: int) -> None:
    short, long = sorted((one, other))
    assert cores <= queue_depth(long, cores) <= queue_depth(short, cores) <= (MAX_DEPTH_PER_CORE + 1) * cores


@pytest.mark.parametrize(
    ("busy", "cores", "fits"),
    [(0, 1, True), (7, 1, True), (8, 1, True), (9, 1, True), (10, 1, False), (7, 4, False), (6, 4, True)],
)
def test_a_chore_is_handed_over_while_the_queue_has_room(busy: int, cores: int, fits: bool) -> None:
    assert fits_now(busy, cores, total_cores=8, depth=2) is fits


def test_a_chore_wider_than_what_is_left_runs_once_it_is_alone() -> None:
    assert fits_now(0, 100, total_cores=8, depth=2)
    assert not fits_now(1, 100, total_cores=8, depth=2)
