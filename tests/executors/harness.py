"""What the tests of executors share: an executor with its run directory, and waiting without sleeps."""

from __future__ import annotations

import io
import os
import pickle
import select
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import chores
import cloudpickle

from matforge.engine import results
from matforge.engine.locations import read
from matforge.executors.protocol import (
    Executor,
    Finished,
    Lost,
    Report,
    RunContext,
    Started,
    Task,
    Withdrawn,
)
from matforge.model import Attempt, Lane, Location, OutputReference, Resources

PATIENCE_S = 30.0
ONE_CORE = Resources()


class Harness:
    """An executor, its run directory, and everything it has reported."""

    def __init__(
        self, executor: Executor, run_dir: Path, *, environment: dict[str, str] | None = None
    ) -> None:
        self.executor = executor
        self.run_dir = run_dir
        self.reports: list[Report] = []
        self._ends: dict[Attempt, Finished | Lost] = {}
        self._count = 0
        (run_dir / "out" / "registry").mkdir(parents=True)
        executor.start(RunContext(run_dir, "test", 1, environment or {}))

    def attempt(self, name: str, number: int = 1) -> Attempt:
        """A fresh chore's attempt."""
        self._count += 1
        return Attempt(f"chore-{name}-{self._count:04d}", 1, number)

    def simple(self, name: str, resources: Resources = ONE_CORE) -> Task:
        """A task whose behaviour the executor's maker gives: ``brief``, ``failing``, ``endless``."""
        path = self.run_dir / "out" / "registry" / name
        if not path.exists():
            path.write_bytes(cloudpickle.dumps(getattr(chores, name)))
        return Task(self.attempt(name), name, resources, function=name, payload=pickle.dumps(((), {})))

    def task(
        self,
        function: Callable[..., Any],
        *args: Any,
        full: bool = False,
        resources: Resources = ONE_CORE,
        lane: Lane = Lane.WARM,
        inputs: tuple[Location, ...] = (),
        payload: bytes | Location | None = None,
        timeout_s: float | None = None,
        memory: int | None = None,
    ) -> Task:
        """A Python chore."""
        data = cloudpickle.dumps(function)
        # by content, as the driver does: slots keep what they have loaded by this name
        name = f"{getattr(function, '__name__', 'callable').strip('<>')}-{zlib.crc32(data):08x}"
        path = self.run_dir / "out" / "registry" / name
        path.write_bytes(data)
        attempt = self.attempt(name)
        return Task(
            attempt,
            name,
            resources,
            lane,
            name,
            pack((args, {})) if payload is None else payload,
            inputs=inputs,
            directory=f"out/{attempt.chore_id}" if full or lane is Lane.JOB else None,
            seed=self._count,
            timeout_s=timeout_s,
            memory=memory,
        )

    def command(self, *argv: Any, resources: Resources = ONE_CORE, inputs: tuple[Location, ...] = ()) -> Task:
        """An executable chore."""
        attempt = self.attempt("command")
        return Task(
            attempt,
            "command",
            resources,
            Lane.JOB,
            payload=pack(list(argv)),
            inputs=inputs,
            directory=f"out/{attempt.chore_id}",
        )

    def poll(self, condition: Callable[[], bool], patience: float = 5.0) -> None:
        """Poll until ``condition`` holds; with little ``patience`` if no report will tell of it."""
        limit = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < limit, f"nothing more came; so far {self.reports[-5:]}"
            for report in self.executor.poll(patience):
                self.reports.append(report)
                if isinstance(report, Finished | Lost):
                    assert report.attempt not in self._ends, f"ended twice: {report}"
                    self._ends[report.attempt] = report

    def wait_for_file(self, path: Path) -> str:
        """Poll until a chore has written ``path``; its text."""
        self.poll(path.exists, patience=0.02)
        return path.read_text()

    def ends(self) -> dict[Attempt, Finished | Lost]:
        """Final reports by attempt."""
        return self._ends

    def withdrawn(self) -> list[Attempt]:
        """Attempts that were given back."""
        return [r.attempt for r in self.reports if isinstance(r, Withdrawn)]

    def wait_for(self, tasks: Iterable[Task]) -> list[Finished | Lost]:
        """Poll until all of ``tasks`` have ended."""
        wanted = [task.attempt for task in tasks]
        self.poll(lambda: all(a in self.ends() for a in wanted))
        return [self.ends()[a] for a in wanted]

    def wait_until_started(self, task: Task) -> Started:
        """Poll until ``task`` is reported as started."""

        def found() -> list[Started]:
            return [r for r in self.reports if isinstance(r, Started) and r.attempt == task.attempt]

        self.poll(lambda: bool(found()))
        return found()[0]

    def run(self, *tasks: Task) -> list[Finished | Lost]:
        """Submit and wait."""
        self.executor.submit(tasks)
        return self.wait_for(tasks)

    def end(self, task: Task) -> Finished:
        """Run one task to an end of its own."""
        report = self.run(task)[0]
        assert isinstance(report, Finished), report
        return report

    def value(self, task: Task) -> Any:
        """Run one task that succeeds; its result, read from disk and compared with what travelled."""
        report = self.end(task)
        assert report.failure is None, report.failure
        return self.result(report)

    def result(self, report: Finished) -> Any:
        """The result that a report speaks of."""
        assert report.result is not None
        data = read(self.run_dir, report.result)
        assert report.inline in (None, data)
        return results.loads(data, self.run_dir / report.result.path)

    def failure(self, task: Task) -> Any:
        """Run one task that fails; its failure."""
        report = self.run(task)[0]
        assert report.failure is not None, report
        return report.failure


def pack(arguments: Any) -> bytes:
    """Pickle arguments with references as persistent ids; chore ``"3"`` is input number 3."""

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, obj: Any) -> Any:
            return (int(obj.chore_id), obj.path) if isinstance(obj, OutputReference) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=5).dump(arguments)
    return buffer.getvalue()


class Gate:
    """A pipe at which a chore waits until the test opens it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._descriptor = -1
        os.mkfifo(path)

    def open(self) -> None:
        """Let everybody through: each takes one byte."""
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        os.write(self._descriptor, bytes(100))

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def wait_for_end(pid: int) -> bool:
    """Wait until a process that is not our child has ended; False if it does not in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], PATIENCE_S)[0])
    finally:
        os.close(descriptor)


def wait_until(condition: Callable[[], bool]) -> None:
    """Look again and again whether ``condition`` holds, where nothing tells of it."""
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit, "what is waited for has not come"
        time.sleep(0.05)
