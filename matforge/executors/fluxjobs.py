"""The job lane on Flux: chores that are Flux jobs of their own, with ranks, from order to report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matforge.engine.locations import read
from matforge.executors.channel import profile_of, time_over
from matforge.executors.instance import JobEvent, JobOrder
from matforge.executors.placement import Block, Need, Node
from matforge.executors.protocol import INLINE_LIMIT, Finished, Lost, Report, Started, Task
from matforge.model import Failure, FailureKind, Lane, Location, Usage
from matforge.worker import processes
from matforge.worker.endings import STOPPED_BY_OTHERS
from matforge.worker.slotproc import slot_environment
from matforge.worker.wire import AgentConfig, TaskField, pack, python_arguments

_NOT_THE_CHORES_FAULT = (FailureKind.WORKER_LOST, FailureKind.NODE_LOST)
_STREAMS = ("stdout", "stderr")


def need_of(task: Task) -> Need:
    """What a task asks for."""
    wants = task.resources
    return Need(wants.num_tasks, wants.cores_per_task, wants.gpus_per_task)


@dataclass(slots=True)
class FluxJob:
    """One chore that is a Flux job, from the order on."""

    key: int
    task: Task
    held: list[tuple[Node, Block]] = field(default_factory=list)
    placed: bool = False
    """Whether Flux has given it its cores."""
    cancelled: bool = False
    failure: Failure | None = None
    """What the resource manager says was wrong."""
    torn: bool = False
    """Whether Flux itself has ended it: a rank has ended badly, or a node was lost."""
    node_lost: bool = False
    alone: bool = False
    """Whether nothing else of the run was on its nodes when it was torn."""
    limit_s: float | None = None
    """What Flux has given it, if that has an end."""
    over: bool = False
    """Whether that time was over."""
    status: int | None = None


class FluxJobs:
    """Makes orders of tasks, and reports of what became of them.

    Parameters
    ----------
    config : AgentConfig
        What all workers of the run share.
    config_path : Path
        The same in a file that every node sees.
    run_id : str
        Part of the names of jobs.
    flavour : str
        Option ``mpi`` of the job shell: how ranks find each other.
    """

    def __init__(self, config: AgentConfig, config_path: Path, run_id: str, flavour: str) -> None:
        self._config = config
        self._config_path = config_path
        self._run_id = run_id
        self._flavour = flavour
        self._run_dir = Path(config.run_dir)

    def order(self, task: Task, ranks: tuple[int, ...]) -> JobOrder:
        """Write the task's file, and make the order for its job.

        Raises
        ------
        OSError
            If the chore's directory cannot be written to.
        """
        folder, tag = self._folder(task), task.attempt.tag
        folder.mkdir(exist_ok=True)
        profile = profile_of(task.resources, command=task.function is None, job=task.lane is Lane.JOB)
        payload = task.payload
        blob = b"" if isinstance(payload, Location) else payload
        wire: list[Any] = [None] * len(TaskField)
        wire[TaskField.HANDLE] = 0
        wire[TaskField.CHORE_ID], wire[TaskField.TAG] = task.attempt.chore_id, tag
        wire[TaskField.FUNCTION], wire[TaskField.COMMAND] = task.function, task.command
        wire[TaskField.PAYLOAD] = payload.as_list() if isinstance(payload, Location) else len(blob)
        wire[TaskField.INPUTS] = [where.as_list() for where in task.inputs]
        wire[TaskField.DIRECTORY] = f"out/{task.attempt.chore_id}"
        wire[TaskField.SEED] = task.seed
        wire[TaskField.TIMEOUT], wire[TaskField.MEMORY] = task.timeout_s, task.memory
        path = self._task_file(task)
        path.write_bytes(pack({"profile": profile.as_dict(), "task": wire}, blob))
        argv = python_arguments(self._config.python, "jobtask", str(self._config_path), str(path))
        options: dict[str, Any] = {"exit-on-error": 1, "exit-timeout": "none"}
        if task.resources.mpi:
            options["mpi"] = self._flavour
        if profile.gpus:
            options["gpu-affinity"] = "per-task"
        return JobOrder(
            name=f"{self._run_id}:{task.attempt.chore_id}", argv=tuple(argv), ranks=ranks,
            tasks=profile.num_tasks, cores=profile.cores_per_task, gpus=profile.gpus_per_task,
            environment=slot_environment(self._config, profile, ()), cwd=str(folder),
            stdout=str(folder / f"stdout.{tag}"), stderr=str(folder / f"stderr.{tag}"), options=options,
        )  # fmt: skip

    def _folder(self, task: Task) -> Path:
        return self._run_dir / (task.directory or f"out/{task.attempt.chore_id}")

    def _task_file(self, task: Task) -> Path:
        return self._folder(task) / f"task.{task.attempt.tag}"

    # -- events

    def absorb(self, job: FluxJob, event: JobEvent) -> Report | None:
        """Note what has happened; the report there is of it, final after ``clean`` and ``refused``.

        None after ``clean`` means that whether a node was lost has still to be told; then
        :meth:`end` makes the report.
        """
        context = event.context
        if event.name == "alloc":
            job.limit_s = context.get("seconds")
        elif event.name == "start":
            return Started(job.task.attempt, job.held[0][0].host, 0)
        if event.name == "finish":
            job.status = int(context["status"])
        elif event.name == "exception" and not context.get("severity"):
            job.torn |= context.get("type") == "exec"
            job.over |= context.get("type") == "timeout"
            job.failure = job.failure or self._exception(job, context)
        elif event.name == "refused":
            said = f"{job.task.attempt.chore_id}: Flux does not take its job: {context.get('note')}."
            job.failure = Failure(FailureKind.DOES_NOT_FIT, said)
            return self.end(job)
        elif event.name == "clean" and not self._doubtful(job):
            return self.end(job)
        return None

    def _doubtful(self, job: FluxJob) -> bool:
        """Whether no rank tells why Flux has ended the job, and nobody has told yet of a lost node."""
        if not job.torn or job.node_lost or job.cancelled:
            return False
        failures = [words["failure"] for words in self._said(job.task).values() if words["failure"]]
        # Flux ends the ranks that are left with a signal, and so does the shell of a lost node
        return all(failure.get("signal") in STOPPED_BY_OTHERS for failure in failures)

    def _exception(self, job: FluxJob, context: Mapping[str, Any]) -> Failure | None:
        chore, note = job.task.attempt.chore_id, str(context.get("note", "")).strip().rstrip(".")
        kind = context.get("type")
        if kind == "cancel":
            return Failure(FailureKind.WORKER_LOST, f"{chore}: its Flux job was cancelled by somebody else.")
        if kind == "alloc":
            return Failure(FailureKind.DOES_NOT_FIT, f"{chore}: Flux cannot ever place its job: {note}.")
        return None  # the tasks themselves know better

    def end(self, job: FluxJob) -> Report:
        """The final report of a job that is over."""
        report = self._judge(job)
        self._tidy(job.task)
        return report

    def _judge(self, job: FluxJob) -> Report:
        task = job.task
        said = self._said(task)
        usage = _usage(said)
        printed = self._printed(task)
        if job.cancelled:
            failure = Failure(FailureKind.CANCELLED, f"{task.attempt.chore_id}: it was cancelled.")
            return Finished(task.attempt, usage, failure=failure, printed=printed)
        if job.torn and job.node_lost:
            # ranks on other nodes tell only of the signal with which Flux has ended them for it
            said_so = f"{task.attempt.chore_id}: a node of its Flux job was lost."
            return Lost(task.attempt, Failure(FailureKind.NODE_LOST, said_so), job.alone)
        if job.status == 0 and 0 in said and said[0].get("result"):
            return self._succeeded(task, said[0], usage, printed)
        if job.over:
            # whatever the ranks say, they were told to end; it has had all the time that there is
            return Lost(task.attempt, time_over("its", job.limit_s or usage.wall_s), alone=True)
        failed = [(rank, words["failure"]) for rank, words in sorted(said.items()) if words["failure"]]
        if job.failure is not None and job.failure.kind in _NOT_THE_CHORES_FAULT:
            return Lost(task.attempt, job.failure)
        if failed:
            return self._failed(task, *failed[0], usage=usage, printed=printed)
        if job.failure is not None:
            return Finished(task.attempt, usage, failure=job.failure, printed=printed)
        return Lost(task.attempt, self._without_words(job))

    def _failed(
        self, task: Task, rank: int, words: Mapping[str, Any], *, usage: Usage, printed: bool
    ) -> Finished:
        failure = dict(words)
        if task.resources.num_tasks > 1:
            failure["message"] = f"Rank {rank} of {task.resources.num_tasks}: {failure['message']}"
        failure |= {"host": usage.host, "attempt": task.attempt.number, "started_at": usage.started_at}
        failure |= {"wall_s": usage.wall_s, "peak_memory": max(usage.max_rss, failure.get("peak_memory", 0))}
        failure["stderr"] = processes.tail(self._folder(task) / f"stderr.{task.attempt.tag}")
        return Finished(task.attempt, usage, failure=Failure.from_dict(failure), printed=printed)

    def _succeeded(self, task: Task, words: Mapping[str, Any], usage: Usage, printed: bool) -> Finished:
        where = Location.from_list(words["result"])
        inline = read(self._run_dir, where) if where.length <= INLINE_LIMIT else None
        return Finished(task.attempt, usage, where, inline, report=words.get("report") or {}, printed=printed)

    def _without_words(self, job: FluxJob) -> Failure:
        chore = job.task.attempt.chore_id
        status = "" if job.status is None else f" (wait status {job.status})"
        stderr = processes.tail(self._folder(job.task) / f"stderr.{job.task.attempt.tag}")
        said = f"{chore}: its Flux job ended without a word{status}."
        return Failure(FailureKind.WORKER_LOST, said, stderr=stderr)

    def _said(self, task: Task) -> dict[int, dict[str, Any]]:
        """What the ranks have written about their ends."""
        said = {}
        for rank in range(task.resources.num_tasks):
            try:
                said[rank] = json.loads(Path(f"{self._task_file(task)}.{rank}.json").read_text())
            except (OSError, ValueError):
                continue
        return said

    def _printed(self, task: Task) -> bool:
        paths = [self._folder(task) / f"{name}.{task.attempt.tag}" for name in _STREAMS]
        return any(path.exists() and path.stat().st_size for path in paths)

    def _tidy(self, task: Task) -> None:
        path = self._task_file(task)
        for left in path.parent.glob(f"{path.name}*"):
            left.unlink(missing_ok=True)


def _usage(said: Mapping[int, Mapping[str, Any]]) -> Usage:
    """Of all ranks together: the longest time, the CPU time of all, the largest memory."""
    if not said:
        return Usage()
    ends = [words["usage"] for words in said.values()]
    host = str(next(iter(said.values())).get("host", ""))
    return Usage(
        host, 0, min(u[1] for u in ends), max(u[2] for u in ends), sum(u[3] for u in ends),
        max(u[4] for u in ends),
    )  # fmt: skip
