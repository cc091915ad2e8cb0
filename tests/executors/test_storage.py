"""Where a run directory cannot be written: one sentence, the kind *storage*, and the slot goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import chores
import pytest
from harness import Harness

from matforge.executors.local import LocalExecutor
from matforge.model import Failure, FailureKind

LAYOUTS = pytest.mark.parametrize("full", [False, True], ids=["packed", "full"])
LARGE = 4 << 20


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(LocalExecutor(1), tmp_path / "run")
    yield harness
    harness.executor.close(kill=True)


@pytest.fixture
def on_disk(small_disk: Path) -> Iterator[Harness]:
    harness = Harness(LocalExecutor(1), small_disk / "run")
    yield harness
    harness.executor.close(kill=True)


def check(failure: Failure, chore_id: str, reason: str) -> None:
    assert failure.kind is FailureKind.STORAGE
    assert failure.message.startswith(f"{chore_id}: ")
    assert failure.message.endswith(f"cannot be written: {reason}.")
    assert "\n" not in failure.message


@LAYOUTS
def test_a_disk_that_fills_up_stops_what_does_not_fit_and_nothing_else(on_disk: Harness, full: bool) -> None:
    assert on_disk.value(on_disk.task(chores.many_bytes, 1000, full=full)) == b"x" * 1000
    for _ in range(2):
        task = on_disk.task(chores.many_bytes, LARGE, full=full)
        check(on_disk.failure(task), task.attempt.chore_id, "the disk is full; free some space")
        # nothing of it is left in the way of those that fit
        assert on_disk.value(on_disk.task(chores.many_bytes, 1 << 18, full=full)) == b"x" * (1 << 18)


def test_a_disk_that_is_full_of_what_was_printed_is_told(on_disk: Harness) -> None:
    task = on_disk.task(chores.say, "x" * LARGE, full=True)
    failure = on_disk.failure(task)
    assert failure.kind is FailureKind.STORAGE
    assert task.attempt.chore_id in failure.message
    (on_disk.run_dir / "out" / task.attempt.chore_id / "stdout.e1a1").unlink()
    assert on_disk.value(on_disk.task(chores.say, "short", full=True)) == "short"


@LAYOUTS
def test_a_file_system_that_is_read_only_is_told(on_disk: Harness, small_disk: Path, full: bool) -> None:
    task, later = (on_disk.task(chores.add, 2, 2, full=full) for _ in range(2))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        check(on_disk.failure(task), task.attempt.chore_id, "the file system is read-only")
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert on_disk.value(later) == 4


@LAYOUTS
def test_a_folder_that_vanishes_while_a_chore_runs_is_told(harness: Harness, full: bool) -> None:
    # in the packed layout the slot has not made its segment yet
    task = harness.task(chores.vanish, str(harness.run_dir / "out" if full else harness.run_dir), full=full)
    failure = harness.failure(task)
    check(failure, task.attempt.chore_id, "the folder does not exist (any more)")
    assert str(harness.run_dir) in failure.message
