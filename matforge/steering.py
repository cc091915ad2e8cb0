"""Runs a strategy beside the manager, so that a slow one stalls nothing.

Endings go in, answers come out in the same order. Cheap built-in strategies answer at once in the
manager's thread; all others have a thread of their own.
"""

from __future__ import annotations

import logging
import pickle
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from matforge.chore import Call, Registration, check_nice, nearest
from matforge.control import Desk, RunOverError
from matforge.engine import results
from matforge.engine.events import Cancelled, Reprioritised
from matforge.engine.records import Ending
from matforge.engine.run import Run
from matforge.engine.steps import Step
from matforge.engine.steps import Stop as StopStep
from matforge.fingerprint import fingerprint
from matforge.model import ChoreState, OutputReference, Resources, UsageError
from matforge.packing import pack
from matforge.policy import DEFAULT_POLICY, Policy
from matforge.sources import sources_of
from matforge.strategy import (
    Cancel,
    Decision,
    Event,
    FutureProcessingStrategy,
    Reprioritise,
    Spawn,
    View,
    decisions_of,
    freeze_state,
)

log = logging.getLogger("matforge")


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered function as the run knows it: its file, resources and display name."""

    file: str
    resources: Resources
    id_name: str
    policy: Policy = DEFAULT_POLICY
    fingerprint: str = ""
    """What the function is, if its results are shared between runs."""
    sources: str = ""
    """Digest of the user's own modules that its pickle takes by name, if it has a fingerprint."""

    @classmethod
    def of(cls, registration: Registration, file: str, data: bytes) -> Entry:
        """The entry for a registration whose function was pickled, as ``data``, into ``file``."""
        rules = registration.policy
        entry = cls(file, registration.resources, registration.id_name, rules)
        if rules.cache is None:
            return entry
        known = fingerprint(registration.func, rules.cache)
        return replace(entry, fingerprint=known, sources=sources_of(data))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the strategy made of one ending (None: of the start of the run)."""

    ending: Ending | None
    steps: list[Step]
    state: str | None
    error: str = ""
    origin: str = "start"
    """Names an answer to no ending."""
    asked: bool = True
    """Whether there was a question; a strategy with full control may decide without one."""
    earlier: tuple[Ending, ...] = ()
    """Endings before this one that are answered with it: all or none must be known after a crash."""


class Steering:
    """One strategy at work.

    Parameters
    ----------
    strategy : FutureProcessingStrategy
    run : Run
        Only looked at, through :class:`~matforge.strategy.View`.
    functions : mapping of str to Entry
        What may be spawned.
    wake : callable
        Called from the strategy's thread when there is an answer.
    buffer_time : float
        Passed on to a strategy with full control.
    """

    def __init__(
        self,
        strategy: FutureProcessingStrategy,
        run: Run,
        functions: Mapping[str, Entry],
        wake: Callable[[], None],
        buffer_time: float = 0.0,
    ) -> None:
        self._strategy = strategy
        self._buffer_time = buffer_time
        self._run = run
        self._functions = functions
        self._wake = wake
        graph = run.graph

        def state_of(chore_id: str) -> ChoreState | None:
            node = graph.nodes.get(chore_id)
            return node.state if node is not None else None

        self._view = View(graph.counts, state_of)
        self._questions: deque[Ending | None] = deque()
        self._answers: deque[Answer] = deque()
        self._given = threading.Condition()
        self._closed = False
        self.outstanding = 0
        """Questions asked whose answers have not been collected."""
        controls = strategy.controls()
        silent = type(strategy).on_event is FutureProcessingStrategy.on_event
        self._silent = strategy.inline and silent and not controls
        """Whether it never decides anything about an ending, so that it need not be asked."""
        self._unasked = sum(origin.startswith("control-") for origin in run.decisions.origins)
        """Answers to no ending so far, those of earlier drivers included."""
        self._taken: list[Ending | None] = []
        """Questions that a strategy with full control took and has not answered."""
        self._thread: threading.Thread | None = None
        if controls or not strategy.inline:
            work = self._control if controls else self._work
            self._thread = threading.Thread(target=work, name="matforge-strategy", daemon=True)
            self._thread.start()

    def ask(self, ending: Ending | None) -> None:
        """Put a question; ``None`` asks for what is to be done at the start."""
        self.outstanding += 1
        if self._silent and ending is not None:
            self._answers.append(Answer(ending, [], None))
        elif self._thread is None:
            self._answers.append(self._answer(ending))
        else:
            with self._given:
                self._questions.append(ending)
                self._given.notify()

    def collect(self) -> Answer | None:
        """The next answer, in the order of the questions, if it is ready."""
        if not self._answers:
            return None
        answer = self._answers.popleft()
        self.outstanding -= answer.asked + len(answer.earlier)
        return answer

    @property
    def idle(self) -> bool:
        """Whether nothing is asked and nothing answered."""
        return not self.outstanding and not self._answers

    def close(self) -> None:
        """Ask for nothing more; a strategy that still works is left to end by itself."""
        with self._given:
            self._closed = True
            self._given.notify()

    def _work(self) -> None:
        while True:
            with self._given:
                while not self._questions and not self._closed:
                    self._given.wait()
                if self._closed:
                    return
                question = self._questions.popleft()
            self._hand_over(self._answer(question))

    def _hand_over(self, answer: Answer) -> None:
        with self._given:
            if not self._closed:  # nobody may be woken who has gone
                self._answers.append(answer)
                self._wake()

    # -- full control

    def _control(self) -> None:
        """Call ``process_futures`` as long as the run lasts, whatever it raises."""
        desk = Desk(self._view, self._take, self._steps, self._answer_taken)
        self._strategy.manager = desk
        while not self._closed:
            desk.waited = False
            try:
                self._strategy.process_futures(self._buffer_time)
                desk.settle()
                if not desk.waited:
                    desk.wait()  # it would turn for nothing; what it has ignored counts as seen
            except RunOverError:
                return
            except BaseException as exception:  # whatever a user's code may raise, sys.exit() included
                log.error("the strategy failed in process_futures\n%s", traceback.format_exc())
                error = f"{type(exception).__name__}: {exception} (in process_futures)"
                self._answer_taken([], error)
                if not desk.waited and self._take(None) is None:
                    return

    def _take(self, timeout: float | None) -> list[Event] | None:
        """Everything that was asked; None if the run is over."""
        with self._given:
            if self._given.wait_for(lambda: bool(self._questions) or self._closed, timeout):
                if self._closed:
                    return None
                self._taken = list(self._questions)
                self._questions.clear()
        return [self._event(ending) for ending in self._taken if ending is not None]

    def _answer_taken(self, steps: list[Step], error: str = "") -> None:
        """All questions taken get one answer."""
        taken, self._taken = self._taken, []
        if not taken and not steps and not error:
            return
        state, trouble = self._frozen()
        if not taken:
            self._unasked += 1
            origin = f"control-{self._unasked}"
            self._hand_over(Answer(None, steps, state, error or trouble, origin, asked=False))
            return
        if taken[0] is None and len(taken) > 1:  # the start has nothing to do with what came after it
            self._hand_over(Answer(None, [], None))
        endings = [ending for ending in taken if ending is not None]
        last = endings[-1] if endings else None
        self._hand_over(Answer(last, steps, state, error or trouble, earlier=tuple(endings[:-1])))

    # -- one event at a time

    def _answer(self, ending: Ending | None) -> Answer:
        """Never raises: a strategy that throws decides nothing, and the error is told."""
        try:
            if ending is None:
                answer: Any = self._strategy.on_start(self._view)
            else:
                answer = self._strategy.on_event(self._view, self._event(ending))
            steps, error = self._steps(answer), ""
        except BaseException as exception:  # whatever a user's code may raise, sys.exit() included
            subject = "the start" if ending is None else ending.chore.id
            log.error("the strategy failed on %s\n%s", subject, traceback.format_exc())
            steps, error = [], f"{type(exception).__name__}: {exception} (on {subject})"
        state, trouble = self._frozen()
        return Answer(ending, steps, state, error or trouble)

    def _frozen(self) -> tuple[str | None, str]:
        """The strategy's state, or why it cannot be had."""
        try:
            return freeze_state(self._strategy), ""
        except BaseException as exception:  # a state that cannot be pickled cannot be resumed
            log.error("the strategy's state cannot be saved\n%s", traceback.format_exc())
            return None, f"its state cannot be pickled: {exception}"

    def _steps(self, answer: Any) -> list[Step]:
        return [self._step(decision) for decision in decisions_of(answer)]

    def _event(self, ending: Ending) -> Event:
        def load() -> Any:
            if ending.facts.inline is not None:
                return pickle.loads(ending.facts.inline)
            assert ending.result is not None
            return results.load(self._run.store.path, ending.result)

        return Event(ending.chore, ending.state, ending.facts.report, ending.failure, load)

    def _step(self, decision: Decision) -> Step:
        if isinstance(decision, Spawn):
            spec = decision.spec
            entry = self._functions.get(spec.qualname)
            if entry is None:
                raise UsageError(
                    f"The strategy wants to spawn {spec.qualname!r}, which is not a registered chore"
                    f"{nearest(spec.qualname, self._functions)}."
                )
            payload, inputs = pack((tuple(spec.args), dict(spec.kwargs or {})))
            for name in inputs:
                self._known(name)
            resources = spec.resources or entry.resources
            return Call(
                entry.id_name, payload, inputs, spec.qualname, resources, spec.nice, spec.key, entry.policy
            )
        if isinstance(decision, Cancel):
            return Cancelled(self._known(decision.chore))
        if isinstance(decision, Reprioritise):
            check_nice(decision.nice)
            return Reprioritised(self._known(decision.chore), decision.nice)
        return StopStep(decision.reason)

    def _known(self, chore: str | OutputReference) -> str:
        """The id of a chore that a decision is about, or whose result it wants."""
        name = chore.chore_id if isinstance(chore, OutputReference) else chore
        if name not in self._run.records:
            raise UsageError(f"The strategy refers to {name!r}, which is not a chore of this run.")
        return name
