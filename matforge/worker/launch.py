"""Programs and ranks: what a chore of the job lane starts, waits for, and leaves.

The slot that does this runs no function of a user itself, so it can serve many commands. Ranks of
a Python chore run in processes of their own (:mod:`matforge.worker.rank`).
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from matforge.engine import results
from matforge.model import CommandResult, Failure, FailureKind
from matforge.worker import load, processes
from matforge.worker.endings import signal_name
from matforge.worker.runner import ChoreError, Job, Outcome, classify
from matforge.worker.wire import Profile, TaskField, pack, python_arguments

_SIGKILL = int(signal.SIGKILL)
_libc = ctypes.CDLL(None) if processes.LINUX else None


def run_command(job: Job, profile: Profile, run_dir: Path) -> Outcome:
    """Run an executable chore in the working directory; its streams are those of the slot.

    The result is a :class:`~matforge.CommandResult`; the paths are those that the streams have
    once the attempt is accepted, whole, so that whoever is handed one can open it.
    """
    try:
        argv = arguments_of(job, run_dir)
        _launch(job, profile, argv)
        return Outcome(pickle.dumps(command_value(job, run_dir), protocol=5))
    except BaseException as error:
        return Outcome(failure=classify(error, job.chore_id))


def command_value(job: Job, run_dir: Path) -> CommandResult:
    """The result of an executable chore that has ended well."""
    folder = run_dir / (job.directory or "")
    return CommandResult(0, f"{folder}/stdout", f"{folder}/stderr")


def cannot_start(chore_id: str, program: str, error: OSError) -> Failure:
    """The failure of a chore whose program is not there or cannot be run."""
    return Failure(
        FailureKind.START_FAILED,
        f"{chore_id}: the program {program!r} cannot be started on {socket.gethostname()}: "
        f"{(error.strerror or str(error)).lower()}.",
    )


def run_ranks(job: Job, profile: Profile, run_dir: Path, config: str, scratch: Path) -> Outcome:
    """Run a Python chore on all its tasks; the result is that of rank 0."""
    task_file = scratch / f"ranks-{job.handle}"
    try:
        payload = load.payload_bytes(run_dir, job.payload, job.blob, job.chore_id)
        fields: list[Any] = [None] * len(TaskField)
        fields[TaskField.HANDLE] = job.handle
        fields[TaskField.CHORE_ID] = job.chore_id
        fields[TaskField.TAG] = job.tag
        fields[TaskField.FUNCTION] = job.function
        fields[TaskField.INPUTS] = job.inputs
        fields[TaskField.SEED] = job.seed
        task_file.write_bytes(pack(fields, payload))
        trouble: Failure | None = None
        try:
            _launch(job, profile, python_arguments(sys.executable, "rank", config, str(task_file)))
        except ChoreError as error:
            trouble = error.failure
        return _collect(task_file, profile, trouble, job.chore_id)
    except BaseException as error:
        return Outcome(failure=classify(error, job.chore_id))
    finally:
        for path in scratch.glob(f"{task_file.name}*"):
            with suppress(OSError):
                path.unlink()


def _collect(task_file: Path, profile: Profile, trouble: Failure | None, chore_id: str) -> Outcome:
    """Put together what the ranks wrote beside the task."""
    for rank in range(profile.num_tasks):
        try:
            said = json.loads(Path(f"{task_file}.{rank}.json").read_text())
        except (OSError, ValueError):
            continue
        if said["failure"]:
            failure = Failure.from_dict(said["failure"])
            if profile.num_tasks > 1:
                failure = Failure.from_dict(
                    {**failure.as_dict(), "message": f"Rank {rank} of {profile.num_tasks}: {failure.message}"}
                )
            return Outcome(failure=failure)
        if rank == 0 and trouble is None:
            return Outcome(results.pieces_of(Path(f"{task_file}.0.pickle")), said["report"])
    return Outcome(
        failure=trouble
        or Failure(FailureKind.EXCEPTION, f"{chore_id}: rank 0 ended without a word about its result.")
    )


def arguments_of(job: Job, run_dir: Path) -> list[str]:
    """The command line of an executable chore, with results in place of the references to them.

    Raises
    ------
    ChoreError
        If it is empty.
    """
    if job.command is not None:
        return [str(a) for a in job.command]
    inputs = load.Inputs(run_dir, job.inputs, job.chore_id)
    data = load.payload_bytes(run_dir, job.payload, job.blob, job.chore_id)
    value = load.arguments(data, inputs, job.chore_id)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
        value = value[0]  # packed like the arguments of a function
    if len(value) == 1 and isinstance(value[0], list | tuple):
        value = value[0]
    argv = [os.fsdecode(a) if isinstance(a, bytes | os.PathLike) else str(a) for a in value]
    if not argv:
        raise ChoreError(Failure(FailureKind.START_FAILED, f"{job.chore_id}: its command is empty."))
    return argv


def _launch(job: Job, profile: Profile, argv: Sequence[str]) -> None:
    """Start all tasks, wait for them, and raise a :class:`ChoreError` unless all ended well."""
    size = profile.num_tasks
    name = os.path.basename(argv[0]) if job.function is None else f"the process of {job.function}"
    if profile.mpi:
        launcher = shutil.which("mpiexec") or shutil.which("mpirun")
        if launcher is None:
            raise ChoreError(
                Failure(
                    FailureKind.START_FAILED,
                    f"{job.chore_id}: it asks for mpi=True, but there is no mpiexec on the PATH of "
                    f"{socket.gethostname()}; install or load an MPI.",
                )
            )
        argv, size = [launcher, "-n", str(size), *argv], 1
    kills = processes.oom_kills()
    tasks: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for rank in range(size):
            task = _start(job, argv, _rank_environment(profile, rank))
            tasks[task.pid] = task
        failed = _wait_for_all(tasks)
    finally:
        for task in tasks.values():
            if task.returncode is None:
                task.kill()
                task.wait()
    if failed is not None:
        raise ChoreError(_end_failure(job.chore_id, name, failed, oom=processes.oom_kills() > kills))


def _rank_environment(profile: Profile, rank: int) -> dict[str, str]:
    if profile.mpi:
        return dict(os.environ)
    extra = {"MATFORGE_RANK": str(rank), "MATFORGE_SIZE": str(profile.num_tasks)}
    devices = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    share = profile.gpus_per_task
    if share and len(devices) >= share * (rank + 1):
        extra["CUDA_VISIBLE_DEVICES"] = ",".join(devices[share * rank : share * (rank + 1)])
    return {**os.environ, **extra}


def _start(job: Job, argv: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    try:
        with warnings.catch_warnings():
            # Python warns of preexec_fn beside threads; ours makes one system call and takes no lock
            warnings.simplefilter("ignore", DeprecationWarning)
            return subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, preexec_fn=_end_with_slot if _libc else None
            )
    except OSError as error:
        raise ChoreError(cannot_start(job.chore_id, argv[0], error)) from error


def _end_with_slot() -> None:
    """In the child, before the program: be killed if the slot is."""
    if _libc is not None:
        _libc.prctl(1, _SIGKILL, 0, 0, 0)


def _wait_for_all(tasks: Mapping[int, subprocess.Popen[bytes]]) -> int | None:
    """Wait until all tasks have ended; after one that ends badly the others are terminated.

    Returns
    -------
    int or None
        Return code (negative: signal) of the first that ended badly.
    """
    first_bad: int | None = None
    running = set(tasks)
    while running:
        ended = processes.ended_child(wait=True)
        if ended is None:
            break
        if ended not in running:  # an orphan of one of them, adopted by this process
            os.waitpid(ended, 0)
            continue
        code = tasks[ended].wait()
        running.discard(ended)
        if code != 0 and first_bad is None:
            first_bad = code
            for pid in running:
                processes.send(pid, signal.SIGTERM)
    return first_bad


def _end_failure(chore_id: str, name: str, code: int, *, oom: bool) -> Failure:
    if code > 0:
        said = f"{chore_id}: {name} ended with exit code {code}."
        return Failure(FailureKind.EXIT_CODE, said, exit_code=code)
    number = -code
    if oom and number == _SIGKILL:
        return Failure(
            FailureKind.OUT_OF_MEMORY, f"{chore_id}: {name} was killed for want of memory.", signal=number
        )
    return Failure(
        FailureKind.SIGNAL, f"{chore_id}: {name} was ended by {signal_name(number)}.", signal=number
    )
