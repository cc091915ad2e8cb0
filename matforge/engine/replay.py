"""A run rebuilt from its journal: each record passes through the graph as its event did at the time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from matforge.engine.events import Cancelled, Failed, Lost, Reprioritised, Started, Succeeded
from matforge.engine.graph import READY
from matforge.engine.plan import Plan
from matforge.engine.records import Ending, Facts, attempt_record
from matforge.model import Attempt, ChoreState, Failure, Location, MatForgeError, Usage

if TYPE_CHECKING:
    from matforge.engine.run import Run

Record = dict[str, Any]


class Replay:
    """Puts journal records into a run.

    Parameters
    ----------
    run : Run
        As it was when the first of the records was written.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._kinds = {
            "add": self._add,
            "end": self._end,
            "answer": self._answered,
            "lost": self._again,
            "retry": self._again,
            "redo": self._redo,
            "resume": self._resumed,
            "decide": self._decided,
            "take": self._take,
            "cancel": self._nothing,
            "run": self._nothing,
            "functions": self._nothing,
            "submitted": self._nothing,
            "state": self._nothing,
        }

    def all(self, records: Iterable[Record]) -> None:
        """Take records in their order.

        Raises
        ------
        MatForgeError
            If the records contradict each other, or were written by a later version.
        """
        for record in records:
            take = self._kinds.get(record["e"])
            if take is None:
                raise MatForgeError(
                    f"The journal of {self._run.store.path} holds a record of kind {record['e']!r}, which "
                    "this version does not know; resume the run with the version that wrote it."
                )
            take(record)
            self._decisions(record)

    # -- one method for each kind of record

    def _nothing(self, record: Record) -> None:
        """Its decisions are all there is to it."""

    def _add(self, record: Record) -> None:
        self._run.take_entry(record["c"])

    def _answered(self, record: Record) -> None:
        for name in (*record.get("with", ()), record["id"]):
            self._expect(self._run.outbox, {**record, "id": name})

    def _redo(self, record: Record) -> None:
        self._run.spoil(record["id"], withdraw="q" in record)

    def _resumed(self, record: Record) -> None:
        self._run.end_orphans()

    def _decided(self, record: Record) -> None:
        self._run.decisions.origins.add(record["o"])

    def _end(self, record: Record) -> None:
        run = self._run
        if not (run.unwritten and run.unwritten[0].chore.id == record["id"]):
            self._outcome(record)
        ending = self._expect(run.unwritten, record)
        if ending.state.value != record["s"]:
            raise self._contradiction(record, ending)
        run.tally[ending.chore.name].count(ending)
        if "w" not in record:
            self._expect(run.outbox, record)

    def _outcome(self, record: Record) -> None:
        chore_id, number = record["id"], record.get("n", 0)
        self._restart(chore_id, number)
        facts = Facts(number, report=record.get("p", {}), cached=record.get("k", ""))
        if "u" in record:
            self._run.note_wall(self._run.records[chore_id].chore.name, record["u"][3])
        if record["s"] == ChoreState.COMPLETED.value:
            self._run.records[chore_id].result = Location.from_list(record["r"])
            self._run.handle(Succeeded(chore_id, number), facts)
        else:
            self._run.handle(Failed(chore_id, number, Failure.from_dict(record["f"]), final=True), facts)

    def _again(self, record: Record) -> None:
        name, number, failure = record["id"], record["n"], Failure.from_dict(record["f"])
        attempt, usage = Attempt(name, record["ep"], number), Usage(**record.get("u", {}))
        self._run.records[name].attempts.append(attempt_record(attempt, usage, failure.kind.value, failure))
        self._restart(name, number)
        lost = record["e"] == "lost"
        event = Lost(name, number, failure, "a" in record) if lost else Failed(name, number, failure)
        self._run.handle(event)

    def _take(self, record: Record) -> None:
        decisions = self._run.decisions
        plan = decisions.plan
        if plan is None:
            raise self._contradiction({**record, "id": "a plan"}, None)
        plan.replay(record["n"])
        if plan.done:
            decisions.plan = None

    def _decisions(self, record: Record) -> None:
        run, decisions = self._run, self._run.decisions
        if "plan" in record:
            decisions.plan = Plan(run, entries=record["plan"])
            run.numbered += sum(entry[0] == "spawn" for entry in record["plan"])
        for decision in record.get("d", ()):
            if decision[0] == "spawn":
                run.take_entry(decision[1])
            elif decision[0] == "cancel":
                self._restart(decision[1], decision[2])
                run.handle(Cancelled(decision[1]))
            else:
                run.handle(Reprioritised(decision[1], decision[2]))
        decisions.strategy_state = record.get("st", decisions.strategy_state)
        if "x" in record:
            decisions.strategy_errors.append(record["x"])

    # -- helps

    def _restart(self, chore_id: str, number: int) -> None:
        """Make the graph believe that attempt ``number`` runs, as it did when the record was written."""
        if number and self._run.graph.nodes[chore_id].state is READY:
            self._run.handle(Started(chore_id, number))

    def _expect(self, queue: deque[Ending], record: Record) -> Ending:
        """Take the ending that a record is about from the head of ``queue``."""
        if not queue or queue[0].chore.id != record["id"]:
            raise self._contradiction(record, queue[0] if queue else None)
        return queue.popleft()

    def _contradiction(self, record: Record, ending: Ending | None) -> MatForgeError:
        other = f"{ending.chore.id} {ending.state.value}" if ending else "nothing ended"
        return MatForgeError(
            f"The journal of {self._run.store.path} contradicts itself at record {record['seq']}, about "
            f"{record['id']}: by then {other}. Restore the file from a copy, or start a new run."
        )
