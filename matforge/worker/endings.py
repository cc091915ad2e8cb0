"""Why a slot, or what ran in it, has ended: from what the system says to a failure with its kind."""

from __future__ import annotations

import mmap
import signal
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path

from matforge.model import Failure, FailureKind, why_unwritable

STOPPED_BY_OTHERS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals with which somebody ends a process; every other one the process has brought on itself."""


class Stage(IntEnum):
    """How far a slot has come with its task."""

    IDLE = 0
    LOADING = 1
    RUNNING = 2
    PICKLING = 3
    WRITING = 4
    REPORTING = 5


_WHILE = {
    Stage.LOADING: " while its function and arguments were being loaded",
    Stage.PICKLING: " while its result was being pickled",
    Stage.WRITING: " while its result was being written",
    Stage.REPORTING: " while its end was being reported",
}


class StageMark:
    """One byte of shared memory that a slot sets, and that its agent reads after its end.

    Parameters
    ----------
    scratch : Path
        The slot's scratch directory.
    """

    _NAME = "stage"

    def __init__(self, scratch: Path) -> None:
        with (scratch / self._NAME).open("w+b") as file:
            file.write(b"\0")
            file.flush()
            self._byte = mmap.mmap(file.fileno(), 1)

    def set(self, stage: Stage) -> None:
        """The slot is at ``stage`` now."""
        self._byte[0] = stage

    @classmethod
    def read(cls, scratch: Path) -> Stage:
        """How far the slot came that has or had this scratch directory."""
        try:
            return Stage((scratch / cls._NAME).read_bytes()[0])
        except (OSError, IndexError, ValueError):
            return Stage.IDLE


def end_of(
    chore: str, code: int, *, oom: bool, stderr: str, stage: Stage = Stage.RUNNING
) -> tuple[bool, Failure]:
    """Why a slot that ended by itself while it had ``chore`` did so.

    Parameters
    ----------
    code : int
        Exit code, or minus the signal's number.
    oom : bool
        Whether the kernel has just killed something here for want of memory.
    stage : Stage
        How far it had come.

    Returns
    -------
    lost : bool
        Whether the slot, rather than the chore, is to blame.
    failure : Failure
    """
    lost, kind = False, FailureKind.EXIT_CODE
    number = -code if code < 0 else None
    if number is None:
        said = f"its process ended with exit code {code} before it returned a result"
    elif number == signal.SIGKILL and oom:
        kind = FailureKind.OUT_OF_MEMORY
        said = "its process was killed because the memory of the machine, or its share of it, ran out"
    elif number in STOPPED_BY_OTHERS:
        lost, kind = True, FailureKind.WORKER_LOST
        said = f"its slot was ended from outside by {signal_name(number)}"
    else:
        kind, said = FailureKind.SIGNAL, f"its process was ended by {signal_name(number)}"
    message = f"{chore}: {said}{_WHILE.get(stage, '')}."
    exit_code = code if kind is FailureKind.EXIT_CODE else None
    return lost, Failure(kind, message, stderr=stderr, exit_code=exit_code, signal=number)


def storage_failure(error: OSError, path: Path, chore: str) -> Failure:
    """One sentence for a write of ours that failed."""
    reason = why_unwritable(error)
    return Failure(FailureKind.STORAGE, f"{chore}: {error.filename or path} cannot be written: {reason}.")


def cancelled(chore: str, *, ran: bool) -> Failure:
    """The failure of a chore that was cancelled."""
    when = "while it ran" if ran else "before it ran"
    return Failure(FailureKind.CANCELLED, f"{chore}: it was cancelled {when}.")


def ended_with_its_agent(chore: str) -> Failure:
    """The failure of a chore whose agent was told to end while it ran."""
    return Failure(FailureKind.NODE_LOST, f"{chore}: it was ended with its agent, which was told to end.")


def signal_name(number: int) -> str:
    """``SIGSEGV`` for 11; the number itself if it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def start_failure(slot_stderr: str, why: str, host: str, env: Mapping[str, str]) -> Failure:
    """The failure for a slot that could not start, several times in a row."""
    whose = f" with the chore's own environment ({', '.join(sorted(env))})" if env else ""
    last = next((line for line in reversed(slot_stderr.splitlines()) if line.strip()), "")
    said = f", and it said: {last.strip()[:300]}" if last else ""
    return Failure(
        FailureKind.START_FAILED, f"No slot can be started on {host}{whose}: {why}{said}", stderr=slot_stderr
    )
