"""``@pipe.strategy``: strategies that are chores themselves.

When a chore that is watched completes, the strategy's function is spawned as a chore with its
result; when that completes, what it returned is carried out. So the function may be as slow as it
likes and may run anywhere, like every other chore.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matforge.chore import ChoreSpec
from matforge.model import UsageError
from matforge.strategy import Decision, Event, FutureProcessingStrategy, Spawn, View, decisions_of


@dataclass(frozen=True, slots=True)
class Watch:
    """Calls ``strategy`` with the result of every chore whose function is among ``watched``."""

    strategy: str
    watched: frozenset[str]


class CallbackStrategy(FutureProcessingStrategy):
    """Spawns the strategy chores of a pipeline and carries out what they return.

    Parameters
    ----------
    watches : sequence of Watch
    backfill : bool
        Whether ready chores start as soon as there is room, or in waves.
    """

    def __init__(self, watches: Sequence[Watch], *, backfill: bool = True) -> None:
        self._watches = tuple(watches)
        self._strategies = frozenset(watch.strategy for watch in watches)
        self.backfill = backfill  # type: ignore[misc]  # of the class for others, here of the pipeline

    def get_state(self) -> None:
        """It remembers nothing."""
        return None

    def on_event(self, view: View, event: Event) -> Iterable[Decision]:
        """Put a watched result to its strategies; carry out what a strategy returned."""
        if not event.ok or event.chore.function is None:
            return ()
        name = event.chore.function
        decisions: list[Decision] = [
            Spawn(ChoreSpec((event.ref,), None, watch.strategy, nice=event.chore.nice))
            for watch in self._watches
            if name in watch.watched
        ]
        if name in self._strategies:
            decisions += self._returned(event)
        return decisions

    def _returned(self, event: Event) -> list[Decision]:
        value: Any = event.result()
        try:
            return decisions_of(value)
        except UsageError as error:
            raise UsageError(
                f"{event.chore.id} is a strategy and returned {_kind(value)}; it may return a ChoreSpec, "
                "several, other decisions, or None."
            ) from error


def _kind(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {', '.join(sorted({type(v).__name__ for v in value}))}"
    return f"{type(value).__name__} ({str(value)[:40]})"
