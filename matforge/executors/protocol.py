"""What the manager asks of whoever executes chores, and what it is told in return.

An executor starts agents (and, on the job lane, jobs), passes tasks to them and hands back
reports. It knows nothing of graphs, journals or strategies. The manager calls it from one thread
only.

Data flow: ``submit(tasks)`` -> agent -> slot -> files in the run directory -> ``poll()`` returns
:class:`Finished` with the location and checksum of what was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from matforge.engine.locations import Location
from matforge.model import Attempt, Failure, FailureKind, Lane, Resources, Usage

INLINE_LIMIT = 32 * 1024
"""Bytes: results and payloads up to this size also travel in the message, so that the driver and
the strategy need not read them back from a shared file system."""


@dataclass(frozen=True, slots=True)
class Task:
    """One attempt at one chore, complete: a worker needs nothing else but the run directory."""

    attempt: Attempt
    name: str
    resources: Resources
    lane: Lane = Lane.WARM
    function: str | None = None
    """File under ``out/registry/`` (a cloudpickle), for a Python chore."""
    payload: bytes | Location = b""
    """Pickled ``(args, kwargs)``; references inside are persistent ids ``(input number, path)``."""
    command: tuple[str, ...] | None = None
    """Arguments of the program, for an executable chore (then ``function`` is None)."""
    inputs: tuple[Location, ...] = ()
    """Pickled results of other chores, in the order of the input numbers."""
    directory: str | None = None
    """Relative directory of the chore in the full layout; None in the packed one."""
    seed: int = 0
    """Reproducible seed of the chore, from its key: ``MATFORGE_SEED`` in its environment."""
    expected_s: float | None = None
    """How long it will probably take; only plans."""
    timeout_s: float | None = None
    """Seconds after which it is ended, with all it has started, and fails with kind ``TIMEOUT``."""
    memory: int | None = None
    """Bytes that it may occupy, with all it has started, beyond what its slot held when it began; with
    more it is killed, and fails with kind ``OUT_OF_MEMORY``."""
    alone: bool = False
    """Whether nothing else may be at its node meanwhile, because it is suspected of killing it."""


@dataclass(frozen=True, slots=True)
class Started:
    """The attempt has begun to run."""

    attempt: Attempt
    host: str
    slot: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The attempt ended in a way that is the chore's own: with a result, or with a failure."""

    attempt: Attempt
    usage: Usage
    result: Location | None = None
    inline: bytes | None = None
    """The pickled result itself, if at most :data:`INLINE_LIMIT` bytes."""
    report: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    printed: bool = False
    """Whether anything was written to standard output or error."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The attempt ended with its slot, agent or node; not, as far as is known, by its own fault."""

    attempt: Attempt
    failure: Failure
    alone: bool = False
    """Whether nothing but the chore itself can be the reason: it ended with its node, and nothing else was
    there; or (of kind ``WALLTIME``) it had all the time that a job may have."""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The attempt was taken back before it had begun, and will not be run."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class CapacityChanged:
    """The executor's capacity is now another one; ask :meth:`Executor.capacity`."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class ExecutorFailed:
    """The executor can run nothing (any more); ``failure.message`` is the sentence for the user."""

    failure: Failure


Report = Started | Finished | Lost | Withdrawn | CapacityChanged | ExecutorFailed


@dataclass(frozen=True, slots=True)
class Capacity:
    """What there is, and how much may be in flight."""

    nodes: int
    cores_per_node: int
    gpus_per_node: int
    total_cores: int
    total_gpus: int
    queue_depth: int
    """Cores' worth of chores that agents may hold beyond what runs, so that no slot waits for
    the driver; small enough that re-ordering still means something."""
    ends_at: float | None = None
    """Unix time at which the allocation ends, if it does and that is known."""
    memory_per_node: int = 0
    """Bytes; 0 if not known."""

    @property
    def total_memory(self) -> int:
        """Bytes of all nodes together; 0 if not known."""
        return self.nodes * self.memory_per_node


@dataclass(frozen=True, slots=True)
class RunContext:
    """What an executor is told about the run it serves."""

    run_dir: Path
    run_id: str
    epoch: int
    environment: dict[str, str] = field(default_factory=dict)
    """Extra environment of every worker."""


@runtime_checkable
class Executor(Protocol):
    """The contract; ``tests/executors/contract.py`` checks every implementation against it."""

    name: str

    def start(self, context: RunContext) -> None:
        """Begin to start workers; returns at once. Trouble comes as :class:`ExecutorFailed`."""

    def capacity(self) -> Capacity:
        """The present capacity; known as soon as :meth:`start` has returned."""

    def submit(self, tasks: Sequence[Task]) -> None:
        """Take tasks; never blocks and never raises for a task's sake."""

    def cancel(self, attempts: Iterable[Attempt]) -> None:
        """Stop these attempts; each ends as :class:`Finished` with kind ``CANCELLED``, unless it
        ended otherwise before. Unknown attempts are ignored."""

    def withdraw(self) -> None:
        """Take back what has not begun; each ends as :class:`Withdrawn`. A Flux job that was submitted
        goes on: there is room for it, and it begins at once."""

    def poll(self, timeout: float | None) -> list[Report]:
        """Reports that have arrived; waits up to ``timeout`` seconds (None: until there is one)
        if there are none. May return an empty list early after :meth:`wake`."""

    def wake(self) -> None:
        """Make a :meth:`poll` that waits return; callable from any thread."""

    def now(self) -> float:
        """The executor's clock, in Unix seconds; virtual in the simulated executor."""

    def close(self, *, kill: bool = False) -> None:
        """End all workers, at once if ``kill``; leaves no process behind. Idempotent."""


def lost_kind(failure: Failure) -> bool:
    """Whether a failure says that the place died rather than the chore."""
    return failure.kind in (FailureKind.WORKER_LOST, FailureKind.NODE_LOST, FailureKind.START_FAILED)
