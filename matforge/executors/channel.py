"""The driver's side of the wire: tasks become messages, messages become reports.

Used by every executor that has agents. Costs of the driver per chore are made here, so records
are small lists, handles are integers, and what many tasks share (a profile) travels once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from matforge.executors.protocol import Finished, Lost, Report, Started, Task, Withdrawn
from matforge.model import Attempt, Failure, FailureKind, Lane, Location, Resources, Usage
from matforge.worker.wire import FINISHED, STARTED, WITHDRAWN, Profile, encode


def profile_of(resources: Resources, *, command: bool, job: bool) -> Profile:
    """What a slot must be for a task.

    Parameters
    ----------
    command : bool
        Whether the task is an executable chore.
    job : bool
        Whether it belongs to the job lane.
    """
    ranks = resources.num_tasks > 1 or resources.mpi
    return Profile(
        num_tasks=resources.num_tasks,
        cores_per_task=resources.cores_per_task,
        gpus_per_task=resources.gpus_per_task,
        mpi=resources.mpi,
        env=dict(resources.env or {}),
        inherit_env=resources.inherit_env,
        once=not command and not ranks and (job or resources.isolated),
        command=command,
    )


class AgentLink:
    """What the driver knows of one agent: its tasks in flight, and the profiles it has been told."""

    def __init__(self) -> None:
        self.host = ""
        self.in_flight: dict[int, Attempt] = {}
        self._begun: dict[int, float] = {}
        """When tasks in flight were first heard to run; short ones never are."""
        self.lost: list[Lost] = []
        """What was lost with the agent. The agent itself tells of it where it was told to end; then it begins
        nothing more."""
        self._crew = 0
        """How many tasks were in flight when that began."""
        self._handles: dict[Attempt, int] = {}
        self._next = 0
        self._profiles: dict[Any, int] = {}
        self._told: set[int] = set()
        # keyed by identity, because most tasks share one Resources object; the object is kept alive
        self._by_identity: dict[tuple[int, bool, bool], tuple[int, Resources]] = {}
        self._described: dict[int, dict[str, Any]] = {}

    def _profile(self, task: Task) -> int:
        command, job = task.function is None, task.lane is Lane.JOB
        short = (id(task.resources), command, job)
        known = self._by_identity.get(short)
        if known is not None:
            return known[0]
        profile = profile_of(task.resources, command=command, job=job)
        described = profile.as_dict()
        number = self._profiles.setdefault(json.dumps(described, sort_keys=True), len(self._profiles))
        self._described[number] = described
        if len(self._by_identity) > 4096:
            self._by_identity.clear()
        self._by_identity[short] = (number, task.resources)
        return number

    def tasks_message(self, tasks: Iterable[Task]) -> list[bytes]:
        """Frames that hand ``tasks`` to the agent."""
        blobs: list[bytes] = []
        lines = []
        profiles: dict[str, dict[str, Any]] = {}
        for task in tasks:
            number = self._profile(task)
            if number not in self._told:
                self._told.add(number)
                profiles[str(number)] = self._described[number]
            handle = self._next
            self._next += 1
            attempt = task.attempt
            self.in_flight[handle] = attempt
            self._handles[attempt] = handle
            payload: Any = task.payload
            if isinstance(payload, Location):
                payload = payload.as_list()
            else:
                blobs.append(payload)
                payload = len(payload)
            limits = () if task.timeout_s is None and task.memory is None else (task.timeout_s, task.memory)
            lines.append(
                (
                    handle, number, attempt.chore_id, attempt.tag, task.function, payload, task.command,
                    [where.as_list() for where in task.inputs] if task.inputs else None,
                    task.directory, task.seed, *limits,
                )
            )  # fmt: skip
        return [encode({"t": "tasks", "profiles": profiles, "tasks": lines}), b"".join(blobs)]

    def cancel_message(self, attempts: Iterable[Attempt]) -> list[bytes] | None:
        """Frames that cancel those of ``attempts`` which are in flight here; None if none is."""
        handles = [h for h in map(self._handles.get, attempts) if h is not None]
        return [encode({"t": "cancel", "h": handles})] if handles else None

    @staticmethod
    def withdraw_message() -> list[bytes]:
        """Frames that ask for everything that has not begun."""
        return [encode({"t": "withdraw"})]

    def begin(self, attempt: Attempt, now: float) -> None:
        """Count a task as begun, whenever it is heard to run."""
        self._begun.setdefault(self._handles[attempt], now)

    def _take(self, handle: int) -> Attempt | None:
        self._begun.pop(handle, None)
        attempt = self.in_flight.pop(handle, None)
        if attempt is not None:
            self._handles.pop(attempt, None)
        return attempt

    def reports(self, message: dict[str, Any], frames: Sequence[bytes], now: float) -> list[Report]:
        """The reports in a ``reports`` message that came ``now``; those of unknown attempts are dropped."""
        found: list[Report] = []
        inlines, offset = frames[1], 0
        for line in message["r"]:
            kind, handle = line[0], line[1]
            if kind == STARTED:
                begun = self.in_flight.get(handle)
                if begun is not None:
                    self._begun.setdefault(handle, now)
                    found.append(Started(begun, self.host, line[2]))
                continue
            attempt = self._take(handle)
            if kind == FINISHED:
                end = offset + line[4]
                if attempt is not None:
                    found.append(self._finished(attempt, line, inlines[offset:end]))
                offset = end
            elif kind == WITHDRAWN:
                found += [] if attempt is None else [Withdrawn(attempt)]
            elif attempt is not None:
                found.append(self._told_lost(attempt, Failure.from_dict(line[2])))
        return found

    def _finished(self, attempt: Attempt, line: list[Any], inline: bytes) -> Finished:
        _, _, spent, where, _, report, failure, printed = line
        usage = Usage(self.host, *spent)
        return Finished(
            attempt,
            usage,
            Location(*where) if where else None,
            inline or None,
            report or {},
            _with_evidence(Failure.from_dict(failure), attempt, usage) if failure else None,
            printed,
        )

    def _told_lost(self, attempt: Attempt, failure: Failure) -> Lost:
        """What an agent says that was lost: with a slot, or with the agent itself."""
        failure = replace(failure, host=self.host, attempt=attempt.number)
        if failure.kind is not FailureKind.NODE_LOST:
            return Lost(attempt, failure)
        self._crew = self._crew or 1 + len(self.in_flight)
        lost = Lost(attempt, failure, self._crew == 1)
        self.lost.append(lost)
        return lost

    def lose_all(self, failure: Failure, *, early: float | None = None) -> list[Lost]:
        """Reports that say that everything in flight was lost with the agent.

        Parameters
        ----------
        failure : Failure
        early : float, optional
            The agent's time was over, and to blame is what had begun by then.
        """
        alone = len(self.in_flight) == 1 and not self._crew
        lost = []
        for handle, attempt in self.in_flight.items():
            blamed = alone if early is None else self._begun.get(handle, math.inf) <= early
            lost.append(Lost(attempt, replace(failure, host=self.host, attempt=attempt.number), blamed))
        self.in_flight.clear()
        self._handles.clear()
        self._begun.clear()
        self.lost += lost
        return lost


def _with_evidence(failure: Failure, attempt: Attempt, usage: Usage) -> Failure:
    """Where and when it happened, and what it had taken; nothing of that if it never began."""
    failure = replace(failure, host=usage.host, attempt=attempt.number)
    if usage.slot < 0:
        return failure
    return replace(
        failure,
        slot=usage.slot,
        started_at=usage.started_at,
        wall_s=usage.wall_s,
        peak_memory=max(usage.max_rss, failure.peak_memory or 0),
    )


def node_lost(reason: str, stderr: str = "") -> Failure:
    """The failure of what was in flight on an agent that is gone."""
    return Failure(FailureKind.NODE_LOST, reason, stderr=stderr)


def time_over(whose: str, limit_s: float) -> Failure:
    """The failure of what still ran when the resource manager's time limit came."""
    said = (
        f"It still ran when {whose} Flux job came to its time limit of {limit_s:.0f} s; cut up what takes "
        "longer, or let it run where jobs may take longer: raise `policy.limits.duration` of this Flux "
        "instance, or start one with more time (`flux alloc -t TIME`)."
    )
    return Failure(FailureKind.WALLTIME, said)
