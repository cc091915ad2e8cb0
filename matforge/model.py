"""The nouns every other room uses: references, resources, attempts and failures.

Nothing here performs anything, and nothing here imports another MatForge module.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum, auto
from typing import Any, Protocol


class MatForgeError(Exception):
    """Base of the errors that MatForge raises on purpose; the text is one sentence for a person."""


class UsageError(MatForgeError, ValueError):
    """A request that is wrong, or that can never be met; told before work starts (exit code 2)."""


def why_unwritable(error: OSError, instead: str = "") -> str:
    """Half a sentence for a person about a write that failed, and about what to do.

    ``instead`` is half a sentence that says what to write to where this place will never do.
    """
    rather = f"; {instead}" if instead else ""
    known = {
        errno.ENOSPC: "the disk is full; free some space",
        errno.EDQUOT: "your quota is used up; free some space",
        errno.EROFS: f"the file system is read-only{rather}",
        errno.EACCES: f"you may not write there{rather}",
        errno.ENOENT: "the folder does not exist (any more)",
        errno.ENOTDIR: f"a part of the path is a file, not a folder{rather}",
        errno.EEXIST: f"there is a file of that name{rather}",
        errno.EISDIR: "there is a folder of that name",
    }
    code = error.errno or 0
    # what libraries say themselves is long, and has paths in it
    return known.get(code) or (os.strerror(code).lower() if code else str(error).removesuffix("."))


class ChoreType(StrEnum):
    """What a chore runs."""

    PYTHON = auto()
    EXECUTABLE = auto()


class Lane(StrEnum):
    """How a chore is executed: on a warm slot, or as a process (or Flux job) of its own."""

    WARM = auto()
    JOB = auto()


class ChoreState(StrEnum):
    """States of a chore; the last three are final.

    ``BLOCKED`` waits for other chores, ``READY`` for room, ``RUNNING`` has been given to the
    executor (it may still queue there).
    """

    BLOCKED = auto()
    READY = auto()
    RUNNING = auto()
    COMPLETED = auto()
    FAILED = auto()
    CANCELLED = auto()

    @property
    def final(self) -> bool:
        """Whether a chore in this state will never change again."""
        return self in _FINAL


_FINAL = frozenset((ChoreState.COMPLETED, ChoreState.FAILED, ChoreState.CANCELLED))


class RunState(StrEnum):
    """States of a run, as written to ``status.json``."""

    INITIALIZING = auto()
    RUNNING = auto()
    COMPLETED = auto()
    FAILED = auto()
    INTERRUPTED = auto()


class FailureKind(StrEnum):
    """Why a chore did not succeed: a closed set that records, tests and pages share."""

    EXCEPTION = "exception"
    EXIT_CODE = "exit code"
    SIGNAL = "signal"
    OUT_OF_MEMORY = "out of memory"
    TIMEOUT = "timeout"
    CANNOT_LOAD = "cannot load"
    CANNOT_PICKLE_RESULT = "cannot pickle the result"
    STORAGE = "storage"
    START_FAILED = "start failed"
    WORKER_LOST = "worker lost"
    NODE_LOST = "node lost"
    WALLTIME = "walltime"
    DEPENDENCY_FAILED = "dependency failed"
    DOES_NOT_FIT = "does not fit"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one attempt or one chore failed, with the evidence."""

    kind: FailureKind
    message: str
    traceback: str = ""
    stderr: str = ""
    """The tail of what the attempt wrote to its standard error."""
    exit_code: int | None = None
    signal: int | None = None
    root: str | None = None
    """For ``DEPENDENCY_FAILED``: id of the chore whose failure started it."""
    host: str = ""
    slot: int | None = None
    attempt: int | None = None
    """Which attempt it was, counted from 1."""
    started_at: float | None = None
    """When the attempt began (Unix time)."""
    wall_s: float | None = None
    """Seconds it ran."""
    peak_memory: int | None = None
    """Most memory it occupied (bytes), as far as it was seen."""
    input: int | None = None
    """For ``STORAGE``: which of its inputs (counted from 0) is missing or damaged, if it was that."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the fields that say nothing."""
        return {k: v for k, v in asdict(self).items() if v not in (None, "")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Failure:
        """Inverse of :meth:`as_dict`; keys of later versions are ignored."""
        known = {k: data[k] for k in cls.__slots__ if k in data}
        return cls(**{**known, "kind": FailureKind(data["kind"])})


@dataclass(frozen=True, slots=True)
class Location:
    """``length`` bytes at ``offset`` of the file ``path`` (relative to the run directory)."""

    path: str
    offset: int
    length: int
    crc: int
    """CRC-32 of the bytes."""

    def as_list(self) -> list[Any]:
        """JSON form, short because the journal holds one for every result."""
        return [self.path, self.offset, self.length, self.crc]

    @classmethod
    def from_list(cls, data: Any) -> Location:
        """Inverse of :meth:`as_list`."""
        return cls(*data)


@dataclass(frozen=True, slots=True, order=True)
class Attempt:
    """One try at one chore.

    ``epoch`` counts the drivers a run has had (a resume starts a new one), so that an attempt
    left over from a dead driver can never be taken for one of ours.
    """

    chore_id: str
    epoch: int
    number: int

    @property
    def tag(self) -> str:
        """Short form for file names: ``e1a2``."""
        return f"e{self.epoch}a{self.number}"


@dataclass(frozen=True, slots=True)
class Usage:
    """What one attempt took. Times are seconds, ``started_at`` is Unix time, memory is bytes."""

    host: str = ""
    slot: int = -1
    started_at: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    max_rss: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types (written out: ``dataclasses.asdict`` copies deeply, once a chore)."""
        return {
            "host": self.host,
            "slot": self.slot,
            "started_at": self.started_at,
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "max_rss": self.max_rss,
        }


@dataclass(frozen=True, slots=True)
class Resources:
    """What one chore occupies while it runs.

    Parameters
    ----------
    num_tasks : int
        Processes (MPI ranks); more than one sends the chore to the job lane.
    cores_per_task, gpus_per_task : int
        Cores (at least 1) and GPUs (0 means that none is visible) of each task.
    mpi : bool
        Whether the tasks are ranks of one MPI program.
    env : mapping of str to str, optional
        Environment variables of the chore.
    inherit_env : bool
        Whether the driver's environment is passed on beneath ``env``.
    isolated : bool
        Run in a process of its own that ends with the chore.
    memory : int, optional
        Bytes that all tasks together may occupy; counted when chores are placed, and a chore that
        takes more is ended.

    Raises
    ------
    UsageError
        If a number is out of range or of the wrong type.
    """

    num_tasks: int = 1
    cores_per_task: int = 1
    gpus_per_task: int = 0
    mpi: bool = False
    env: Mapping[str, str] | None = None
    inherit_env: bool = True
    isolated: bool = False
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.memory is not None and (not isinstance(self.memory, int) or self.memory < 1):
            raise UsageError(f"memory must be a positive number of bytes, not {self.memory!r}.")
        for name, least in (("num_tasks", 1), ("cores_per_task", 1), ("gpus_per_task", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UsageError(f"{name} must be a whole number of at least {least}, not {value!r}.")
        for name in ("mpi", "inherit_env", "isolated"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} must be True or False, not {getattr(self, name)!r}.")
        if self.env is not None and not (
            isinstance(self.env, Mapping)
            and all(isinstance(k, str) and isinstance(v, str) for k, v in self.env.items())
        ):
            raise UsageError(f"env must map strings to strings, not {self.env!r}.")

    @property
    def job_lane(self) -> bool:
        """Whether this takes a process (or Flux job) of its own rather than a warm slot."""
        return self.num_tasks > 1 or self.mpi or self.isolated

    @property
    def cores(self) -> int:
        """Cores of all tasks together."""
        return self.num_tasks * self.cores_per_task

    @property
    def gpus(self) -> int:
        """GPUs of all tasks together."""
        return self.num_tasks * self.gpus_per_task

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, only what differs from the default."""
        if self is ONE_CORE:
            return {}
        out: dict[str, Any] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if value != getattr(ONE_CORE, name):
                out[name] = dict(value) if name == "env" else value
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Resources:
        """Inverse of :meth:`as_dict`; the default is always the same object, because it is frequent."""
        return cls(**data) if data else ONE_CORE


ONE_CORE = Resources()
"""What a chore gets that asks for nothing."""


class ResultReader(Protocol):
    """Whatever can fetch a chore's result: a live run, or a run directory opened later."""

    def read_result(self, chore_id: str, timeout: float | None = None, path: Sequence[Any] = ()) -> Any:
        """The part at ``path`` of the chore's result, once it has ended; raises if there is none."""


@dataclass(frozen=True, slots=True)
class OutputReference:
    """The result that a chore will have, usable as an argument of another chore.

    Indexing gives a reference to a part (``ref[10:20]``, ``ref["energy"]``), which only the
    worker that needs it will take out of the result.
    """

    chore_id: str
    path: tuple[Any, ...] = ()
    """Indices to apply to the result, in order."""
    reader: ResultReader | None = field(default=None, compare=False, repr=False)

    def __getitem__(self, index: Any) -> OutputReference:
        return OutputReference(self.chore_id, (*self.path, index), self.reader)

    def __iter__(self) -> Any:
        raise TypeError(
            f"The result of {self.chore_id} is not known yet, so it cannot be iterated over; "
            "index it, or pass it on to a chore that iterates."
        )

    def __hash__(self) -> int:
        return hash(self.chore_id)  # a path may hold slices, which have no hash before Python 3.12

    def result(self, timeout: float | None = None) -> Any:
        """The value, once the chore has ended.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most; default: as long as it takes.

        Raises
        ------
        TimeoutError
            If the chore has not ended in time; the run goes on.
        MatForgeError
            If the reference is not bound to a run, or the chore has no result.
        """
        if self.reader is None:
            raise MatForgeError(
                f"The reference to {self.chore_id} is not bound to a run here; pass it to a chore instead."
            )
        return self.reader.read_result(self.chore_id, timeout, self.path)

    def __reduce__(self) -> Any:
        return (OutputReference, (self.chore_id, self.path))


def seed() -> int:
    """The reproducible 63-bit seed of the chore that is running here.

    It depends on what the chore is (its function, its arguments, its place in the run) and on the
    run's own seed, never on where or when it runs.

    Raises
    ------
    MatForgeError
        Outside of a chore.
    """
    text = os.environ.get("MATFORGE_SEED")
    if text is None:
        raise MatForgeError("There is no seed here: matforge.seed() is for the inside of a chore.")
    return int(text)


def apply_path(value: Any, path: Iterable[Any]) -> Any:
    """Index ``value`` by each element of ``path`` in turn."""
    for index in path:
        value = value[index]
    return value


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The result of a command: what :meth:`Pipeline.exec` refers to.

    Indexing by the name of a field gives the field, so that ``ref["stdout"]`` passes the path on
    to another chore.
    """

    exit_code: int
    stdout: str
    """Path of what it wrote to its standard output."""
    stderr: str

    def __getitem__(self, name: str) -> Any:
        if name not in self.__slots__:
            raise KeyError(name)
        return getattr(self, name)


@dataclass(frozen=True, slots=True)
class WithReport:
    """Return this from a chore to give a strategy a small summary beside the result.

    The strategy reads ``event.report`` without loading the result. Only plain JSON types, and
    few of them: every report is written to the journal.
    """

    result: Any
    report: Mapping[str, Any]
