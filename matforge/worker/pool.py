"""An agent's queue and its tasks: who runs what, in which order, and how each ends.

Order is first come, first served, and strictly so: what stands at the head of the queue waits for
the cores it needs, and nothing behind it starts meanwhile, so that a chore of many cores is never
starved. The places to run are in :mod:`matforge.worker.places`.

Short tasks are given to a busy slot ahead, so that it never waits for the agent; if the one before
takes long after all, they are taken back.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from matforge.model import Failure, FailureKind
from matforge.worker import limits, processes
from matforge.worker.capture import STDERR_TAIL
from matforge.worker.endings import (
    STOPPED_BY_OTHERS,
    StageMark,
    cancelled,
    end_of,
    ended_with_its_agent,
    start_failure,
    storage_failure,
)
from matforge.worker.places import RETIRE_S, Places
from matforge.worker.slotproc import AgentTask, SlotProcess
from matforge.worker.wire import (
    FINISHED,
    HELLO,
    LOST,
    PACKET_BUFFER,
    STARTED,
    WITHDRAWN,
    AgentConfig,
    Profile,
    ReportField,
    TaskField,
    unpack,
)

AHEAD = 4
"""Tasks that a slot may hold if its tasks are short."""
SHORT_S = 0.02
TOLD_AFTER_S = 0.05
"""Seconds after which a running task is reported as started, and the ones behind it taken back."""
GRACE_S = 0.5
"""Seconds from SIGTERM to SIGKILL."""
START_TRIES = 3
_RSS_UNIT = 1 if not processes.LINUX else 1024


class Pool:
    """All slots of one agent.

    Reports gather in ``reports`` and ``blobs``; the agent sends and empties both.
    """

    def __init__(
        self, config: AgentConfig, config_path: str, on_end: Callable[[SlotProcess], None], spare: int
    ) -> None:
        self.reports: list[list[Any]] = []
        self.blobs: list[bytes] = []
        self.failed: Failure | None = None
        self.places = Places(config, config_path, self._start_refused)
        self.slots = self.places.slots
        self._on_end = on_end
        self._spare = spare
        self.closing = False
        self.restless = False
        """Whether :meth:`tick` must be called before the next heartbeat."""
        self._config = config
        self._run_dir = Path(config.run_dir)
        self._host = socket.gethostname()
        self._profiles: dict[int, Profile] = {}
        self._queue: deque[AgentTask] = deque()
        self._tasks: dict[int, AgentTask] = {}
        self._refused: dict[int, float] = {}
        self._hold_until = 0.0
        self.memory = processes.OomWatch()

    # -- from the driver

    def add(self, profiles: dict[str, Any], tasks: Iterable[list[Any]], blobs: bytes) -> None:
        """Take tasks; a payload given as a number is that many bytes of ``blobs``, in order."""
        offset = 0
        for number, described in profiles.items():
            self._profiles[int(number)] = Profile(**described)
        for wire in tasks:
            payload = wire[TaskField.PAYLOAD]
            length = 0 if isinstance(payload, list) else payload
            blob = blobs[offset : offset + length]
            offset += length
            task = AgentTask.from_wire(wire, blob)
            profile = self._profiles[task.profile]
            if profile.cores > self._config.workers or profile.gpus > len(self._config.gpus):
                self._end_task(task, self._unfit(task, profile))
                continue
            self._tasks[task.handle] = task
            self._queue.append(task)

    def _unfit(self, task: AgentTask, profile: Profile) -> Failure:
        return Failure(
            FailureKind.DOES_NOT_FIT,
            f"{task.wire[TaskField.CHORE_ID]}: it asks for {profile.cores} cores and {profile.gpus} GPUs; "
            f"{self._host} has {self._config.workers} and {len(self._config.gpus)}.",
        )

    def cancel(self, handles: Iterable[int], now: float) -> None:
        """Drop tasks that wait; stop those that run, with all they have started."""
        for handle in handles:
            task = self._tasks.get(handle)
            if task is None or task.cancelled:
                continue
            task.cancelled = True
            slot = task.slot
            if slot is not None:
                self._requeue(slot.take_back())
                # it may have ended meanwhile, and the one behind it must not be hit in its place
                self.receive(slot, now)
                if handle not in self._tasks:
                    continue
                if slot.held and not slot.assigned:
                    self.places.release(slot)
            chore = task.wire[TaskField.CHORE_ID]
            if task.slot is None:
                self._end_task(task, cancelled(chore, ran=False))
            else:
                self._stop(task.slot, now)
                task.slot.ending, task.slot.verdict = handle, cancelled(chore, ran=True)

    def withdraw(self) -> None:
        """Give back everything that no slot has begun."""
        for slot in self.slots.values():
            self._requeue(slot.take_back())
            if slot.held and not slot.assigned:
                self.places.release(slot)
        for task in self._queue:
            if not task.cancelled:  # those have been reported
                del self._tasks[task.handle]
                self.reports.append([WITHDRAWN, task.handle])
        self._queue.clear()

    def _stop(self, slot: SlotProcess, now: float, number: int = signal.SIGTERM) -> None:
        """End what a slot runs, with all that it has started; after a grace by force."""
        slot.doomed = slot.doomed or not slot.launches
        slot.kill_at = now + GRACE_S
        self.restless = True
        processes.signal_tree(slot.pid, number)

    def _requeue(self, tasks: list[AgentTask]) -> None:
        self._queue.extendleft(reversed(tasks))

    def _end_task(
        self, task: AgentTask, failure: Failure, usage: list[Any] | None = None, printed: bool = False
    ) -> None:
        self._tasks.pop(task.handle, None)
        none = [-1, 0.0, 0.0, 0.0, 0]
        self.reports.append([FINISHED, task.handle, usage or none, None, 0, None, failure.as_dict(), printed])

    # -- giving out work

    def dispatch(self, now: float, finished: Iterable[SlotProcess] = ()) -> None:
        """Start what can start; ``finished`` are slots that have just ended a task."""
        if self.closing or now < self._hold_until:
            return
        while self._queue:
            task = self._queue[0]
            if task.cancelled:
                self._queue.popleft()
                continue
            slot = self.places.place(task.profile, self._profiles[task.profile], now)
            slot = slot or self._ahead(task, finished)
            if slot is None or not self._give(slot, task):
                return
            self._queue.popleft()
            self.restless = True
        self.restless |= self.places.retiring

    def _give(self, slot: SlotProcess, task: AgentTask) -> bool:
        if task.memory is not None:
            slot.base_memory = limits.base_memory(slot)
        try:
            return slot.give(task)
        except OSError as error:  # a long task goes through a file, and that disk may be full
            chore = task.wire[TaskField.CHORE_ID]
            task.cancelled = True
            self._end_task(task, storage_failure(error, slot.scratch, chore))
            if not slot.assigned:
                self.places.release(slot)
            return True

    @staticmethod
    def _ahead(task: AgentTask, finished: Iterable[SlotProcess]) -> SlotProcess | None:
        """A busy slot that may be given the head of the queue ahead."""
        if task.memory is not None:  # what the slot holds before it must be known
            return None
        for slot in finished:
            if (
                slot.profile_number == task.profile
                and 0 < len(slot.assigned) < AHEAD
                and slot.pace < SHORT_S
                and not slot.doomed
                and slot.ending < 0
            ):
                return slot
        return None

    def _start_refused(
        self, number: int, why: str, now: float, stderr: str = "", weight: float = 1.0
    ) -> None:
        """A slot could not start: try again shortly, and after some tries give up."""
        tries = self._refused[number] = self._refused.get(number, 0) + weight
        self._hold_until = now + 0.1 * tries
        self.restless = True
        if tries < START_TRIES:
            return
        self._refused[number] = 0
        self._hold_until = 0.0
        profile = self._profiles[number]
        failure = start_failure(stderr, why, self._host, profile.env)
        if not profile.env and profile.inherit_env:
            self.failed = failure
            return
        # its own environment is what keeps it from starting: only these chores are concerned
        for task in [t for t in self._queue if t.profile == number and not t.cancelled]:
            self._queue.remove(task)
            self._end_task(task, failure)

    # -- from the slots

    def receive(self, slot: SlotProcess, now: float) -> bool:
        """Read what a slot has sent; whether it has ended a task."""
        ended = False
        while True:
            try:
                packet = slot.near.recv(PACKET_BUFFER if slot.launches else 1 << 17)
            except BlockingIOError:
                return ended
            except OSError:
                return ended
            if not packet:
                return ended
            head, blob = unpack(packet)
            if head[0] == HELLO:
                slot.ready = True
                slot.since = now
                self._refused[slot.profile_number] = 0
            else:
                self._task_ended(slot, head, blob, now)
                ended = True

    def _task_ended(self, slot: SlotProcess, report: list[Any], blob: bytes, now: float) -> None:
        retire = report.pop()
        task = slot.assigned.popleft()
        self._tasks.pop(task.handle, None)
        failure = report[ReportField.FAILURE]
        if failure and slot.ending == task.handle and slot.verdict is not None:
            said = slot.verdict.as_dict()
            report[ReportField.FAILURE] = {**said, "stderr": failure.get("stderr", "")}
        if slot.ending == task.handle and slot.launches and not retire:
            slot.ending, slot.kill_at = -1, 0.0
        if blob:
            self.blobs.append(blob)
        self.reports.append(report)
        wall = now - slot.since
        slot.pace = wall if slot.pace >= 1.0 else 0.7 * slot.pace + 0.3 * wall
        slot.since = now
        if retire:
            slot.doomed = True
            slot.kill_at = now + RETIRE_S
            self._requeue(slot.take_back())
        if not slot.assigned:
            self.places.release(slot)

    # -- the passing of time

    @property
    def waiting(self) -> int:
        """Tasks in the queue."""
        return len(self._queue)

    def tick(self, now: float) -> None:
        """Tell of tasks that run, take back what waits behind long ones, kill what should have ended."""
        self._watch(now)
        self.places.retiring = False
        self.restless = bool(self._hold_until) or any(
            s.kill_at
            or len(s.assigned) > 1
            or (
                s.assigned
                and (not s.assigned[0].started or limits.restless(s, s.assigned[0], now, self._config.beat_s))
            )
            for s in self.slots.values()
        )

    def _watch(self, now: float) -> None:
        if self._hold_until and now >= self._hold_until:
            self._hold_until = 0.0
        for slot in self.slots.values():
            if slot.kill_at and now >= slot.kill_at:
                slot.kill_at = now + 10.0
                processes.signal_tree(slot.pid, signal.SIGKILL)
            if not slot.ready:
                if now - slot.since > self._config.start_timeout_s and not slot.kill_at:
                    slot.kill_at = now
                continue
            if not slot.assigned or now - slot.since < TOLD_AFTER_S:
                continue
            if len(slot.assigned) > 1:
                slot.pace = 1.0
                self._requeue(slot.take_back())
                if not slot.assigned:  # it has not begun even the first, and is free to begin another
                    self.places.release(slot)
            first = slot.assigned[0] if slot.assigned else None
            if first is not None and not first.started:
                first.started = True
                self.reports.append([STARTED, first.handle, slot.number])
            if first is not None and slot.ending < 0:
                self._check_limits(slot, first, now)

    def _check_limits(self, slot: SlotProcess, task: AgentTask, now: float) -> None:
        found = limits.trespass(slot, task, now)
        if found is None:
            return
        self.receive(slot, now)  # it may have ended just now
        if slot.assigned and slot.assigned[0] is task:
            slot.ending, slot.verdict = task.handle, found[0]
            self._stop(slot, now, found[1])

    # -- ends

    def reap(self, now: float) -> None:
        """Note all children that have ended, and kill what they leave behind."""
        any_ended = False
        while (pid := processes.ended_child(wait=False)) is not None:
            any_ended = True
            slot = self.slots.get(pid)
            if slot is not None:
                # before it is reaped, while its number cannot belong to anybody else
                processes.signal_tree(slot.pid, signal.SIGKILL)
            _, status, spent = os.wait4(pid, 0)
            if slot is not None:
                self._slot_ended(slot, os.waitstatus_to_exitcode(status), spent, now)
        if any_ended:
            # slots adopt the orphans of their chores; what the agent has inherited is nobody's now
            for orphan in processes.children_of(os.getpid()):
                if orphan not in self.slots and orphan != self._spare:
                    processes.send(orphan, signal.SIGKILL)

    def _slot_ended(self, slot: SlotProcess, code: int, spent: Any, now: float) -> None:
        slot.process.returncode = code
        self._on_end(slot)
        self.receive(slot, now)
        self._requeue(slot.take_back())
        self.places.remove(slot)
        task = slot.assigned.popleft() if slot.assigned else None
        if not slot.ready:
            self._never_began(slot, task, code, now)
        elif task is not None:
            self._task_died(slot, task, code, spent, now)
        slot.discard()

    def _never_began(self, slot: SlotProcess, task: AgentTask | None, code: int, now: float) -> None:
        """A slot has ended before it was ready."""
        if task is not None:
            task.slot = None
            if slot.ending == task.handle and slot.verdict is not None:
                self._end_task(task, slot.verdict)
            else:
                self._requeue([task])
        if not self.closing and slot.ending < 0:
            why = f"it ended with exit code {code}" if code >= 0 else f"it was ended by signal {-code}"
            stderr = processes.tail(slot.scratch / "stderr")
            # one that somebody has killed says little about the next one
            weight = 0.3 if -code in STOPPED_BY_OTHERS else 1.0
            self._start_refused(slot.profile_number, why, now, stderr, weight)

    def _task_died(self, slot: SlotProcess, task: AgentTask, code: int, spent: Any, now: float) -> None:
        stderr = processes.tail(slot.stderr_path(self._run_dir, task), STDERR_TAIL)
        if slot.ending == task.handle and slot.verdict is not None:
            failure = replace(slot.verdict, stderr=stderr, signal=-code if code < 0 else None)
            lost = failure.kind in (FailureKind.WORKER_LOST, FailureKind.NODE_LOST)
        else:
            lost, failure = end_of(
                task.wire[TaskField.CHORE_ID],
                code,
                oom=code == -signal.SIGKILL and self.memory.recent(now),
                stderr=stderr,
                stage=StageMark.read(slot.scratch),
            )
        printed = slot.keep_streams(self._run_dir, task)
        wall, peak = now - slot.since, spent.ru_maxrss * _RSS_UNIT
        begun = time.time() - wall
        if lost:
            self._tasks.pop(task.handle, None)
            told = limits.with_evidence(failure, slot, begun, wall, max(peak, task.peak))
            self.reports.append([LOST, task.handle, told.as_dict()])
            return
        cpu = spent.ru_utime + spent.ru_stime
        self._end_task(task, failure, [slot.number, begun, wall, min(cpu, wall), peak], printed)

    def close(self, *, kill: bool, now: float) -> None:
        """Begin to end all slots; the agent goes on to :meth:`reap` until none is left."""
        self.closing = True
        self._queue.clear()
        for slot in self.slots.values():
            if kill:
                slot.take_back()  # it is not to begin another one
                if slot.assigned and slot.ending < 0:  # the place goes, which is not the chore's fault
                    slot.ending = slot.assigned[0].handle
                    slot.verdict = ended_with_its_agent(slot.assigned[0].wire[TaskField.CHORE_ID])
                processes.signal_tree(slot.pid, signal.SIGKILL)
            elif slot.assigned:
                self._stop(slot, now)
            elif not slot.doomed:
                self.places.retire(slot)
        self.places.idle.clear()
