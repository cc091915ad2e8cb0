"""One task (rank) of a chore that is a job of its own: started by the resource manager, not by a slot.

The process forks: the child becomes the program, or calls the function; the parent adopts whatever
the child leaves, ends it all, and writes ``<task file>.<rank>.json``: how the task ended and what
it used. Exit codes and signals are exact there, while schedulers mix them up.
"""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from matforge.engine import results
from matforge.model import Failure, FailureKind
from matforge.worker import launch, load, processes
from matforge.worker.endings import signal_name, storage_failure
from matforge.worker.limits import size_words
from matforge.worker.publish import Publisher
from matforge.worker.rank import rank_of
from matforge.worker.runner import Job, Outcome, classify, run_function
from matforge.worker.seeds import Generators
from matforge.worker.settings import ImportWatch
from matforge.worker.wire import AgentConfig, Profile, TaskField, unpack

GRACE_S = 0.5
"""Seconds from SIGTERM to SIGKILL."""
LOOK_S = 0.1
"""A task with a limit is looked at so often."""
_CANNOT_START = 127


def report_path(task_file: str, rank: int) -> Path:
    """Where a task says how it ended."""
    return Path(f"{task_file}.{rank}.json")


class JobTask:
    """One rank of one job."""

    def __init__(self, config: AgentConfig, task_file: str) -> None:
        header, blob = unpack(Path(task_file).read_bytes())
        self._profile = Profile(**header["profile"])
        self._job = Job.from_wire(header["task"], blob)
        self._file = task_file
        self._rank = rank_of(os.environ)
        self._run_dir = Path(config.run_dir)
        self._sync = config.sync
        self._child = 0
        self._timeout_s: float | None = header["task"][TaskField.TIMEOUT]
        self._memory: int | None = header["task"][TaskField.MEMORY]
        """Bytes of all ranks together; each may have its share."""
        self._verdict: Failure | None = None
        """Why the task was told to end."""
        self._kill_at = 0.0

    def run(self) -> int:
        """Run the task to its end; the exit code for the resource manager."""
        self._set_environment()
        started, began = time.time(), time.perf_counter()
        self._child = os.fork()
        if self._child == 0:
            self._be_the_child(os.getppid())
        self._deadline = began + self._timeout_s if self._timeout_s is not None else None
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        signal.signal(signal.SIGALRM, self._look)
        if self._timeout_s is not None or self._memory is not None:
            signal.setitimer(signal.ITIMER_REAL, LOOK_S, LOOK_S)
        code, cpu, memory = self._wait()
        usage = [0, started, round(time.perf_counter() - began, 6), round(cpu, 6), memory]
        self._report(code, usage)
        return code if code >= 0 else 128 - code

    def _set_environment(self) -> None:
        profile = self._profile
        os.environ.pop("FLUX_URI", None)  # the enclosing instance is full: of us
        os.environ.update(self._job.environment())
        os.environ.update(
            MATFORGE_RUN_DIR=str(self._run_dir),
            MATFORGE_RANK=str(self._rank),
            MATFORGE_SIZE=str(profile.num_tasks),
        )
        if not profile.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""

    # -- the child

    def _be_the_child(self, parent: int) -> None:
        code = 1
        try:
            processes.die_with_parent(parent)
            os.chdir(self._run_dir / self._job.directory)  # type: ignore[operator]
            code = self._exec() if self._job.function is None else self._call()
        except BaseException as error:
            self._note(Outcome(failure=classify(error, self._job.chore_id)))
        finally:
            os._exit(code)

    def _exec(self) -> int:
        argv = launch.arguments_of(self._job, self._run_dir)
        try:
            os.execvp(argv[0], argv)
        except OSError as error:
            self._note(Outcome(failure=launch.cannot_start(self._job.chore_id, argv[0], error)))
            return _CANNOT_START

    def _call(self) -> int:
        faulthandler.enable()
        functions = load.Functions(self._run_dir)
        generators = Generators()
        ImportWatch(lambda: None, generators.after_import)
        generators.begin(self._job.seed + self._rank)  # ranks that draw the same numbers would be of no use
        outcome = run_function(self._job, functions, self._run_dir, keep=self._rank == 0)
        sys.stdout.flush()
        self._note(outcome)
        return 1 if outcome.failure else 0

    def _note(self, outcome: Outcome) -> None:
        """Tell the parent, through a file, what came of it."""
        said: dict[str, Any] = {"failure": outcome.failure.as_dict() if outcome.failure else None}
        if outcome.data is not None:
            said |= {"report": outcome.report or {}, "result": self._publish(outcome.data)}
        Path(f"{self._file}.{self._rank}").write_text(json.dumps(said))

    def _publish(self, data: bytes | results.Pieces) -> list[Any]:
        publisher = Publisher(self._run_dir, "", sync=self._sync)
        job = self._job
        return publisher.result(job.chore_id, job.tag, job.directory, data).as_list()

    # -- the parent

    def _stop(self) -> None:
        """End everything, at once or shortly after."""
        processes.signal_tree(self._child, signal.SIGTERM)
        self._kill_at = time.perf_counter() + GRACE_S
        signal.setitimer(signal.ITIMER_REAL, LOOK_S, LOOK_S)

    def _look(self, *_: Any) -> None:
        """Once a while: kill what should have ended, and see whether the limits are kept."""
        now = time.perf_counter()
        if self._kill_at:
            if now >= self._kill_at:
                processes.signal_tree(self._child, signal.SIGKILL)
            return
        chore = self._job.chore_id
        if self._deadline is not None and now > self._deadline:
            said = f"{chore}: it took longer than its timeout of {self._timeout_s:g} s."
            self._verdict = Failure(FailureKind.TIMEOUT, said)
        elif self._memory is not None:
            share = self._memory // self._profile.num_tasks
            tree = [self._child, *processes.descendants_of(self._child)]
            taken = processes.memory_of(tree)
            if taken > share and (taken := processes.proportional_memory_of(tree)) > share:
                said = (
                    f"{chore}: it occupied {size_words(taken)} of memory, and may have {size_words(share)}."
                )
                self._verdict = Failure(FailureKind.OUT_OF_MEMORY, said, peak_memory=taken)
        if self._verdict is not None:
            self._stop()

    def _wait(self) -> tuple[int, float, int]:
        """Exit code (negative: signal), CPU seconds and peak memory of the child."""
        while True:
            pid, status, spent = os.wait3(0)
            if pid == self._child:
                processes.kill_children()
                cpu = spent.ru_utime + spent.ru_stime
                return os.waitstatus_to_exitcode(status), cpu, spent.ru_maxrss << 10

    def _report(self, code: int, usage: list[Any]) -> None:
        note = Path(f"{self._file}.{self._rank}")
        said: dict[str, Any] = {"failure": None}
        try:
            said = json.loads(note.read_text())
            note.unlink()
        except (OSError, ValueError):  # a program leaves none, and a function may have been killed
            if code != 0:
                said["failure"] = self._failure(code).as_dict()
            elif self._rank == 0:
                said = self._command_result()
        if self._verdict is not None:
            said = {"failure": self._verdict.as_dict()}
        path = report_path(self._file, self._rank)
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps({**said, "usage": usage, "host": socket.gethostname()}))
        beside.rename(path)

    def _command_result(self) -> dict[str, Any]:
        job = self._job
        if job.function is not None:
            said = f"{job.chore_id}: it ended without a word about its result."
            return {"failure": Failure(FailureKind.EXCEPTION, said).as_dict()}
        value = launch.command_value(job, self._run_dir)
        try:
            return {"failure": None, "result": self._publish(pickle.dumps(value, protocol=5))}
        except OSError as error:
            return {"failure": storage_failure(error, self._run_dir, job.chore_id).as_dict()}

    def _failure(self, code: int) -> Failure:
        chore = self._job.chore_id
        if code > 0:
            return Failure(FailureKind.EXIT_CODE, f"{chore}: it ended with exit code {code}.", exit_code=code)
        said = f"{chore}: it was ended by {signal_name(-code)}."
        return Failure(FailureKind.SIGNAL, said, signal=-code)


def main() -> None:
    """Entry point: ``CONFIG TASK_FILE``."""
    config, task_file = AgentConfig.load(sys.argv[1]), sys.argv[2]
    sys.argv = ["matforge-job"]
    processes.die_with_parent(os.getppid(), signal.SIGTERM)
    processes.adopt_orphans()
    os._exit(JobTask(config, task_file).run())
