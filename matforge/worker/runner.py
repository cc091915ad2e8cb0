"""One task in a slot: load, call, pickle, publish, and say how it ended."""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from matforge.engine import results
from matforge.model import Failure, FailureKind, MatForgeError, WithReport
from matforge.worker import load
from matforge.worker.capture import Streams
from matforge.worker.endings import Stage, storage_failure
from matforge.worker.publish import Publisher
from matforge.worker.wire import FINISHED, INLINE_LIMIT, TaskField

TRACEBACK_LIMIT = 16 * 1024
REPORT_LIMIT = 32 * 1024
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_OURS = os.path.dirname(__file__)
_FIELDS = int(TaskField.SEED) + 1


class ChoreError(MatForgeError):
    """A failure that is already classified."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(slots=True)
class Job:
    """A task as a slot sees it."""

    handle: int
    chore_id: str
    tag: str
    function: str | None
    payload: Any
    blob: bytes
    command: list[str] | None
    inputs: list[Any]
    directory: str | None
    seed: int

    @classmethod
    def from_wire(cls, task: list[Any], blob: bytes) -> Job:
        """From the list that came from the agent."""
        handle, _, chore_id, tag, function, payload, command, inputs, directory, seed = task[:_FIELDS]
        return cls(
            handle, chore_id, tag, function, payload, blob, command, inputs or [], directory, seed
        )  # fmt: skip

    def folder(self, run_dir: Path) -> Path:
        """Where its files go if it has any."""
        return run_dir / (self.directory or f"out/{self.chore_id}")

    def environment(self) -> dict[str, str]:
        """Variables that tell a chore who it is."""
        return {"MATFORGE_CHORE_ID": self.chore_id, "MATFORGE_SEED": str(self.seed)}


@dataclass(slots=True)
class Outcome:
    """How a task ended, before it becomes a report."""

    data: bytes | results.Pieces | None = None
    """The pickled result; in pieces if it has large buffers."""
    report: dict[str, Any] | None = None
    failure: Failure | None = None


class Meter:
    """Wall time, CPU time (waited-for children included) and peak memory of each task of a slot."""

    def __init__(self, slot: int) -> None:
        self._slot = slot
        self._peak = 0
        self.begin()

    def begin(self) -> None:
        """A task begins now."""
        self._started_at = time.time()
        self._wall = time.perf_counter()
        own, children = _spent()
        self._cpu = _cpu_seconds(own, children)
        peak = own.ru_maxrss
        if peak > self._peak:
            # the system keeps the peak of the whole process; after a task that has raised it, begin anew
            _forget_peak()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._peak = peak
        self._of_children = children.ru_maxrss

    def usage(self) -> list[Any]:
        """``[slot, started_at, wall_s, cpu_s, max_rss]``."""
        own, children = _spent()
        peak = own.ru_maxrss
        if children.ru_maxrss > self._of_children:
            peak = max(peak, children.ru_maxrss)
        wall = time.perf_counter() - self._wall
        cpu = _cpu_seconds(own, children) - self._cpu
        return [self._slot, round(self._started_at, 6), round(wall, 6), round(cpu, 6), peak * _RSS_UNIT]


def _forget_peak() -> None:
    """Let the system measure this process's peak memory from now on (Linux)."""
    with suppress(OSError), open("/proc/self/clear_refs", "wb", buffering=0) as file:
        file.write(b"5")


def _spent() -> tuple[resource.struct_rusage, resource.struct_rusage]:
    """What this process has used, and its children that were waited for."""
    return resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)


def _cpu_seconds(own: resource.struct_rusage, children: resource.struct_rusage) -> float:
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def run_function(
    job: Job,
    functions: load.Functions,
    run_dir: Path,
    *,
    keep: bool = True,
    stage: Callable[[Stage], None] = lambda _stage: None,
) -> Outcome:
    """Load a Python chore, call it, and pickle what it returns; never raises for the chore's sake.

    Without ``keep`` what it returns is dropped (ranks other than the first). ``stage`` is told how
    far it has come.
    """
    try:
        stage(Stage.LOADING)
        function = functions.get(job.function or "", job.chore_id)
        inputs = load.Inputs(run_dir, job.inputs, job.chore_id)
        data = load.payload_bytes(run_dir, job.payload, job.blob, job.chore_id)
        args, kwargs = load.arguments(data, inputs, job.chore_id) if data else ((), {})
        stage(Stage.RUNNING)
        result = call_chore(function, args, kwargs)
        stage(Stage.PICKLING)
        if not keep:
            return Outcome()
        report: Mapping[str, Any] = {}
        if isinstance(result, WithReport):
            report, result = result.report, result.result
        return Outcome(dump_result(result, job.chore_id), _plain(report, job.chore_id))
    except BaseException as error:
        return Outcome(failure=classify(error, job.chore_id))


def call_chore(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a user's function; its frame marks where ours end in a traceback."""
    return function(*args, **kwargs)


def dump_result(result: Any, chore_id: str) -> bytes | results.Pieces:
    """Pickle a result; by value (cloudpickle) where plain pickle cannot.

    Raises
    ------
    ChoreError
        With kind ``CANNOT_PICKLE_RESULT``.
    """
    try:
        return results.dump(result)
    except MemoryError:
        raise
    except Exception:
        pass  # a class of the user's script, for instance, has to go by value
    try:
        import cloudpickle

        return results.dump(result, cloudpickle.dumps)
    except MemoryError:
        raise
    except Exception as error:
        raise ChoreError(
            Failure(
                FailureKind.CANNOT_PICKLE_RESULT,
                f"{chore_id}: its result, of type {type(result).__name__}, cannot be pickled: "
                f"{type(error).__name__}: {error}",
                traceback=trimmed_traceback(error),
            )
        ) from error


def _plain(report: Mapping[str, Any], chore_id: str) -> dict[str, Any]:
    """Check that a report is small and plain JSON; numbers of numpy become plain ones."""
    if not report:
        return {}
    try:
        text = json.dumps(dict(report), default=_number)
    except (TypeError, ValueError) as error:
        raise ChoreError(
            Failure(
                FailureKind.EXCEPTION, f"{chore_id}: its report is not made of plain JSON types: {error}."
            )
        ) from error
    if len(text) > REPORT_LIMIT:
        raise ChoreError(
            Failure(
                FailureKind.EXCEPTION,
                f"{chore_id}: its report has {len(text)} bytes and may have {REPORT_LIMIT}; "
                "return what is large as the result.",
            )
        )
    plain: dict[str, Any] = json.loads(text)
    return plain


def _number(value: Any) -> Any:
    item = getattr(value, "item", None)
    if item is None:
        raise TypeError(f"{type(value).__name__} is none")
    return item()


def classify(error: BaseException, chore_id: str) -> Failure:
    """The failure that an exception in a slot stands for."""
    if isinstance(error, ChoreError):
        return error.failure
    if isinstance(error, load.InputDamagedError):
        return Failure(FailureKind.STORAGE, str(error), input=error.input)
    if isinstance(error, load.CannotLoadError):
        cause = error.__cause__
        text = trimmed_traceback(cause) if cause is not None else ""
        return Failure(FailureKind.CANNOT_LOAD, str(error), traceback=text)
    trace = trimmed_traceback(error)
    if isinstance(error, SystemExit):
        return _exit_failure(error, chore_id, trace)
    if isinstance(error, MemoryError):
        said = f"{chore_id}: no more memory could be had ({_say(error)})."
        return Failure(FailureKind.OUT_OF_MEMORY, said, traceback=trace)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        # printing, too, writes to files of ours; and a chore is not to blame for a full disk
        what = f"the disk is full or the quota used up, free some space ({_say(error)})"
        return Failure(FailureKind.STORAGE, f"{chore_id}: while it ran, {what}.", traceback=trace)
    return Failure(FailureKind.EXCEPTION, _say(error), traceback=trace)


def _exit_failure(error: SystemExit, chore_id: str, trace: str) -> Failure:
    code = error.code
    number = 0 if code is None else code if isinstance(code, int) else 1
    said = "" if code is None else repr(code)
    return Failure(
        FailureKind.EXIT_CODE,
        f"{chore_id}: it called sys.exit({said}) instead of returning a result.",
        traceback=trace,
        exit_code=number,
    )


def _say(error: BaseException) -> str:
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be shown)"
    return f"{name}: {text}"[:2000] if text else name


def trimmed_traceback(error: BaseException) -> str:
    """The traceback from the user's first frame on, its middle left out if it is long."""
    try:
        trace = error.__traceback__
        while trace is not None and _is_ours(trace):
            trace = trace.tb_next
        text = "".join(traceback.format_exception(type(error), error, trace))
    except Exception as trouble:  # an exception whose own text cannot be made
        text = f"{type(error).__name__} (its traceback cannot be shown: {type(trouble).__name__})\n"
    if len(text) > TRACEBACK_LIMIT:
        text = f"{text[: TRACEBACK_LIMIT // 4]}\n...\n{text[-3 * TRACEBACK_LIMIT // 4 :]}"
    return text


def _is_ours(trace: TracebackType) -> bool:
    return os.path.dirname(trace.tb_frame.f_code.co_filename) == _OURS


def finish(
    job: Job, outcome: Outcome, meter: Meter, streams: Streams, publisher: Publisher, run_dir: Path
) -> tuple[list[Any], bytes]:
    """Publish what a task leaves, and make the report of it; the task's streams end with it."""
    trouble = streams.flush()
    failure, where, inline = outcome.failure, None, b""
    printed = streams.printed()
    try:
        if trouble is not None:
            raise trouble
        if printed and job.directory is None:
            streams.copy_to(job.folder(run_dir), job.tag)
        if failure is None and outcome.data is not None:
            data = outcome.data
            where = publisher.result(job.chore_id, job.tag, job.directory, data)
            inline = data if isinstance(data, bytes) and len(data) <= INLINE_LIMIT else b""
    except OSError as error:
        place = streams.folder if error is trouble else job.folder(run_dir)
        failure = failure or storage_failure(error, place, job.chore_id)
        where, inline = None, b""
    except Exception as error:  # no memory, or something of ours that the chore has replaced
        failure = failure or classify(error, job.chore_id)
        where, inline = None, b""
    described = None
    if failure is not None:
        described = {**failure.as_dict(), "stderr": failure.stderr or streams.tail()}
    streams.end()
    report = [
        FINISHED, job.handle, meter.usage(), where.as_list() if where else None, len(inline),
        outcome.report or None, described, printed,
    ]  # fmt: skip
    return report, inline
