"""A very large answer of a strategy, carried out in slices so that dispatch goes on meanwhile.

Data flow: the chores that are to be spawned are *made* slice by slice (numbered, payloads
written); then the whole answer is journalled in **one** record, as a plan, together with the
strategy's state; then it is *taken* into the graph slice by slice. Each slice taken leaves a small
record, because the journal has to keep the order in which the graph took its events.

A crash before the plan's record: the strategy is asked again. A crash after it: what was not taken
yet is taken by the next driver.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from matforge.chore import Call, Chore
from matforge.engine.events import Cancelled, Instruction, Reprioritised
from matforge.engine.steps import Change, Step, Stop, spawn_key

if TYPE_CHECKING:
    from matforge.engine.run import Run

SLICE = 500
"""Decisions at a time; some 20 ms of the driver."""


class Plan:
    """The decisions of one answer.

    Parameters
    ----------
    run : Run
    steps : sequence of Step
        Still to be made; empty for a plan that was read from the journal.
    parent : Chore or None
        The chore whose end the answer is about.
    origin : str
        For an answer to no ending.
    entries : iterable
        For a plan that was read from the journal: what it held.
    write : callable, optional
        Puts the plan into the journal once it is made.
    """

    def __init__(
        self,
        run: Run,
        steps: Sequence[Step] = (),
        parent: Chore | None = None,
        origin: str = "",
        *,
        entries: Iterable[list[Any]] = (),
        write: Callable[[list[list[Any]]], None] | None = None,
    ) -> None:
        self._run = run
        self._steps = deque(steps)
        self._parent = parent
        self._origin = origin
        self._entries: deque[list[Any]] = deque(entries)
        self._write = write
        self._ordinal = 0
        self._keys: set[str] = set()

    @property
    def done(self) -> bool:
        """Whether everything was taken."""
        return not self._steps and not self._entries

    def advance(self) -> list[Instruction]:
        """The next slice: make, or write, or take; what the executor has to do about it."""
        if self._steps:
            self._make()
            return []
        if self._write is not None:
            write, self._write = self._write, None
            write(list(self._entries))
            return []
        return self._take()

    def _make(self) -> None:
        for _ in range(min(SLICE, len(self._steps))):
            step = self._steps.popleft()
            if isinstance(step, Call):
                key = spawn_key(step, self._parent, self._origin, self._ordinal)
                self._ordinal += 1
                if key not in self._run.keys and key not in self._keys:
                    self._keys.add(key)
                    chore = self._run.make(step, key, self._parent)
                    self._entries.append(["spawn", self._run.entry_of(chore)])
            elif isinstance(step, Cancelled):
                self._entries.append(["cancel", step.id])
            elif isinstance(step, Reprioritised):
                self._entries.append(["nice", step.id, step.nice])
            else:
                self._entries.append(["stop", step.reason])

    def _take(self) -> list[Instruction]:
        """Into the graph; the record holds how many, and what came of those that spawn nothing."""
        decisions: list[Any] = []
        instructions: list[Instruction] = []
        count, spawns = 0, self._entries[0][0] == "spawn"
        self._run.write_endings()
        # spawns, or anything else, but never mixed: replay takes the spawns of a record first
        while self._entries and count < SLICE and (self._entries[0][0] == "spawn") == spawns:
            entry = self._entries.popleft()
            count += 1
            if spawns:
                self._run.take_entry(entry[1])
            else:
                found, asked = self._run.decisions.carry_out(_step_of(entry))
                decisions += found
                instructions += asked
        self._run.journal.append({"e": "take", "n": count, **({"d": decisions} if decisions else {})})
        return instructions

    def replay(self, count: int) -> None:
        """Take what a record says was taken; what came of the rest stands in the record itself."""
        for _ in range(count):
            entry = self._entries.popleft()
            if entry[0] == "spawn":
                self._run.take_entry(entry[1])


def _step_of(entry: list[Any]) -> Change:
    if entry[0] == "cancel":
        return Cancelled(entry[1])
    if entry[0] == "nice":
        return Reprioritised(entry[1], entry[2])
    return Stop(entry[1])
