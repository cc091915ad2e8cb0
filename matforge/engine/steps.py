"""A decision in the engine's words, and the identity of a chore that a decision spawns."""

from __future__ import annotations

from dataclasses import dataclass

from matforge.chore import Call, Chore, content_key, named_key
from matforge.engine.events import Cancelled, Reprioritised


@dataclass(frozen=True, slots=True)
class Stop:
    """Start nothing more: every chore that has not begun is cancelled."""

    reason: str = ""


STOP = "stop:"
"""At the beginning of the name of the decision to stop, before the id of the chore that failed."""

Change = Cancelled | Reprioritised | Stop
"""A decision that adds nothing."""
Step = Call | Change
"""A decision in the engine's words; a :class:`~matforge.chore.Call` is a chore to be spawned."""


def spawn_key(call: Call, parent: Chore | None, origin: str, ordinal: int) -> str:
    """Identity of a chore that a strategy spawns: the name it was given, or its descent."""
    if call.key is not None:
        return named_key(call.key)
    if parent is not None:
        return content_key("spawned", parent.key, str(ordinal))
    return content_key("decided", origin, str(ordinal))
