"""Decisions carried out: each becomes changes of the run and one record of its journal.

A strategy decides in answer to an ending or to none, a person cancels, and the driver stops a run
when a chore has failed whose author wants that. The record holds what the decisions have changed
(not what was wanted: a chore that has ended cannot be cancelled) together with the strategy's state
after them. A very large answer is carried out in slices: see :mod:`matforge.engine.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matforge.chore import Call, Chore
from matforge.engine.events import Cancelled, Instruction, Reprioritised
from matforge.engine.graph import READY, RUNNING
from matforge.engine.plan import SLICE, Plan
from matforge.engine.records import Ending
from matforge.engine.steps import STOP, Change, Step, spawn_key
from matforge.model import ChoreState

if TYPE_CHECKING:
    from matforge.engine.run import Run


class Decisions:
    """Carries out what is decided about one run, and keeps what an answer leaves behind.

    Parameters
    ----------
    run : Run
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.strategy_state: str | None = None
        """The state that the last record with one gave the strategy (base64 of a pickle)."""
        self.strategy_errors: list[str] = []
        self.plan: Plan | None = None
        """A large answer that is being carried out; meanwhile no other is applied and no chore added."""
        self.origins: set[str] = set()
        """Names of the answers so far that were about no ending."""

    # -- who decides

    def settle(
        self,
        ending: Ending,
        steps: Sequence[Step],
        *,
        state: str | None,
        error: str = "",
        earlier: Sequence[Ending] = (),
    ) -> list[Instruction]:
        """Apply what the strategy decided about the oldest ending, and journal it.

        Parameters
        ----------
        ending : Ending
        steps : sequence of Step
        state : str or None
            The strategy's, afterwards.
        error : str
            What the strategy threw, if it did.
        earlier : sequence of Ending
            Older ones that are answered with it, by the same record.

        Returns
        -------
        list
            ``Cancel`` instructions for the executor.
        """
        run = self._run
        if earlier:
            run.write_endings()
        for one in (*earlier, ending):
            assert run.outbox[0] is one
            run.outbox.popleft()
        answer: dict[str, Any] = {"e": "answer", "id": ending.chore.id}
        if earlier:
            answer["with"] = [one.chore.id for one in earlier]
        if len(steps) > SLICE:
            return self._plan(answer, steps, ending.chore, "", state, error)
        if run.unwritten and run.unwritten[0].again:
            run.write_endings()
        # one record for both, unless the graph has moved on between event and decisions
        together = not steps or ending.event == run.taken
        if together and run.unwritten and run.unwritten[0] is ending:
            answer = run.unwritten.popleft().record()
            run.note_written(ending)
        elif steps:
            run.write_endings()
        decisions, instructions = self._apply(steps, ending.chore, "")
        self._write_answer(answer, decisions, state, error)
        return instructions

    def decide(
        self, steps: Sequence[Step], *, state: str | None, origin: str, error: str = ""
    ) -> list[Instruction]:
        """Apply decisions that answer no ending (a strategy's start, for instance)."""
        self.origins.add(origin)
        if len(steps) > SLICE:
            return self._plan({"e": "decide", "o": origin}, steps, None, origin, state, error)
        self._run.write_endings()
        decisions, instructions = self._apply(steps, None, origin)
        self._write_answer({"e": "decide", "o": origin}, decisions, state, error)
        return instructions

    def advance(self) -> list[Instruction]:
        """The next slice of the plan, if there is one."""
        if self.plan is None:
            return []
        instructions = self.plan.advance()
        if self.plan.done:
            self.plan = None
        return instructions

    def cancel(self, chore_id: str) -> list[Instruction]:
        """Cancel on a person's behalf; journalled by itself."""
        self._run.write_endings()
        decisions, instructions = self._cancel([chore_id])
        if decisions:
            self._run.journal.append({"e": "cancel", "d": decisions})
        return instructions

    def stopped_by(self) -> list[Chore]:
        """Chores whose failure should have stopped the run, where the driver died in between."""
        run = self._run
        failed = [n.id for n in run.graph.nodes.values() if n.state is ChoreState.FAILED]
        chores = [run.records[name].chore for name in failed]
        return [c for c in chores if c.policy.stops and f"{STOP}{c.id}" not in self.origins]

    # -- what a record holds

    def _plan(
        self,
        record: dict[str, Any],
        steps: Sequence[Step],
        parent: Chore | None,
        origin: str,
        state: str | None,
        error: str,
    ) -> list[Instruction]:
        """Begin to carry out an answer that is too large for one go; see :mod:`matforge.engine.plan`."""

        def write(entries: list[list[Any]]) -> None:
            self._run.write_endings()
            self._write_answer({**record, "plan": entries}, [], state, error)

        assert self.plan is None
        self.plan = Plan(self._run, steps, parent, origin, write=write)
        return self.advance()

    def _write_answer(
        self, record: dict[str, Any], decisions: list[Any], state: str | None, error: str
    ) -> None:
        if decisions:
            record["d"] = decisions
        if state is not None and state != self.strategy_state:
            record["st"] = self.strategy_state = state
        if error:
            record["x"] = error
            self.strategy_errors.append(error)
        self._run.journal.append(record)

    # -- what a decision changes

    def _apply(
        self, steps: Sequence[Step], parent: Chore | None, origin: str
    ) -> tuple[list[Any], list[Instruction]]:
        """Carry out decisions; those that changed something, as the journal holds them."""
        decisions: list[Any] = []
        instructions: list[Instruction] = []
        ordinal = 0
        for step in steps:
            if isinstance(step, Call):
                chore = self._spawn(step, parent, origin, ordinal)
                ordinal += 1
                if chore is not None:
                    decisions.append(["spawn", self._run.entry_of(chore)])
            else:
                found, asked = self.carry_out(step)
                decisions += found
                instructions += asked
        return decisions, instructions

    def carry_out(self, step: Change) -> tuple[list[Any], list[Instruction]]:
        """A decision that spawns nothing: what it changed, and what the executor has to do."""
        if isinstance(step, Reprioritised):
            node = self._run.graph.nodes[step.id]
            if node.state is None or node.state.final or node.nice == step.nice:
                return [], []
            return [["nice", step.id, step.nice]], self._run.handle(step)
        return self._cancel([step.id] if isinstance(step, Cancelled) else self._unstarted())

    def _spawn(self, call: Call, parent: Chore | None, origin: str, ordinal: int) -> Chore | None:
        """Add a chore, unless there is one of that key."""
        run, key = self._run, spawn_key(call, parent, origin, ordinal)
        if key in run.keys:
            return None
        chore = run.make(call, key, parent)
        run.install(chore)
        return chore

    def _unstarted(self) -> list[str]:
        if not self._run.unstarted:
            return []
        return [i for i, n in self._run.graph.nodes.items() if n.state in (READY, ChoreState.BLOCKED)]

    def _cancel(self, chore_ids: Sequence[str]) -> tuple[list[Any], list[Instruction]]:
        """Cancel what can still be cancelled: decisions that did something, and what to do."""
        decisions: list[Any] = []
        instructions: list[Instruction] = []
        for name in chore_ids:
            node = self._run.graph.nodes[name]
            if node.state is None or node.state.final or node.cancelling:
                continue
            decisions.append(["cancel", name, node.number if node.state is RUNNING else 0])
            instructions += self._run.handle(Cancelled(name))
        return decisions, instructions
