"""What a strategy with full control works on: ``self.manager`` of its ``process_futures``.

Instead of answering one event at a time, such a strategy takes events when it likes, as many as
there are, and applies decisions when it likes. All events that one :meth:`Controls.wait` returned
are answered together, by what was applied until the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from matforge.model import MatForgeError
from matforge.strategy import Decision, Event, View


class RunOverError(MatForgeError):
    """Raised by :meth:`Controls.wait` when the run has ended while the strategy waited."""


class Controls(Protocol):
    """The narrow part of a manager that a strategy may use."""

    @property
    def view(self) -> View:
        """The state of the run, every answer in O(1)."""

    def wait(self, timeout: float | None = None) -> list[Event]:
        """Chores that have ended since the last call; waits for the first.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most; then the list may be empty.

        Raises
        ------
        RunOverError
            If the run has ended.
        """

    def apply(self, decisions: Iterable[Decision] | Decision | Any) -> None:
        """Make decisions: Spawn, Cancel, Reprioritise, Stop, or a ChoreSpec to be spawned.

        Raises
        ------
        UsageError
            If one is wrong; then none of them is made.
        """


class Desk:
    """The :class:`Controls` of one run.

    Parameters
    ----------
    view : View
    take : callable
        ``take(timeout)`` waits for what is to be answered: events, and whether the run is over.
    check : callable
        Turns decisions into the engine's words; raises if one is wrong.
    answer : callable
        ``answer(steps)`` answers everything that was taken.
    """

    def __init__(
        self,
        view: View,
        take: Callable[[float | None], list[Event] | None],
        check: Callable[[Any], list[Any]],
        answer: Callable[[list[Any]], None],
    ) -> None:
        self._view = view
        self._take = take
        self._check = check
        self._answer = answer
        self._steps: list[Any] = []
        self.waited = False
        """Whether :meth:`wait` was called since this was last reset."""

    @property
    def view(self) -> View:
        """See :class:`Controls`."""
        return self._view

    def wait(self, timeout: float | None = None) -> list[Event]:
        """See :class:`Controls`."""
        self.settle()
        self.waited = True
        events = self._take(timeout)
        if events is None:
            raise RunOverError("The run has ended.")
        return events

    def apply(self, decisions: Any) -> None:
        """See :class:`Controls`."""
        self._steps += self._check(decisions)

    def settle(self) -> None:
        """Answer what was taken with what was applied."""
        steps, self._steps = self._steps, []
        self._answer(steps)

    def __reduce__(self) -> Any:
        """A strategy is stored without the run that it works on."""
        return (_nobody, ())


def _nobody() -> None:
    return None
