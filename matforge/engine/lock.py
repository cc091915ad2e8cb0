"""One driver a run: the lease of a run directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from matforge.lease import LEASE_S, RENEW_S, HeldError, Lease, place

__all__ = ["LEASE_S", "RENEW_S", "LockedError", "RunLock", "holder", "is_held", "place"]


class LockedError(HeldError):
    """Another driver holds the run (exit code 75)."""


class RunLock(Lease):
    """The lock file of one run directory."""

    error = LockedError

    def busy_sentence(self, who: str) -> str:
        """What a person is told when ``who`` drives the run."""
        return f"{self.path.parent} is being run by {who}; wait for it, or end it first."

    def lost_sentence(self) -> str:
        """What a person is told when another driver took the run over."""
        return f"{self.path.parent} was taken over by another driver; this one stops."


def holder(path: Path) -> dict[str, Any] | None:
    """What the living driver that holds the lock file ``path`` wrote into it; None if there is none."""
    return RunLock(path).holder(time.time())


def is_held(path: Path) -> bool:
    """Whether a living driver holds the lock file ``path``."""
    return holder(path) is not None
