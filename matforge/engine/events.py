"""The graph's language: the events that it takes, and the instructions that it answers with.

:class:`~matforge.engine.graph.Graph` says what follows from each; here nothing happens.
"""

from __future__ import annotations

from dataclasses import dataclass

from matforge.model import ChoreState, Failure

# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Added:
    """A chore became part of the run."""

    id: str
    inputs: tuple[str, ...] = ()
    nice: int = 0
    unfit: Failure | None = None
    """Why the chore can never run here, if it cannot."""
    retries: int = 0
    """Failures of its own after which it is tried again."""
    lookup: bool = False
    """Whether its result may exist already: when it becomes READY it is held, and listed in
    :attr:`~matforge.engine.graph.Graph.lookups`, until it is released or somebody has the result."""


@dataclass(frozen=True, slots=True)
class Offered:
    """There is room for at most ``count`` more chores."""

    count: int


@dataclass(frozen=True, slots=True)
class Started:
    """An attempt has begun to run.

    For a READY chore and a new number: a driver whose memory is gone had submitted it (replay).
    """

    id: str
    number: int


@dataclass(frozen=True, slots=True)
class Succeeded:
    """An attempt has published a result."""

    id: str
    number: int


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt has ended without a result."""

    id: str
    number: int
    failure: Failure
    final: bool = False
    """Whether it is known already that it was not tried again (replay)."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The place where an attempt ran is gone."""

    id: str
    number: int
    failure: Failure
    alone: bool = False
    """Whether nothing else was at the node that was lost; or, of kind ``WALLTIME``, whether it had all the
    time that there may be."""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """An attempt was taken back before it had begun; not journalled, as nobody wrote that it was given."""

    id: str
    number: int


@dataclass(frozen=True, slots=True)
class Spoiled:
    """The result of a COMPLETED chore is missing or damaged, and is wanted."""

    id: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody wants the chore, and with it all that depends on it, not to run."""

    id: str


@dataclass(frozen=True, slots=True)
class Reprioritised:
    """The chore's place in the queue changed; lower ``nice`` runs earlier."""

    id: str
    nice: int


@dataclass(frozen=True, slots=True)
class Held:
    """A READY chore is not to be submitted for now."""

    id: str


@dataclass(frozen=True, slots=True)
class Released:
    """A chore that was held may be submitted again."""

    id: str


@dataclass(frozen=True, slots=True)
class Settled:
    """Nobody will add anything unless another chore ends."""


ChoreEvent = Added | Started | Succeeded | Failed | Lost | Withdrawn | Spoiled | Cancelled | Reprioritised
Event = ChoreEvent | Offered | Held | Released | Settled


# ---------------------------------------------------------------- instructions


@dataclass(frozen=True, slots=True)
class Submit:
    """Give this attempt to the executor."""

    id: str
    number: int


@dataclass(frozen=True, slots=True)
class Publish:
    """The chore has reached a final state; tell whoever wants to know."""

    id: str
    state: ChoreState
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ask the executor to stop this attempt."""

    id: str
    number: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Everything has ended."""


Instruction = Submit | Publish | Cancel | Finish
