"""Whether another agent is worth starting where some have ended."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matforge.executors.protocol import Lost

RESTARTS = 5
"""So many agents that end within a minute, with no chore finished in between, are enough."""
RESTART_WINDOW_S = 60.0


class Restarts:
    """The recent ends of agents at one place.

    A place where agents cannot live is told from a chore that kills them, wherever they live: an end
    that befell a chore alone is put down to that chore, and with it the ends right before, which led to
    its being alone. However often it kills its agent until it is set aside, that counts once.
    """

    def __init__(self) -> None:
        self._ends: list[tuple[float, str]] = []
        """When, and the chore to which it is put down, if it is."""

    def count(self, now: float, lost: Sequence[Lost], *, connected: bool = True) -> bool:
        """An agent has ended, and so much was lost with it; whether that is enough.

        Of those that never connected five in a row are enough, however long each has taken.
        """
        alone = lost[0].attempt.chore_id if len(lost) == 1 else ""
        explained = ("", alone) if alone else ()
        recent = (end for end in self._ends if now - end[0] <= RESTART_WINDOW_S and end[1] not in explained)
        self._ends = [*recent, (now if connected else math.inf, alone)]
        return len(self._ends) >= RESTARTS

    def works(self) -> None:
        """A chore has finished, so another agent is worth starting."""
        self._ends.clear()
