"""The driver's loop: executor reports in, strategy's answers in, tasks and journal records out.

One thread, no locks but one: everything that changes the run happens in :meth:`FluxManager.run`.
Other threads only put requests into a queue and wake the loop.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from matforge.chore import Call, Chore, content_key
from matforge.engine import arbitration, graph
from matforge.engine.lock import LockedError, RunLock
from matforge.engine.records import Ending
from matforge.engine.run import Run
from matforge.engine.status import Counters, StatusWriter
from matforge.engine.store import FULL_LIMIT, OUT_NAME, StorageError, storage_sentence
from matforge.executors.protocol import (
    CapacityChanged,
    Executor,
    ExecutorFailed,
    Finished,
    Lost,
    Report,
    RunContext,
    Started,
    Task,
)
from matforge.model import Attempt, ChoreState, MatForgeError, RunState
from matforge.steering import Answer, Entry, Steering
from matforge.strategy import FutureProcessingStrategy

log = logging.getLogger("matforge")

LEAVE_S = 20.0
"""Seconds before the end of the allocation at which a run is ended, resumable: enough to write
everything down, and to look at the clock once more in between."""
IDLE_POLL_S = 5.0
"""Longest wait for a report; the lock is renewed and the status looked at in between."""
METADATA_VERSION = 1
ERRORS_SHOWN = 20
"""Strategy errors in ``status.json``; all of them are in the journal and in the log."""


class FluxManager:
    """Runs one run to its end.

    Parameters
    ----------
    run : Run
        The run, new or replayed.
    executor : Executor
        Not yet started.
    strategy : FutureProcessingStrategy
        Its state already restored.
    functions : mapping
        What may be spawned.
    status : StatusWriter
    lock : RunLock, optional
        Held by the caller; renewed here.
    context : RunContext
        Passed to the executor.
    fresh : bool
        Whether the strategy is still to be asked what to do at the start.
    held : bool
        Whether the run stays open for more chores (:meth:`add`) until :meth:`release`.
    seed : int
        Of the run; 0 leaves the seeds of the chores as they are.
    buffer_time : float
        Seconds; passed to a strategy with full control.
    on_end : callable, optional
        Called in the manager's thread for every chore that has ended, after it was journalled.
    """

    def __init__(
        self,
        run: Run,
        executor: Executor,
        strategy: FutureProcessingStrategy,
        functions: Mapping[str, Entry],
        *,
        status: StatusWriter,
        context: RunContext,
        lock: RunLock | None = None,
        fresh: bool = True,
        held: bool = False,
        seed: int = 0,
        buffer_time: float = 0.0,
        on_end: Callable[[Ending], None] | None = None,
    ) -> None:
        self.engine = run
        self.status = status
        self._executor = executor
        self._strategy = strategy
        self._gate = threading.RLock()
        """Held to wake the executor, so that nobody does once it is closed (re-entrant: signals)."""
        self._closed = False
        self._steering = Steering(strategy, run, functions, self._wake, buffer_time)
        self._context = context
        self._functions = functions
        self._lock = lock
        self._fresh = fresh
        self._on_end = on_end
        self._requests: deque[Callable[[], None]] = deque()
        self._additions: deque[tuple[Call, Future[Chore]]] = deque()
        self._held = held
        self._salt = int(content_key("seed", str(seed))[:16], 16) >> 1 if seed else 0
        self._asked = 0
        """Endings at the front of the outbox that were put to the strategy."""
        self._mean_wall: float | None = None
        self._finished = False
        self._interrupted: str | None = None
        self._taken_over = False
        """Whether the run belongs to another driver by now, so that nothing may be written."""
        self.problem: str | None = None
        """One sentence about why the run could not go on, if it could not."""
        self.done = threading.Event()

    # -- requests from other threads

    def interrupt(self, reason: str) -> None:
        """End the run soon, resumable; callable from any thread and from signal handlers."""

        def end() -> None:
            self._interrupted = reason

        self._request(end)

    def cancel(self, chore_id: str) -> None:
        """Cancel a chore; callable from any thread."""
        self._request(lambda: self._cancel(chore_id))

    def add(self, call: Call) -> Future[Chore]:
        """Add a chore to the run, which must be held open; callable from any thread.

        Returns
        -------
        Future
            Of the chore; fails with :class:`MatForgeError` if the run ends before.
        """
        added: Future[Chore] = Future()
        with self._gate:
            if self._closed:
                raise MatForgeError("The run has ended; nothing can be added to it.")
            self._additions.append((call, added))
            self._executor.wake()
        return added

    def release(self) -> None:
        """Let a run that was held open end when all its chores have; callable from any thread."""

        def let_go() -> None:
            self._held = False

        self._request(let_go)

    def _request(self, what: Callable[[], None]) -> None:
        self._requests.append(what)
        self._wake()

    def _wake(self) -> None:
        with self._gate:
            if not self._closed:
                self._executor.wake()

    # -- the loop

    def run(self) -> RunState:
        """Drain the graph.

        Returns
        -------
        RunState
            ``COMPLETED``, ``FAILED`` (a chore or the strategy failed, or nothing could be run) or
            ``INTERRUPTED`` (can be resumed).
        """
        try:
            self._begin()
            while not (self._finished or self._interrupted or self.problem):
                if not self._take_requests() or self._time_is_up():
                    break
                self._dispatch()
                self._settle()
                for report in self._executor.poll(self._patience()):
                    self._absorb(report)
                self._settle()
                self._write_out()
        except LockedError as error:
            self._interrupted, self._taken_over = str(error), True
        except StorageError as error:
            self._interrupted = str(error)
        except OSError as error:
            self._interrupted = self._sentence(error)
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"
            raise
        finally:
            self._end()
        return self.status.state

    def _time_is_up(self) -> bool:
        """Whether the allocation ends so soon that the run has to be left as it is."""
        ends_at = self._capacity.ends_at
        if ends_at is None or self._executor.now() < ends_at - LEAVE_S:
            return False
        self._interrupted = "the allocation ends"
        return True

    def _sentence(self, error: OSError) -> str:
        return storage_sentence(Path(error.filename or self.engine.store.path), error)

    def _begin(self) -> None:
        if self.engine.graph.open or self.engine.outbox or self.engine.plan or self._fresh:
            try:
                self._executor.start(self._context)
            except (MatForgeError, OSError) as error:
                self.problem = f"The {self._executor.name} executor cannot be started: {error}"
                return
        self._learn_capacity()
        self.status.state = RunState.RUNNING
        self._tell_errors()
        if self._fresh:
            self._steering.ask(None)
        self._settle()
        self._write_out(force=True)

    def _learn_capacity(self) -> None:
        self._capacity = capacity = self._executor.capacity()
        self.status.allocation = {
            "nodes": capacity.nodes,
            "cores_per_node": capacity.cores_per_node,
            "gpus_per_node": capacity.gpus_per_node,
            "total_cores": capacity.total_cores,
            "total_gpus": capacity.total_gpus,
        }

    def _take_requests(self) -> bool:
        """Whether to go on."""
        while self._requests and self._interrupted is None:
            self._requests.popleft()()
        # a plan has numbered its chores already, so others have to wait for their numbers
        while self._additions and self._interrupted is None and self.engine.plan is None:
            call, added = self._additions.popleft()
            added.set_result(self.engine.add(call))
        return self._interrupted is None

    def _cancel(self, chore_id: str) -> None:
        if chore_id in self.engine.records:
            self._perform(self.engine.cancel(chore_id))

    def _patience(self) -> float:
        """How long the next poll may wait."""
        if self._finished or self._requests or self._additions or self.engine.plan is not None:
            return 0.0
        now = self._executor.now()
        waits = [IDLE_POLL_S]
        if (due := self.engine.journal.sync_due) is not None:
            waits.append(due - now)
        if self.status.changed(self._counters()):
            waits.append(self.status.due() - now)
        return max(0.0, min(waits))

    def _write_out(self, *, force: bool = False) -> None:
        now = self._executor.now()
        if self._lock is not None:
            self._lock.renew(now)  # first: whoever has lost the run must not write
        self._flush(now)
        if force or self.status.due() <= now:
            self.status.write(self._counters(), now, force=force)

    def _flush(self, now: float) -> None:
        """Out of this process: everything that must be known before anything follows from it."""
        self.engine.write_endings()
        self._tell()
        self.engine.flush(now)

    # -- dispatch

    def _dispatch(self) -> None:
        run, total = self.engine, self._capacity.total_cores
        depth = min(self._capacity.queue_depth, arbitration.queue_depth(self._mean_wall, total))
        if not self._strategy.backfill:
            if run.cores_in_flight:
                return
            depth = run.graph.counts[ChoreState.READY] * total  # a whole wave
        tasks: list[Task] = []
        while (chore_id := run.graph.next_ready()) is not None:
            cores = run.records[chore_id].chore.resources.cores
            if not arbitration.fits_now(run.cores_in_flight, cores, total, depth):
                break
            submit = run.submit_next()
            assert submit is not None
            tasks.append(self._task(run.records[submit.id].chore, submit.number))
        if tasks:
            self._flush(self._executor.now())
            self._executor.submit(tasks)

    def _task(self, chore: Chore, number: int) -> Task:
        run = self.engine
        record = run.records[chore.id]
        inputs = []
        for name in chore.inputs:
            where = run.records[name].result
            assert where is not None, f"{chore.id} is ready, but {name} has no result"
            inputs.append(where)
        payload = run.small_payloads.pop(chore.id, None)
        return Task(
            attempt=Attempt(chore.id, run.epoch, number),
            name=chore.name,
            resources=chore.resources,
            lane=chore.lane,
            function=self._functions[chore.function].file if chore.function else None,
            payload=payload if payload is not None else chore.payload,
            inputs=tuple(inputs),
            directory=record.directory,
            seed=self.seed_of(chore),
        )

    def seed_of(self, chore: Chore) -> int:
        """A reproducible 63-bit seed: of the chore's key and the run's seed."""
        return chore.seed ^ self._salt

    def _perform(self, instructions: list[graph.Instruction]) -> None:
        attempts = [
            Attempt(i.id, self.engine.epoch, i.number) for i in instructions if isinstance(i, graph.Cancel)
        ]
        if attempts:
            self._executor.cancel(attempts)

    # -- reports

    def _absorb(self, report: Report) -> None:
        if isinstance(report, Finished):
            self._absorb_finished(report)
        elif isinstance(report, Started):
            if report.attempt.epoch == self.engine.epoch:
                self.engine.graph.handle(graph.Started(report.attempt.chore_id, report.attempt.number))
        elif isinstance(report, Lost):
            # what a broken executor gives back has done nothing wrong: it is simply still to be run
            if self.problem is None and self.engine.is_current(report.attempt):
                log.warning("%s was lost: %s", report.attempt.chore_id, report.failure.message)
                self.engine.lost(report.attempt, report.failure)
        elif isinstance(report, CapacityChanged):
            self._learn_capacity()
        elif isinstance(report, ExecutorFailed):
            self.problem = report.failure.message
            log.error("the executor failed: %s\n%s", report.failure.message, report.failure.stderr)

    def _absorb_finished(self, report: Finished) -> None:
        if not self.engine.is_current(report.attempt):
            log.info("a late report of %s %s is discarded", report.attempt.chore_id, report.attempt.tag)
            return
        wall = report.usage.wall_s
        self._mean_wall = wall if self._mean_wall is None else 0.9 * self._mean_wall + 0.1 * wall
        if report.failure is not None:
            self.engine.failed(report.attempt, report.failure, report.usage, printed=report.printed)
            return
        assert report.result is not None
        self.engine.succeeded(
            report.attempt,
            report.result,
            report=report.report,
            usage=report.usage,
            inline=report.inline,
            printed=report.printed,
        )

    # -- the strategy

    def _settle(self) -> None:
        """Put new endings to the strategy, apply its answers, and see whether all is done."""
        run = self.engine
        self._perform(run.advance())
        while True:
            while self._asked < len(run.outbox):
                self._steering.ask(run.outbox[self._asked])
                self._asked += 1
            # answers count in their order, so what follows a plan waits for it
            answer = self._steering.collect() if run.plan is None else None
            if answer is None:
                break
            self._apply(answer)
        if run.plan or self._held or self._additions:
            return
        if not run.outbox and self._steering.idle:
            done = run.graph.handle(graph.Settled())
            self._finished = self._finished or any(isinstance(i, graph.Finish) for i in done)

    def _apply(self, answer: Answer) -> None:
        run = self.engine
        if answer.ending is None:
            instructions = run.decide(
                answer.steps, state=answer.state, origin=answer.origin, error=answer.error
            )
        else:
            instructions = run.settle(answer.ending, answer.steps, state=answer.state, error=answer.error)
            self._asked -= 1
        if answer.error:
            self._tell_errors()
        self._perform(instructions)

    def _tell_errors(self) -> None:
        if self.engine.strategy_errors:
            self.status.extra["strategy_errors"] = self.engine.strategy_errors[-ERRORS_SHOWN:]

    def _tell(self) -> None:
        """Metadata, status and whoever waits: of what is in the journal's queue by now."""
        endings, self.engine.written = self.engine.written, []
        for ending in endings:
            self._tell_one(ending)

    def _tell_one(self, ending: Ending) -> None:
        run, chore = self.engine, ending.chore
        record = run.records[chore.id]
        failed = ending.state is ChoreState.FAILED
        directory = record.directory
        few = run.graph.counts[ChoreState.FAILED] <= FULL_LIMIT
        if directory is None and (ending.facts.printed or (failed and ending.facts.number and few)):
            directory = f"{OUT_NAME}/{chore.id}"  # where a person will look
        if failed and ending.failure is not None:
            self.status.failed(chore.id, ending.failure, self._executor.now())
            log.warning("%s failed (%s): %s", chore.id, ending.failure.kind.value, ending.failure.message)
        run.store.put_metadata(chore.id, directory, self._metadata(ending))
        record.attempts = []
        run.small_payloads.pop(chore.id, None)
        if self._on_end is not None:
            self._on_end(ending)

    def _metadata(self, ending: Ending) -> dict[str, Any]:
        chore = ending.chore
        return {
            "format_version": METADATA_VERSION,
            "chore_id": chore.id,
            "key": chore.key,
            "name": chore.name,
            "function": chore.function,
            "resources": chore.resources.as_dict(),
            "dependencies": list(chore.inputs),
            "parent": chore.parent,
            "seed": self.seed_of(chore),
            "state": ending.state.value,
            "failure": ending.failure.as_dict() if ending.failure else None,
            "report": ending.facts.report,
            "result": ending.result.as_list() if ending.result else None,
            "attempts": self.engine.records[chore.id].attempts,
        }

    # -- the end

    def _counters(self) -> Counters:
        run, allocation = self.engine, self.status.allocation
        counts = run.graph.counts
        return Counters(
            ready=counts[ChoreState.READY],
            blocked=counts[ChoreState.BLOCKED],
            running=counts[ChoreState.RUNNING],
            completed=counts[ChoreState.COMPLETED],
            failed=counts[ChoreState.FAILED],
            cancelled=counts[ChoreState.CANCELLED],
            free_cores=max(0, allocation.get("total_cores", 0) - run.cores_in_flight),
            free_gpus=max(0, allocation.get("total_gpus", 0) - run.gpus_in_flight),
        )

    def _end(self) -> None:
        """Leave nothing behind: no process, no unwritten record, no lock."""
        with self._gate:
            self._closed = True
        self._steering.close()
        try:
            self._executor.close(kill=not self._finished)
        finally:
            self.status.state = self._final_state()
            self.problem = self.problem or self._interrupted
            for _, added in self._additions:
                added.set_exception(MatForgeError("The run has ended; nothing can be added to it."))
            try:
                self._close_files()
            finally:
                if self._lock is not None:
                    self._lock.release()
                self.done.set()

    def _final_state(self) -> RunState:
        if self._finished:
            bad = self.engine.graph.counts[ChoreState.FAILED] or self.engine.strategy_errors
            return RunState.FAILED if bad else RunState.COMPLETED
        return RunState.FAILED if self.problem else RunState.INTERRUPTED

    def _close_files(self) -> None:
        run = self.engine
        try:
            run.store.close()
            if self._taken_over:
                return
            if self._finished:
                run.journal.append({"e": "state", "s": self.status.state.value})
            run.journal.close()
            self.status.write(self._counters(), self._executor.now(), force=True)
        except OSError as error:
            self.problem = self._sentence(error)
            if self.status.state is RunState.COMPLETED:
                self.status.state = RunState.INTERRUPTED
        finally:
            run.journal.abandon()
