"""An executor with a virtual clock: nothing runs, everything takes exactly as long as it is told.

The harness of the engine's tests: no sleeps, thousands of chores in a moment, and faults where
they are wanted. A *behaviour* says what becomes of each task; durations may be drawn or recorded.
"""

from __future__ import annotations

import heapq
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from matforge.engine import segments
from matforge.engine.locations import location_of
from matforge.executors.protocol import (
    Capacity,
    CapacityChanged,
    Finished,
    Lost,
    Report,
    RunContext,
    Started,
    Task,
    Withdrawn,
)
from matforge.model import Attempt, Failure, FailureKind, Location, Usage


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of one attempt.

    Parameters
    ----------
    duration_s : float
        Virtual seconds from start to end.
    value : object
        The result, if nothing fails.
    report : dict, optional
        The report beside the result.
    failure : Failure, optional
        The attempt fails with this.
    lost : bool
        The attempt's slot dies with it; ``failure`` says why. If that is of kind ``NODE_LOST``, so does
        the node, with all that is there.
    silent : bool
        The attempt ends and nobody ever hears of it.
    """

    duration_s: float = 1.0
    value: Any = None
    report: dict[str, Any] | None = None
    failure: Failure | None = None
    lost: bool = False
    silent: bool = False


def _within_limits(task: Task, outcome: Outcome) -> Outcome:
    """The outcome, unless the task's timeout comes first."""
    limit = task.timeout_s
    if limit is None or outcome.duration_s <= limit:
        return outcome
    said = f"{task.attempt.chore_id}: it took longer than its timeout of {limit:g} s."
    return Outcome(limit, failure=Failure(FailureKind.TIMEOUT, said))


class SimulatedExecutor:
    """``workers`` slots of one core that behave as told.

    Parameters
    ----------
    behaviour : callable
        ``Task -> Outcome``; asked when the attempt starts.
    workers : int
        One-core slots.
    start_time : float
        Unix time at which the virtual clock begins.
    lasts_s : float, optional
        Seconds after which the allocation ends.
    memory : int
        Bytes of its node; 0 if that is not known.
    """

    name = "simulated"

    def __init__(
        self,
        behaviour: Callable[[Task], Outcome] = lambda task: Outcome(),
        *,
        workers: int = 4,
        start_time: float = 1.7e9,
        lasts_s: float | None = None,
        memory: int = 0,
    ) -> None:
        self._behaviour = behaviour
        self._workers = workers
        self._clock = start_time
        self._ends_at = None if lasts_s is None else start_time + lasts_s
        self._memory = memory
        self._queue: deque[Task] = deque()
        self._running: dict[Attempt, tuple[Task, Outcome, float, int]] = {}
        self._free = list(range(workers))
        self._busy_cores = 0
        self._ends: list[tuple[float, int, Attempt]] = []
        self._order = 0
        self._reports: deque[Report] = deque()
        self._context: RunContext | None = None
        self._news = threading.Event()
        self._segment: IO[bytes] | None = None
        self.started = self.closed = False
        self.history: list[Attempt] = []
        """Attempts in the order in which they started."""

    # -- the protocol

    def start(self, context: RunContext) -> None:
        """Remember the run; nothing has to be started."""
        self._context, self.started = context, True

    def capacity(self) -> Capacity:
        """One node of ``workers`` cores."""
        return Capacity(
            1, self._workers, 0, self._workers, 0,
            queue_depth=256 * self._workers, ends_at=self._ends_at, memory_per_node=self._memory,
        )  # fmt: skip

    def submit(self, tasks: Sequence[Task]) -> None:
        """Queue tasks; they start when a slot is free."""
        self._queue.extend(tasks)
        self._fill()

    def cancel(self, attempts: Iterable[Attempt]) -> None:
        """Stop attempts; running ones end at once."""
        wanted = dict.fromkeys(attempts)
        queued = [task for task in self._queue if task.attempt in wanted]
        if queued:
            self._queue = deque(task for task in self._queue if task.attempt not in wanted)
        running = [attempt for attempt in wanted if attempt in self._running]
        for attempt in running:
            self._release(attempt)
        failure = Failure(FailureKind.CANCELLED, "Cancelled.")
        for attempt in [*(task.attempt for task in queued), *running]:
            self._reports.append(Finished(attempt, Usage(), failure=failure))
        self._fill()

    def withdraw(self) -> None:
        """Take back what waits."""
        self._reports += [Withdrawn(task.attempt) for task in self._queue]
        self._queue.clear()

    def poll(self, timeout: float | None) -> list[Report]:
        """Hand out reports; if there are none, let the clock run to the next end or the timeout."""
        if not self._reports and timeout != 0:
            if not self._running:
                # another thread (a strategy) may bring news: give it the processor first, then let time pass
                if not self._news.wait(0.001):
                    self._clock += timeout or 0.0
                self._news.clear()
            else:
                self._advance(timeout)
        out = list(self._reports)
        self._reports.clear()
        return out

    def wake(self) -> None:
        """End a wait for other threads."""
        self._news.set()

    def now(self) -> float:
        """The virtual clock."""
        return self._clock

    def close(self, *, kill: bool = False) -> None:
        """Forget everything that is queued or running."""
        self._queue.clear()
        self._running.clear()
        self._ends.clear()
        if self._segment is not None:
            self._segment.close()
            self._segment = None
        self.closed = True

    # -- faults, for tests

    def stall(self, seconds: float) -> None:
        """Let time pass without the driver, as if it had been stopped."""
        self._clock += seconds

    def lose_slot(self, attempt: Attempt, kind: FailureKind = FailureKind.WORKER_LOST) -> None:
        """Kill the slot that runs ``attempt``."""
        if attempt in self._running:
            self._release(attempt)
            self._reports.append(Lost(attempt, Failure(kind, "Its slot was killed.")))
            self._fill()

    def resize(self, workers: int) -> None:
        """Change the number of slots; slots in use stay until their attempt ends."""
        self._workers = workers
        self._free = [slot for slot in range(workers) if slot not in {v[3] for v in self._running.values()}]
        self._reports.append(CapacityChanged())
        self._fill()

    @property
    def running(self) -> list[Attempt]:
        """Attempts that run now."""
        return list(self._running)

    # -- inside

    def _fill(self) -> None:
        while self._queue and (not self._running or self._room() >= self._queue[0].resources.cores):
            task = self._queue.popleft()
            outcome = _within_limits(task, self._behaviour(task))
            slot = self._free.pop(0) if self._free else -1
            self._running[task.attempt] = (task, outcome, self._clock, slot)
            self._busy_cores += task.resources.cores
            self.history.append(task.attempt)
            self._order += 1
            heapq.heappush(self._ends, (self._clock + outcome.duration_s, self._order, task.attempt))
            self._reports.append(Started(task.attempt, "simulated", slot))

    def _room(self) -> int:
        return self._workers - self._busy_cores

    def _release(self, attempt: Attempt) -> tuple[Task, Outcome, float, int]:
        entry = self._running.pop(attempt)
        self._busy_cores -= entry[0].resources.cores
        if 0 <= entry[3] < self._workers:
            self._free.append(entry[3])
        return entry

    def _advance(self, timeout: float | None) -> None:
        while self._ends and self._ends[0][2] not in self._running:
            heapq.heappop(self._ends)
        limit = None if timeout is None else self._clock + timeout
        if not self._ends or (limit is not None and self._ends[0][0] > limit):
            self._clock = limit if limit is not None else self._clock
            return
        end, _, attempt = heapq.heappop(self._ends)
        self._clock = max(self._clock, end)
        task, outcome, began, slot = self._release(attempt)
        usage = Usage("simulated", slot, began, outcome.duration_s, outcome.duration_s)
        if outcome.lost and outcome.failure is not None and outcome.failure.kind is FailureKind.NODE_LOST:
            self._lose_node(attempt, outcome.failure)
        elif not outcome.silent:
            self._reports.append(self._report(task, outcome, usage))
        self._fill()

    def _lose_node(self, culprit: Attempt, failure: Failure) -> None:
        others = [*self._running, *(task.attempt for task in self._queue)]
        self._queue.clear()
        for attempt in list(self._running):
            self._release(attempt)
        self._reports += [Lost(attempt, failure, alone=not others) for attempt in (culprit, *others)]

    def _report(self, task: Task, outcome: Outcome, usage: Usage) -> Report:
        if outcome.lost:
            why = outcome.failure or Failure(FailureKind.WORKER_LOST, "Its slot was killed.")
            return Lost(task.attempt, why)
        if outcome.failure is not None:
            return Finished(task.attempt, usage, failure=outcome.failure)
        data = pickle.dumps(outcome.value)
        where = self._publish(task, data)
        return Finished(task.attempt, usage, where, data, outcome.report or {})

    def _publish(self, task: Task, data: bytes) -> Location:
        """Write the result where a worker would."""
        assert self._context is not None
        if task.directory is None:
            return self._append(task, data)
        name = f"{task.directory}/result.pickle.{task.attempt.tag}"
        path = self._context.run_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return location_of(name, data)

    def _append(self, task: Task, data: bytes) -> Location:
        assert self._context is not None
        name = f"segments/{self._context.epoch}-simulated.seg"
        if self._segment is None:
            path = self._context.run_dir / name
            path.parent.mkdir(exist_ok=True)
            self._segment = path.open("ab")
        where = segments.append(self._segment, name, "result", task.attempt.chore_id, task.attempt.tag, data)
        self._segment.flush()
        return where
