"""Until when a Hub wants to be left alone, noted for the next sync."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from matforge.vulcan import layout

STATE_NAME = "_sync_state.json"


class Waiting(NamedTuple):
    """What the Hub said."""

    repo: str
    not_before: float
    why: str
    noted_at: float
    """When it said so."""


def read(staging: Path, now: float) -> Waiting | None:
    """What was noted and still holds; None if nothing does.

    What cannot be read, or was noted in the future (the clock was set back since, so nobody knows how long
    it holds), does not count: asking the Hub again is harmless.
    """
    try:
        state = json.loads((staging / STATE_NAME).read_text())
        found = Waiting(
            str(state["repo"]), float(state["not_before"]), str(state["why"]), float(state["noted_at"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.noted_at <= now < found.not_before else None


def write(staging: Path, state: Waiting) -> None:
    """Note it."""
    beside = layout.beside(staging / STATE_NAME)
    beside.write_text(json.dumps(state._asdict()))
    os.replace(beside, staging / STATE_NAME)


def clear(staging: Path) -> None:
    """Forget it."""
    with suppress(FileNotFoundError):
        (staging / STATE_NAME).unlink()
