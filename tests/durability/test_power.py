"""A power failure loses what nobody had synced; the run goes on from the rest, and comes to the same end.

The syncs of the driver, and of the code with which a slot publishes, are recorded. At each of them
the power fails: what is left of each file is what was synced of it, or a torn or zeroed version of
the rest, and names may be undone too.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from matforge.engine.journal import read
from matforge.engine.store import JOURNAL_NAME, LOCK_NAME
from matforge.executors.protocol import Task
from matforge.executors.simulated import SimulatedExecutor
from matforge.model import Location, MatForgeError
from matforge.worker.publish import Publisher
from tests.durability.disk import Losses, dropped, torn, watched, zeroed
from tests.durability.everything import LAST, NAMES, Everything, behave, calls, go_on
from tests.harness import completed_in, outcome, play

LOSSES = (dropped, torn, zeroed)


class Publishing(SimulatedExecutor):
    """Publishes as a slot does."""

    sync = False
    _publisher: Publisher | None = None

    def _publish(self, task: Task, data: bytes) -> Location:
        assert self._context is not None
        if self._publisher is None:
            name = f"{self._context.epoch}-slot.seg"
            self._publisher = Publisher(self._context.run_dir, name, sync=self.sync)
        return self._publisher.result(task.attempt.chore_id, task.attempt.tag, task.directory, data)

    def close(self, *, kill: bool = False) -> None:
        """The slot's process ends, and with it its open file."""
        super().close(kill=kill)
        if self._publisher is not None and self._publisher._segment is not None:
            self._publisher._segment.close()


class PublishingForGood(Publishing):
    """The same with ``durability="power"``."""

    sync = True


def failures(
    folder: Path, executor: Publishing, losses: Losses, *, names: bool, **options: Any
) -> tuple[list[Path], dict[str, Any]]:
    """Run once, and let the power fail at every sync: what the disk holds then; and the run's outcome."""
    left: list[Path] = []
    base = folder / "run"
    with watched(base) as disk:

        def fail(count: int) -> None:
            (run_dir,) = base.glob("matforge*")
            left.append(disk.after_power_failure(run_dir, folder / f"left-{count}", losses, names=names))

        disk.at_sync = fail
        session, _ = play(base, calls(), executor=executor, strategy=Everything(LAST), names=NAMES, **options)
        session.wait(60)
        fail(disk.syncs)
    return left, outcome(session)


def resumable(left: Path) -> bool:
    """Whether so much was on the disk that there is a run at all."""
    try:
        return any(r["e"] == "submitted" for r in read(left / JOURNAL_NAME)[0])
    except MatForgeError:
        return False


def go_on_after_failures(
    folder: Path, durability: str, layout: str, losses: Losses, *, names: bool, step: int = 1
) -> None:
    """Resume what every ``step``-th failure has left."""
    executor = (Publishing if durability == "process" else PublishingForGood)(behave, workers=3)
    left, expected = failures(folder, executor, losses, names=names, layout=layout, durability=durability)
    resumed = 0
    for run_dir in left[::step]:
        (run_dir / LOCK_NAME).unlink(missing_ok=True)
        if not resumable(run_dir):
            assert not resumed, "what was resumable stays so"
            continue
        known = completed_in(read(run_dir / JOURNAL_NAME)[0])
        started = go_on(run_dir, expected)
        resumed += 1
        if durability == "power":
            assert not set(started) & known
        shutil.rmtree(run_dir)
    assert resumed >= 5


LAYOUTS = pytest.mark.parametrize("layout", ["full", "packed"])
EACH_LOSS = pytest.mark.parametrize("losses", LOSSES, ids=lambda one: one.__name__)


@LAYOUTS
@EACH_LOSS
def test_a_run_goes_on_after_a_power_failure_at_any_sync(folder: Path, layout: str, losses: Losses) -> None:
    go_on_after_failures(folder, "process", layout, losses, names=True)


@LAYOUTS
def test_with_durability_power_nothing_that_was_journalled_runs_again(folder: Path, layout: str) -> None:
    go_on_after_failures(folder, "power", layout, torn, names=True, step=8)


@pytest.mark.slow
@pytest.mark.parametrize("names", [False, True], ids=["names stay", "names undone"])
@EACH_LOSS
@LAYOUTS
@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_run_goes_on_after_every_kind_of_power_failure(
    folder: Path, durability: str, layout: str, losses: Losses, names: bool
) -> None:
    go_on_after_failures(folder, durability, layout, losses, names=names)
