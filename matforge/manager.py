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
from contextlib import suppress
from pathlib import Path

from matforge.chore import Call, Chore, salt_of
from matforge.dispatch import GRACE_S, Dispatch
from matforge.engine import events, salvage
from matforge.engine.cache import Cache
from matforge.engine.lock import LockedError, RunLock
from matforge.engine.records import Ending
from matforge.engine.requests import Answer as Reply
from matforge.engine.requests import Inbox, cancel_chores
from matforge.engine.run import Run
from matforge.engine.status import StatusWriter
from matforge.engine.steps import STOP, Stop
from matforge.engine.store import StorageError, storage_sentence
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
    Withdrawn,
)
from matforge.model import Attempt, ChoreState, Failure, FailureKind, MatForgeError, RunState
from matforge.policy import pause_before
from matforge.recall import Recall
from matforge.steering import Answer, Entry, Steering
from matforge.strategy import FutureProcessingStrategy
from matforge.telling import Teller

log = logging.getLogger("matforge")

IDLE_POLL_S = 5.0
"""Longest wait for a report; the lock is renewed and the status looked at in between."""
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
    cache : Cache, optional
        Results that other runs have made, for chores that want them.
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
        cache: Cache | None = None,
    ) -> None:
        self.engine = run
        self._decisions = run.decisions
        self.status = status
        status.tally = run.tally
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
        self._inbox = Inbox(run.store.path, lock.token if lock is not None else "")
        self._requests: deque[Callable[[], None]] = deque()
        self._additions: deque[tuple[Call, Future[Chore]]] = deque()
        self._held = held
        self._teller = Teller(run, status, salt_of(seed), on_end)
        self._recall = Recall(run, cache, functions, self._request, self._teller.seed_of)
        self._asked = 0
        """Endings at the front of the outbox that were put to the strategy."""
        self._dispatch = Dispatch(run, backfill=strategy.backfill)
        self._begun: dict[str, tuple[Started, float]] = {}
        """What is known to run, by chore, and since when."""
        self._ends_because = "the allocation ends"
        self._finished = False
        self._stopped = ""
        """Name of the decision that nothing more is started, because a chore failed; empty without one."""
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

    def drain(self, reason: str, within: float | None = None) -> None:
        """Start nothing more, let what runs end, and leave, resumable; callable from any thread.

        Parameters
        ----------
        reason : str
            Half a sentence.
        within : float, optional
            Seconds after which what still runs is stopped; default: when the allocation ends.
        """

        def close() -> None:
            log.info("nothing more is started (%s)", reason)
            self._ends_because = reason
            # the dispatcher stops a little earlier, so that everything can be written in time
            at = None if within is None else self._executor.now() + within + GRACE_S
            self._dispatch.close(at)
            self._executor.withdraw()  # what waits at an agent would begin all the same

        self._request(close)

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
                if not self._take_requests():
                    break
                self._dispatch_ready()
                self._settle()
                self._mind_the_time()
                reports = self._executor.poll(self._patience())
                if self._lock is not None and reports:  # it may have stood still for long
                    self._lock.renew(self._executor.now())
                for report in reports:
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

    def _sentence(self, error: OSError) -> str:
        return storage_sentence(Path(error.filename or self.engine.store.path), error)

    def _begin(self) -> None:
        if self.engine.graph.open or self.engine.outbox or self._decisions.plan or self._fresh:
            try:
                self._executor.start(self._context)
            except (MatForgeError, OSError) as error:
                self.problem = f"The {self._executor.name} executor cannot be started: {error}"
                return
        self._learn_capacity()
        self.status.state = RunState.RUNNING
        self._tell_errors()
        self._stopped = next((o for o in sorted(self._decisions.origins) if o.startswith(STOP)), "")
        for chore in self._decisions.stopped_by():
            self._stop_for(chore)
        if self._fresh:
            self._steering.ask(None)
        self._settle()
        self._write_out(force=True)

    def _learn_capacity(self) -> None:
        capacity = self._executor.capacity()
        self._dispatch.learn_capacity(capacity)
        self.status.allocation = {
            "nodes": capacity.nodes,
            "cores_per_node": capacity.cores_per_node,
            "gpus_per_node": capacity.gpus_per_node,
            "total_cores": capacity.total_cores,
            "total_gpus": capacity.total_gpus,
        }

    def _take_requests(self) -> bool:
        """Whether to go on."""
        self._hear()
        while self._requests and self._interrupted is None:
            self._requests.popleft()()
        # a plan has numbered its chores already, so others have to wait for their numbers
        while self._additions and self._interrupted is None and self._decisions.plan is None:
            call, added = self._additions.popleft()
            try:
                chore = self.engine.add(call)
            except BaseException as error:  # somebody waits for an answer, and the run ends of it
                added.set_exception(error)
                raise
            added.set_result(chore)
        return self._interrupted is None

    def _cancel(self, chore_id: str) -> None:
        if chore_id in self.engine.records:
            self._perform(self._decisions.cancel(chore_id))

    def _hear(self) -> None:
        """Do what was asked through the run directory; journalled before it is told."""
        now = self._executor.now()
        for request in self._inbox.take(now):
            reply = Reply()
            if request.chores:
                reply, instructions = cancel_chores(self.engine, request.chores)
                self._perform(instructions)
            else:
                self._interrupted = "it was cancelled with `matforge cancel`"
            self._flush(now)
            self._inbox.answer(request, reply)

    def _patience(self) -> float:
        """How long the next poll may wait."""
        if self._finished or self._requests or self._additions or self._decisions.plan is not None:
            return 0.0
        if self.engine.graph.lookups:
            return 0.0
        now = self._executor.now()
        waits = [IDLE_POLL_S, self._inbox.due - now]
        if (due := self.engine.journal.sync_due) is not None:
            waits.append(due - now)
        if self.status.changed(self._teller.counters()):
            waits.append(self.status.due() - now)
        if (due := self._dispatch.due()) is not None:
            waits.append(due - now)
        return max(0.0, min(waits))

    def _write_out(self, *, force: bool = False) -> None:
        now = self._executor.now()
        self._flush(now)
        if force or self.status.due() <= now:
            self.status.write(self._teller.counters(), now, force=force)

    def _flush(self, now: float) -> None:
        """Out of this process: everything that must be known before anything follows from it."""
        if self._lock is not None:
            self._lock.renew(now)  # first: whoever has lost the run must not write
        self.engine.write_endings()
        self._teller.tell(now)
        self.engine.flush(now)

    # -- dispatch

    def _dispatch_ready(self) -> None:
        if self._stopped and self.engine.unstarted:  # spawned since, or to be tried again
            self._stop()
        self._recall.look()
        now = self._executor.now()
        self._dispatch.release(now)
        tasks = [self._task(self.engine.records[s.id].chore, s.number) for s in self._dispatch.select(now)]
        if tasks:
            self._flush(now)
            self._executor.submit(tasks)

    def _mind_the_time(self) -> None:
        """End the run, resumable, when its time is over or nothing can be started in what is left."""
        if self._finished or self._interrupted or self.problem:
            return
        dispatch, now = self._dispatch, self._executor.now()
        over = dispatch.over(now)
        if over or (dispatch.stuck() and self._steering.idle):
            left = self.engine.graph.open
            self._interrupted = f"{self._ends_because}; {left} chores have not ended"
        if over:
            self._note_stopped(now)

    def _note_stopped(self, now: float) -> None:
        """Write down why the attempts end that run when the time is over."""
        for name, (begun, at) in self._begun.items():
            if not self.engine.is_current(begun.attempt) or self.engine.graph.nodes[name].cancelling:
                continue
            failure = Failure(
                FailureKind.WALLTIME,
                f"{name}: it was stopped while it ran ({self._ends_because}).",
                host=begun.host, slot=begun.slot, attempt=begun.attempt.number,
                started_at=at, wall_s=now - at,
            )  # fmt: skip
            self.engine.lost(begun.attempt, failure)

    def _task(self, chore: Chore, number: int) -> Task:
        run = self.engine
        record = run.records[chore.id]
        inputs = []
        for name in chore.inputs:
            where = run.records[name].result
            assert where is not None, f"{chore.id} is ready, but {name} has no result"
            inputs.append(where)
        return Task(
            attempt=Attempt(chore.id, run.epoch, number),
            name=chore.name,
            resources=chore.resources,
            lane=chore.lane,
            function=self._functions[chore.function].file if chore.function else None,
            payload=run.payload_of(chore),
            inputs=tuple(inputs),
            directory=record.directory,
            seed=self._teller.seed_of(chore),
            expected_s=self._dispatch.expected(chore.id),
            timeout_s=chore.policy.timeout,
            memory=chore.resources.memory,
            alone=run.graph.nodes[chore.id].suspect,
        )

    def _perform(self, instructions: list[events.Instruction]) -> None:
        attempts = [
            Attempt(i.id, self.engine.epoch, i.number) for i in instructions if isinstance(i, events.Cancel)
        ]
        if attempts:
            self._executor.cancel(attempts)

    # -- reports

    def _absorb(self, report: Report) -> None:
        if isinstance(report, Finished | Lost):
            self._begun.pop(report.attempt.chore_id, None)
        if isinstance(report, Finished):
            self._absorb_finished(report)
        elif isinstance(report, Started):
            if report.attempt.epoch == self.engine.epoch:
                self._begun[report.attempt.chore_id] = report, self._executor.now()
                self.engine.graph.handle(events.Started(report.attempt.chore_id, report.attempt.number))
        elif isinstance(report, Lost):
            # what a broken executor gives back has done nothing wrong: it is simply still to be run
            if self.problem is None and self.engine.is_current(report.attempt):
                log.warning("%s was lost: %s", report.attempt.chore_id, report.failure.message)
                again = self.engine.lost(report.attempt, report.failure, alone=report.alone)
                self._after_failure(self.engine.records[report.attempt.chore_id].chore, report.failure, again)
        elif isinstance(report, Withdrawn):
            if self.engine.is_current(report.attempt):
                self.engine.withdrawn(report.attempt)
        elif isinstance(report, CapacityChanged):
            self._learn_capacity()
        elif isinstance(report, ExecutorFailed):
            self.problem = report.failure.message
            log.error("the executor failed: %s\n%s", report.failure.message, report.failure.stderr)

    def _absorb_finished(self, report: Finished) -> None:
        if not self.engine.is_current(report.attempt):
            log.info("a late report of %s %s is discarded", report.attempt.chore_id, report.attempt.tag)
            return
        chore = self.engine.records[report.attempt.chore_id].chore
        self._dispatch.learn_wall(chore.name, report.usage.wall_s)
        if report.failure is not None:
            mended = salvage.mend(self.engine, chore.id, report.failure)
            again = self.engine.failed(report.attempt, report.failure, report.usage, printed=report.printed)
            self._after_failure(chore, report.failure, again, mended=mended)
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
        self._recall.keep(chore, report.report)

    def _after_failure(self, chore: Chore, failure: Failure, again: bool, *, mended: bool = False) -> None:
        """Wait before the next try, or stop the run, if the kind or the chore's author wants it."""
        if failure.kind is FailureKind.STORAGE and not mended:
            self._interrupted = self._interrupted or failure.message.removesuffix(".")
        if again:
            tries = len(self.engine.records[chore.id].attempts)
            log.info("%s is tried again after: %s", chore.id, failure.message)
            if pause := pause_before(failure.kind, tries):
                self._dispatch.pause(chore.id, self._executor.now() + pause)
        elif chore.policy.stops and self.engine.graph.nodes[chore.id].state is ChoreState.FAILED:
            self._stop_for(chore)

    def _stop_for(self, chore: Chore) -> None:
        """Its author wants nothing more to be started once it has failed."""
        self._stopped = f"{STOP}{chore.id}"
        self._executor.withdraw()  # short ones may wait at the agents
        self._stop()

    def _stop(self) -> None:
        self._perform(self._decisions.decide([Stop()], state=None, origin=self._stopped))

    # -- the strategy

    def _settle(self) -> None:
        """Put new endings to the strategy, apply its answers, and see whether all is done."""
        run = self.engine
        self._perform(self._decisions.advance())
        while True:
            while self._asked < len(run.outbox):
                self._steering.ask(run.outbox[self._asked])
                self._asked += 1
            # answers count in their order, so what follows a plan waits for it
            answer = self._steering.collect() if self._decisions.plan is None else None
            if answer is None:
                break
            self._apply(answer)
        if self._decisions.plan or self._held or self._additions:
            return
        if not run.outbox and self._steering.idle:
            done = run.graph.handle(events.Settled())
            self._finished = self._finished or any(isinstance(i, events.Finish) for i in done)

    def _apply(self, answer: Answer) -> None:
        if answer.ending is None:
            instructions = self._decisions.decide(
                answer.steps, state=answer.state, origin=answer.origin, error=answer.error
            )
        else:
            instructions = self._decisions.settle(
                answer.ending, answer.steps, state=answer.state, error=answer.error, earlier=answer.earlier
            )
            self._asked -= 1 + len(answer.earlier)
        if answer.error:
            self._tell_errors()
        self._perform(instructions)

    def _tell_errors(self) -> None:
        if self._decisions.strategy_errors:
            self.status.extra["strategy_errors"] = self._decisions.strategy_errors[-ERRORS_SHOWN:]

    # -- the end

    def _end(self) -> None:
        """Leave nothing behind: no process, no unwritten record, no lock."""
        with self._gate:
            self._closed = True
        self._steering.close()
        self._recall.close()
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
            bad = self.engine.graph.counts[ChoreState.FAILED] or self._decisions.strategy_errors
            return RunState.FAILED if bad else RunState.COMPLETED
        return RunState.FAILED if self.problem else RunState.INTERRUPTED

    def _close_files(self) -> None:
        run = self.engine
        try:
            if self._taken_over:
                return
            salvage.sweep(run, run.lossy)
            if self._finished:
                run.journal.append({"e": "state", "s": self.status.state.value})
            run.flush(float("inf"))  # what the records point to is synced before they are
            run.store.close()
            run.journal.close()
            self.status.write(self._teller.counters(), self._executor.now(), force=True)
        except (OSError, StorageError) as error:
            self.problem = self._sentence(error) if isinstance(error, OSError) else str(error)
            self.status.state = RunState.INTERRUPTED
            with suppress(OSError):  # the place may have room for so little
                self.status.write(self._teller.counters(), self._executor.now(), force=True)
        finally:
            run.journal.abandon()
            run.store.abandon()
