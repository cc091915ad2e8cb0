"""Steering a run: what a strategy sees when a chore ends, and what it may answer.

A strategy is an object with ``on_event(view, event)``. It is called once for every chore that
ends, well or badly, in order, and answers with decisions. It runs beside the manager: one that
sleeps, throws or answers with very much does not stop other chores from being dispatched.
"""

from __future__ import annotations

import base64
import inspect
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from matforge.chore import Chore, ChoreSpec
from matforge.model import ChoreState, Failure, MatForgeError, OutputReference, UsageError


@dataclass(frozen=True, slots=True)
class Spawn:
    """Add a chore."""

    spec: ChoreSpec


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel a chore (id or reference) and all that depends on it."""

    chore: str | OutputReference


@dataclass(frozen=True, slots=True)
class Reprioritise:
    """Give a chore another place in the queue; lower ``nice`` runs earlier."""

    chore: str | OutputReference
    nice: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Start nothing more: cancel every chore that has not begun."""

    reason: str = ""


Decision = Spawn | Cancel | Reprioritise | Stop


@dataclass(frozen=True, slots=True)
class Event:
    """A chore has ended."""

    chore: Chore
    outcome: ChoreState
    """``COMPLETED``, ``FAILED`` or ``CANCELLED``."""
    report: Mapping[str, Any]
    """The small dict that the chore returned beside its result (:class:`matforge.WithReport`)."""
    failure: Failure | None = None
    load: Callable[[], Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether the chore completed."""
        return self.outcome is ChoreState.COMPLETED

    @property
    def ref(self) -> OutputReference:
        """A reference to the chore's result, for the arguments of a spawned chore."""
        return OutputReference(self.chore.id)

    def result(self) -> Any:
        """The chore's result, read from the disk only when asked for.

        Raises
        ------
        MatForgeError
            If the chore has none.
        """
        if not self.ok or self.load is None:
            raise MatForgeError(f"{self.chore.id} has no result: it {self.outcome.value}.")
        return self.load()


class View:
    """What a strategy may look at: a facade over the run, every answer in O(1)."""

    def __init__(
        self, counts: Mapping[ChoreState, int], state_of: Callable[[str], ChoreState | None]
    ) -> None:
        self._counts = counts
        self._state_of = state_of

    @property
    def pending(self) -> int:
        """Chores that have not begun."""
        return self._counts[ChoreState.READY] + self._counts[ChoreState.BLOCKED]

    @property
    def running(self) -> int:
        """Chores that were given to the executor and have not ended."""
        return self._counts[ChoreState.RUNNING]

    @property
    def completed(self) -> int:
        """Chores that have a result."""
        return self._counts[ChoreState.COMPLETED]

    @property
    def failed(self) -> int:
        """Chores that failed."""
        return self._counts[ChoreState.FAILED]

    def state(self, chore: str | OutputReference) -> ChoreState | None:
        """State of a chore; None if there is no such chore."""
        return self._state_of(chore.chore_id if isinstance(chore, OutputReference) else chore)


class FutureProcessingStrategy:
    """Base of all strategies; override :meth:`on_event`.

    What ``on_event`` changes in the object's attributes is its state: it is saved with every
    decision, so a resumed run goes on as if nothing had happened. Keep it small (counters and
    ids, not results), and keep random numbers in it (a ``random.Random`` attribute).
    """

    backfill: ClassVar[bool] = True
    """Whether ready chores are started as soon as there is room, or wave by wave."""
    inline: ClassVar[bool] = False
    """Whether ``on_event`` is so cheap that it may run in the manager's own thread."""

    manager: Any = None
    """While the run lasts, for a strategy with full control: see :meth:`process_futures`."""

    def __init__(self, manager: Any = None) -> None:
        """Subclasses need not call this; one that takes a ``manager`` gets it before its first use."""

    def chore_names(self) -> Iterable[str]:
        """Names of the registered functions that it is going to spawn, as far as it knows them.

        A name that is not registered is then told before work starts, and not when it is spawned.
        """
        return ()

    def on_start(self, view: View) -> Iterable[Decision] | None:
        """Decisions before the first chore ends; called once in the life of a run."""
        return ()

    def on_event(self, view: View, event: Event) -> Iterable[Decision] | Decision | None:
        """Decisions about a chore that has just ended."""
        return ()

    def process_futures(self, buffer_time: float) -> None:
        """Full control, for a strategy that overrides this: called again and again while the run lasts.

        It takes what has ended with ``self.manager.wait(seconds)``, looks at ``self.manager.view``
        and decides with ``self.manager.apply(decisions)`` (:class:`matforge.control.Controls`);
        then ``on_start`` and ``on_event`` are not called.

        Parameters
        ----------
        buffer_time : float
            Seconds, as given to :meth:`matforge.Pipeline.submit`.
        """
        raise NotImplementedError

    def get_state(self) -> Any:
        """Anything that can be pickled; default: the object's attributes."""
        return {name: value for name, value in self.__dict__.items() if name != "manager"}

    def set_state(self, state: Any) -> None:
        """Inverse of :meth:`get_state`."""
        self.__dict__.clear()
        self.__dict__.update(state)

    @classmethod
    def controls(cls) -> bool:
        """Whether this class takes full control (:meth:`process_futures`)."""
        return cls.process_futures is not FutureProcessingStrategy.process_futures


class AdaptiveStrategy(FutureProcessingStrategy):
    """Start chores as soon as resources free up (the default)."""

    inline = True


class NonAdaptiveStrategy(FutureProcessingStrategy):
    """Start chores in waves: the next when all of the last have ended."""

    inline = True
    backfill = False


def made(strategy: FutureProcessingStrategy | type[FutureProcessingStrategy]) -> FutureProcessingStrategy:
    """A strategy from an instance or a class (whose constructor may take a ``manager``).

    Raises
    ------
    UsageError
        If it is neither, or the class cannot be made without arguments.
    """
    one: Any = strategy
    if isinstance(strategy, type) and issubclass(strategy, FutureProcessingStrategy):
        try:
            one = strategy(None) if _needs_manager(strategy) else strategy()
        except TypeError as error:
            raise UsageError(
                f"The strategy {strategy.__name__} cannot be made without arguments ({error}); "
                f"give an instance of it: processing_strategy={strategy.__name__}(...)."
            ) from error
    if not isinstance(one, FutureProcessingStrategy):
        name = one.__name__ if isinstance(one, type) else type(one).__name__
        raise UsageError(f"processing_strategy must be a FutureProcessingStrategy, not {name}.")
    return one


def _needs_manager(strategy: type) -> bool:
    parameters = list(inspect.signature(strategy).parameters.values())
    return bool(parameters) and parameters[0].name == "manager"


def freeze_state(strategy: FutureProcessingStrategy) -> str | None:
    """The strategy's state as text for the journal; None if it has none."""
    state = strategy.get_state()
    if state is None:
        return None
    return base64.b64encode(pickle.dumps(state, protocol=5)).decode()


def thaw_state(strategy: FutureProcessingStrategy, text: str | None) -> None:
    """Give a strategy the state that was journalled."""
    if text is not None:
        strategy.set_state(pickle.loads(base64.b64decode(text)))


def decisions_of(answer: Any) -> list[Decision]:
    """The answer of ``on_event`` as a list; a bare :class:`ChoreSpec` means to spawn it.

    Raises
    ------
    UsageError
        If something in it is not a decision.
    """
    if answer is None:
        return []
    items = answer if isinstance(answer, Iterable) else [answer]
    out: list[Decision] = []
    for item in items:
        if isinstance(item, ChoreSpec):
            item = Spawn(item)
        if not isinstance(item, Decision):
            raise UsageError(
                f"A strategy answered with {type(item).__name__}; it may answer with Spawn, Cancel, "
                "Reprioritise, Stop or ChoreSpec."
            )
        out.append(item)
    return out
