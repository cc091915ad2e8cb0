"""The rolling budget of commits: one file, shared by all processes that publish from a folder.

Every POST to the Hub's commit address takes a slot, and takes it *before* it is sent, so that a
crash can only waste one. The file is ``{budget, window_s, timestamps}``. Whatever is wrong with it
is read as "the window was full when the file was last changed": the ceiling is never exceeded, and
after one window everything is as it should be.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from matforge.lease import Lease
from matforge.vulcan import layout
from matforge.vulcan.lease import BriefLease
from matforge.vulcan.settings import DEFAULT_BUDGET, DEFAULT_WINDOW_S, check_budget, check_window

if TYPE_CHECKING:
    from matforge.vulcan.forge import Vulcan


def remaining_budget(forge: Vulcan) -> int:
    """Commits that a handle may still make in the present window."""
    return CommitBudget(forge.staging_dir, forge.budget, forge.window_s).remaining()


class State(NamedTuple):
    """What the file says, made sense of."""

    spent: list[float]
    """When slots were taken, ascending, none in the future."""
    window_s: float
    """The longest window that anybody has used; older slots are forgotten."""
    problem: str
    """One sentence if the file could not be read; empty otherwise."""


class CommitBudget:
    """The budget of one staging folder.

    Parameters
    ----------
    staging_dir : Path
        Where the file lies.
    budget : int
        Commits in a window.
    window_s : float
        Length of the window in seconds.
    clock : callable
        Unix time; tests give their own.

    Raises
    ------
    UsageError
        If a number is out of range.
    """

    def __init__(
        self,
        staging_dir: Path,
        budget: int = DEFAULT_BUDGET,
        window_s: float = DEFAULT_WINDOW_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(staging_dir) / layout.BUDGET_NAME
        self.budget, self.window_s = check_budget(budget), check_window(window_s)
        self._clock = clock

    def remaining(self) -> int:
        """Slots left now; reads only."""
        now = self._clock()
        return max(0, self.budget - len(self._in_window(self._read(now), now)))

    def next_free(self) -> float:
        """Unix time at which there is a slot; now, if there is one."""
        now = self._clock()
        spent = self._in_window(self._read(now), now)
        return now if len(spent) < self.budget else spent[-self.budget] + self.window_s

    def problem(self) -> str:
        """What is wrong with the file, in one sentence; empty if nothing is."""
        return self._read(self._clock()).problem

    def take(self) -> bool:
        """Take a slot if there is one; safe between processes."""
        with BriefLease(self.path) as lease:
            now = self._clock()
            state = self._read(now)
            free = len(self._in_window(state, now)) < self.budget
            # written even if refused: a slot dated in the future gets today's date, and expires one day
            self._write([*state.spent, now] if free else state.spent, state.window_s, now, lease)
            return free

    def reset(self) -> None:
        """Forget every slot; for a person who knows that nothing was sent."""
        with BriefLease(self.path):
            self.path.unlink(missing_ok=True)

    def _in_window(self, state: State, now: float) -> list[float]:
        return [t for t in state.spent if t > now - self.window_s]

    def _read(self, now: float) -> State:
        try:
            raw = self.path.read_bytes()
            changed = min(self.path.stat().st_mtime, now)
        except FileNotFoundError:
            return State([], self.window_s, "")
        try:
            data = json.loads(raw)
            spent, window_s = data["timestamps"], float(data["window_s"])
            sound = (
                all(type(t) in (int, float) and math.isfinite(t) for t in spent) and 0 < window_s < math.inf
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            sound = False
        if not sound:
            problem = (
                f"{self.path} is damaged; the budget counts as spent for {self.window_s:g} s from its last "
                "change (`matforge vulcan repair --reset-budget` forgets it)."
            )
            return State([changed] * max(self.budget, DEFAULT_BUDGET), self.window_s, problem)
        return State(sorted(min(float(t), now) for t in spent), max(self.window_s, window_s), "")

    def _write(self, spent: list[float], window_s: float, now: float, lease: Lease) -> None:
        kept = [t for t in spent if t > now - window_s]
        content = {"budget": self.budget, "window_s": window_s, "timestamps": kept}
        beside = layout.beside(self.path)
        try:
            beside.write_text(json.dumps(content))
            lease.check()
            os.replace(beside, self.path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
