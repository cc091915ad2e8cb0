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


def read(staging: Path) -> Waiting | None:
    """What was noted; None if nothing was, or it cannot be read: asking the Hub again is harmless."""
    try:
        state = json.loads((staging / STATE_NAME).read_text())
        return Waiting(str(state["repo"]), float(state["not_before"]), str(state["why"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(staging: Path, state: Waiting) -> None:
    """Note it."""
    beside = layout.beside(staging / STATE_NAME)
    beside.write_text(json.dumps(state._asdict()))
    os.replace(beside, staging / STATE_NAME)


def clear(staging: Path) -> None:
    """Forget it."""
    with suppress(FileNotFoundError):
        (staging / STATE_NAME).unlink()
