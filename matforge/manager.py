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

from matforge.attempts import Attempts
from matforge.chore import Call, Chore, salt_of
from matforge.closing import Closing
from matforge.dispatch import GRACE_S, Dispatch
from matforge.engine import events
from matforge.engine.cache import Cache
from matforge.engine.lock import LockedError, RunLock
from matforge.engine.records import Ending
from matforge.engine.requests import Answer as Reply
from matforge.engine.requests import Inbox, cancel_chores
from matforge.engine.run import Run
from matforge.engine.status import StatusWriter
from matforge.engine.store import StorageError
from matforge.executors.protocol import Executor, RunContext
from matforge.model import MatForgeError, RunState
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
        self._gate = threading.RLock()
        """Held to wake the executor, so that nobody does once it is closed (re-entrant: signals)."""
        self._closed = False
        self._steering = Steering(strategy, run, functions, self._wake, buffer_time)
        self._context = context
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
        self._closing = Closing(run, status, self._teller)
        self._attempts = Attempts(
            run, executor, functions,
            dispatch=self._dispatch, recall=self._recall, teller=self._teller, closing=self._closing,
        )  # fmt: skip
        self._ends_because = "the allocation ends"
        self.done = threading.Event()

    @property
    def problem(self) -> str | None:
        """One sentence about why the run could not go on, if it could not."""
        return self._closing.problem

    # -- requests from other threads

    def interrupt(self, reason: str) -> None:
        """End the run soon, resumable; callable from any thread and from signal handlers."""

        def end() -> None:
            self._closing.interrupted = reason

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
            while not self._closing.due:
                if not self._take_requests():
                    break
                self._dispatch_ready()
                self._settle()
                self._mind_the_time()
                reports = self._executor.poll(self._patience())
                if self._lock is not None and reports:  # it may have stood still for long
                    self._lock.renew(self._executor.now())
                for report in reports:
                    self._attempts.absorb(report)
                self._settle()
                self._write_out()
        except (LockedError, StorageError, OSError) as error:
            self._closing.because_of(error)
        except Exception as error:
            self._closing.problem = f"{type(error).__name__}: {error}"
            raise
        finally:
            self._end()
        return self.status.state

    def _begin(self) -> None:
        if self.engine.graph.open or self.engine.outbox or self._decisions.plan or self._fresh:
            try:
                self._executor.start(self._context)
            except (MatForgeError, OSError) as error:
                self._closing.problem = f"The {self._executor.name} executor cannot be started: {error}"
                return
        self._attempts.learn_capacity()
        self.status.state = RunState.RUNNING
        self._tell_errors()
        self._attempts.stay_stopped()
        if self._fresh:
            self._steering.ask(None)
        self._settle()
        self._write_out(force=True)

    def _take_requests(self) -> bool:
        """Whether to go on."""
        self._hear()
        while self._requests and self._closing.interrupted is None:
            self._requests.popleft()()
        # a plan has numbered its chores already, so others have to wait for their numbers
        while self._additions and self._closing.interrupted is None and self._decisions.plan is None:
            call, added = self._additions.popleft()
            try:
                chore = self.engine.add(call)
            except BaseException as error:  # somebody waits for an answer, and the run ends of it
                added.set_exception(error)
                raise
            added.set_result(chore)
        return self._closing.interrupted is None

    def _cancel(self, chore_id: str) -> None:
        if chore_id in self.engine.records:
            self._attempts.perform(self._decisions.cancel(chore_id))

    def _hear(self) -> None:
        """Do what was asked through the run directory; journalled before it is told."""
        now = self._executor.now()
        for request in self._inbox.take(now):
            reply = Reply()
            if request.chores:
                reply, instructions = cancel_chores(self.engine, request.chores)
                self._attempts.perform(instructions)
            else:
                self._closing.interrupted = "it was cancelled with `matforge cancel`"
            self._flush(now)
            self._inbox.answer(request, reply)

    def _patience(self) -> float:
        """How long the next poll may wait."""
        if self._closing.finished or self._requests or self._additions or self._decisions.plan is not None:
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
        self._attempts.stop_rest()
        self._recall.look()
        now = self._executor.now()
        if tasks := self._attempts.select(now):
            self._flush(now)
            self._executor.submit(tasks)

    def _mind_the_time(self) -> None:
        """End the run, resumable, when its time is over or nothing can be started in what is left."""
        if self._closing.due:
            return
        dispatch, now = self._dispatch, self._executor.now()
        over = dispatch.over(now)
        if over or (dispatch.stuck() and self._steering.idle):
            left = self.engine.graph.open
            self._closing.interrupted = f"{self._ends_because}; {left} chores have not ended"
        if over:
            self._attempts.note_stopped(now, self._ends_because)

    # -- the strategy

    def _settle(self) -> None:
        """Put new endings to the strategy, apply its answers, and see whether all is done."""
        run = self.engine
        self._attempts.perform(self._decisions.advance())
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
            self._closing.finished = self._closing.finished or any(isinstance(i, events.Finish) for i in done)

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
        self._attempts.perform(instructions)

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
            self._executor.close(kill=not self._closing.finished)
        finally:
            self._closing.conclude()
            for _, added in self._additions:
                added.set_exception(MatForgeError("The run has ended; nothing can be added to it."))
            try:
                self._closing.write(self._executor.now)
            finally:
                if self._lock is not None:
                    self._lock.release()
                self.done.set()
