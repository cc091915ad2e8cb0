"""Attempts at chores: given to the executor as tasks, and what it reports of them taken into the run.

The manager submits what :meth:`Attempts.select` gives and hands over what the executor reports; what
follows from a failure (another try, a pause before it, the end of the run) is decided here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from matforge.chore import Chore
from matforge.closing import Closing
from matforge.dispatch import Dispatch
from matforge.engine import events, salvage
from matforge.engine.run import Run
from matforge.engine.steps import STOP, Stop
from matforge.executors.protocol import (
    CapacityChanged,
    Executor,
    ExecutorFailed,
    Finished,
    Lost,
    Report,
    Started,
    Task,
    Withdrawn,
)
from matforge.model import Attempt, ChoreState, Failure, FailureKind
from matforge.policy import pause_before
from matforge.recall import Recall
from matforge.steering import Entry
from matforge.telling import Teller

log = logging.getLogger("matforge")


class Attempts:
    """The manager's dealings with its executor.

    Parameters
    ----------
    run : Run
    executor : Executor
    functions : mapping
        Where the registered functions are.
    dispatch : Dispatch
        Says what may begin; learns what the executor has, and how long chores take.
    recall : Recall
        Keeps the results of chores that want it.
    teller : Teller
    closing : Closing
        Is told when the run cannot go on.
    """

    def __init__(
        self,
        run: Run,
        executor: Executor,
        functions: Mapping[str, Entry],
        *,
        dispatch: Dispatch,
        recall: Recall,
        teller: Teller,
        closing: Closing,
    ) -> None:
        self._run = run
        self._executor = executor
        self._functions = functions
        self._dispatch = dispatch
        self._recall = recall
        self._teller = teller
        self._closing = closing
        self._begun: dict[str, tuple[Started, float]] = {}
        """What is known to run, by chore, and since when."""
        self._stopped = ""
        """Name of the decision that nothing more is started, because a chore failed; empty without one."""

    # -- to the executor

    def select(self, now: float) -> list[Task]:
        """Tasks for the attempts that may begin now; each counts as running from here on."""
        self._dispatch.release(now)
        records = self._run.records
        return [self._task(records[s.id].chore, s.number) for s in self._dispatch.select(now)]

    def _task(self, chore: Chore, number: int) -> Task:
        run = self._run
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

    def perform(self, instructions: Sequence[events.Instruction]) -> None:
        """Have those attempts stopped that are not wanted any more."""
        attempts = [
            Attempt(i.id, self._run.epoch, i.number) for i in instructions if isinstance(i, events.Cancel)
        ]
        if attempts:
            self._executor.cancel(attempts)

    # -- from the executor

    def learn_capacity(self) -> None:
        """Ask what there is, and tell it."""
        capacity = self._executor.capacity()
        self._dispatch.learn_capacity(capacity)
        self._teller.tell_capacity(capacity)

    def absorb(self, report: Report) -> None:
        """Take a report into the run; one about an attempt that no longer counts changes nothing."""
        if isinstance(report, Finished | Lost):
            self._begun.pop(report.attempt.chore_id, None)
        if isinstance(report, Finished):
            self._absorb_finished(report)
        elif isinstance(report, Started):
            if report.attempt.epoch == self._run.epoch:
                self._begun[report.attempt.chore_id] = report, self._executor.now()
                self._run.graph.handle(events.Started(report.attempt.chore_id, report.attempt.number))
        elif isinstance(report, Lost):
            # what a broken executor gives back has done nothing wrong: it is simply still to be run
            if self._closing.problem is None and self._run.is_current(report.attempt):
                log.warning("%s was lost: %s", report.attempt.chore_id, report.failure.message)
                again = self._run.lost(report.attempt, report.failure, alone=report.alone)
                self._after_failure(self._run.records[report.attempt.chore_id].chore, report.failure, again)
        elif isinstance(report, Withdrawn):
            if self._run.is_current(report.attempt):
                self._run.withdrawn(report.attempt)
        elif isinstance(report, CapacityChanged):
            self.learn_capacity()
        elif isinstance(report, ExecutorFailed):
            self._closing.problem = report.failure.message
            log.error("the executor failed: %s\n%s", report.failure.message, report.failure.stderr)

    def _absorb_finished(self, report: Finished) -> None:
        if not self._run.is_current(report.attempt):
            log.info("a late report of %s %s is discarded", report.attempt.chore_id, report.attempt.tag)
            return
        chore = self._run.records[report.attempt.chore_id].chore
        self._dispatch.learn_wall(chore.name, report.usage.wall_s)
        if report.failure is not None:
            mended = salvage.mend(self._run, chore.id, report.failure)
            again = self._run.failed(report.attempt, report.failure, report.usage, printed=report.printed)
            self._after_failure(chore, report.failure, again, mended=mended)
            return
        assert report.result is not None
        self._run.succeeded(
            report.attempt,
            report.result,
            report=report.report,
            usage=report.usage,
            inline=report.inline,
            printed=report.printed,
        )
        self._recall.keep(chore, report.report)

    def note_stopped(self, now: float, because: str) -> None:
        """Write down why the attempts end that run when the time is over.

        Parameters
        ----------
        now : float
        because : str
            Half a sentence.
        """
        for name, (begun, at) in self._begun.items():
            if not self._run.is_current(begun.attempt) or self._run.graph.nodes[name].cancelling:
                continue
            failure = Failure(
                FailureKind.WALLTIME,
                f"{name}: it was stopped while it ran ({because}).",
                host=begun.host, slot=begun.slot, attempt=begun.attempt.number,
                started_at=at, wall_s=now - at,
            )  # fmt: skip
            self._run.lost(begun.attempt, failure)

    # -- what follows from a failure

    def _after_failure(self, chore: Chore, failure: Failure, again: bool, *, mended: bool = False) -> None:
        """Wait before the next try, or stop the run, if the kind or the chore's author wants it."""
        closing = self._closing
        if failure.kind is FailureKind.STORAGE and not mended:
            closing.interrupted = closing.interrupted or failure.message.removesuffix(".")
        if again:
            tries = len(self._run.records[chore.id].attempts)
            log.info("%s is tried again after: %s", chore.id, failure.message)
            if pause := pause_before(failure.kind, tries):
                self._dispatch.pause(chore.id, self._executor.now() + pause)
        elif chore.policy.stops and self._run.graph.nodes[chore.id].state is ChoreState.FAILED:
            self._stop_for(chore)

    def stay_stopped(self) -> None:
        """In a run that is taken up again: keep to the decision that nothing more is started."""
        decisions = self._run.decisions
        self._stopped = next((o for o in sorted(decisions.origins) if o.startswith(STOP)), "")
        for chore in decisions.stopped_by():
            self._stop_for(chore)

    def stop_rest(self) -> None:
        """Where nothing more is to be started: stop what was spawned since, or is to be tried again."""
        if self._stopped and self._run.unstarted:
            self._stop()

    def _stop_for(self, chore: Chore) -> None:
        """Its author wants nothing more to be started once it has failed."""
        self._stopped = f"{STOP}{chore.id}"
        self._executor.withdraw()  # short ones may wait at the agents
        self._stop()

    def _stop(self) -> None:
        self.perform(self._run.decisions.decide([Stop()], state=None, origin=self._stopped))
