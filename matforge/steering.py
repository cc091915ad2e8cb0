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
from dataclasses import dataclass
from typing import Any

from matforge.chore import Call, Registration, check_nice, nearest, pack
from matforge.engine.graph import Cancelled, Reprioritised
from matforge.engine.locations import read
from matforge.engine.records import Ending
from matforge.engine.run import Run, Step
from matforge.engine.run import Stop as StopStep
from matforge.model import ChoreState, OutputReference, Resources, UsageError
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

    @classmethod
    def of(cls, registration: Registration, file: str) -> Entry:
        """The entry for a registration whose function was pickled into ``file``."""
        return cls(file, registration.resources, registration.id_name)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the strategy made of one ending (None: of the start of the run)."""

    ending: Ending | None
    steps: list[Step]
    state: str | None
    error: str = ""


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
    """

    def __init__(
        self,
        strategy: FutureProcessingStrategy,
        run: Run,
        functions: Mapping[str, Entry],
        wake: Callable[[], None],
    ) -> None:
        self._strategy = strategy
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
        self._silent = strategy.inline and type(strategy).on_event is FutureProcessingStrategy.on_event
        """Whether it never decides anything about an ending, so that it need not be asked."""
        self._thread: threading.Thread | None = None
        if not strategy.inline:
            self._thread = threading.Thread(target=self._work, name="matforge-strategy", daemon=True)
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

    def collect(self) -> list[Answer]:
        """Answers that are ready, in the order of the questions."""
        out: list[Answer] = []
        while self._answers:
            out.append(self._answers.popleft())
        self.outstanding -= len(out)
        return out

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

    def _answer(self, ending: Ending | None) -> Answer:
        """Never raises: a strategy that throws decides nothing, and the error is told."""
        try:
            if ending is None:
                answer: Any = self._strategy.on_start(self._view)
            else:
                answer = self._strategy.on_event(self._view, self._event(ending))
            steps = [self._step(d) for d in decisions_of(answer)]
            error = ""
        except BaseException as exception:  # whatever a user's code may raise, sys.exit() included
            subject = "the start" if ending is None else ending.chore.id
            log.error("the strategy failed on %s\n%s", subject, traceback.format_exc())
            steps, error = [], f"{type(exception).__name__}: {exception} (on {subject})"
        try:
            state = freeze_state(self._strategy)
        except BaseException as exception:  # a state that cannot be pickled cannot be resumed
            log.error("the strategy's state cannot be saved\n%s", traceback.format_exc())
            state, error = None, error or f"its state cannot be pickled: {exception}"
        return Answer(ending, steps, state, error)

    def _event(self, ending: Ending) -> Event:
        def load() -> Any:
            data = ending.facts.inline
            if data is None:
                assert ending.result is not None
                data = read(self._run.store.path, ending.result)
            return pickle.loads(data)

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
            return Call(entry.id_name, payload, inputs, spec.qualname, resources, spec.nice, spec.key)
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
