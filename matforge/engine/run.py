"""A run in memory and on disk: the graph, the journal and the store kept in step.

Data flow: an event goes into the graph; what the graph publishes waits in :attr:`Run.outbox`
until the strategy has answered; then :meth:`Run.settle` applies the answer and writes one journal
record (event + decisions + strategy state). :meth:`Run.replay` reads the records back in the same
order and ends in the same place, whatever was lost after the last of them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matforge.chore import Call, Chore, chore_id, content_key
from matforge.engine.graph import (
    Added,
    Cancelled,
    Event,
    Failed,
    Graph,
    Instruction,
    Lost,
    Offered,
    Publish,
    Reprioritised,
    Started,
    Submit,
    Succeeded,
)
from matforge.engine.journal import Journal
from matforge.engine.store import RunStore
from matforge.model import (
    Attempt,
    ChoreState,
    Failure,
    FailureKind,
    Lane,
    Location,
    MatForgeError,
    Resources,
    Usage,
)

SMALL_PAYLOAD = 4096
"""Bytes; see :attr:`Run.small_payloads`."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Start nothing more: every chore that has not begun is cancelled."""

    reason: str = ""


Step = Call | Cancelled | Reprioritised | Stop
"""A decision in the engine's words; a :class:`~matforge.chore.Call` is a chore to be spawned."""


@dataclass(slots=True)
class Record:
    """What the run knows of one chore beside its state."""

    chore: Chore
    directory: str | None
    result: Location | None = None
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """Host, slot, times and outcome of each attempt; emptied into the metadata at the end."""


@dataclass(slots=True)
class Tally:
    """How the chores of one name stand, for whoever watches."""

    added: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the numbers in their reports."""

    def count(self, state: ChoreState, report: Mapping[str, Any]) -> None:
        """Count one that has ended."""
        if state is ChoreState.COMPLETED:
            self.completed += 1
        elif state is ChoreState.FAILED:
            self.failed += 1
        else:
            self.cancelled += 1
        for name, value in report.items():
            if isinstance(value, int | float):
                self.sums[name] = self.sums.get(name, 0) + value


@dataclass(frozen=True, slots=True)
class Ending:
    """A chore that has ended, waiting for the strategy's answer."""

    chore: Chore
    state: ChoreState
    failure: Failure | None
    number: int
    report: dict[str, Any]
    result: Location | None
    inline: bytes | None
    journalled: dict[str, Any]
    """The event part of the journal record."""


class Run:
    """One run; everything here happens in the manager's thread.

    Parameters
    ----------
    store, journal
        Where it lives.
    epoch : int
        Which driver of the run this is.
    fits : callable
        Says in a sentence why resources can never be met here; empty if they can.
    """

    def __init__(
        self,
        store: RunStore,
        journal: Journal,
        *,
        epoch: int = 1,
        fits: Callable[[Resources], str] = lambda resources: "",
    ) -> None:
        self.store = store
        self.journal = journal
        self.epoch = epoch
        self.graph = Graph()
        self.records: dict[str, Record] = {}
        self.outbox: deque[Ending] = deque()
        """Endings in the order the graph published them; the strategy answers them in this order."""
        self.strategy_state: str | None = None
        """The state that the last record with one gave the strategy (base64 of a pickle)."""
        self.keys: dict[str, str] = {}
        """Chore id by key; a key spawned a second time is the same chore."""
        self.tally: dict[str, Tally] = {}
        """By name of the chores; counts what is in the journal."""
        self.small_payloads: dict[str, bytes] = {}
        """Payloads of at most :data:`SMALL_PAYLOAD` bytes of chores not yet submitted, so that
        they travel in the message; after a resume they are read from the disk instead."""
        self._occurrences: Counter[str] = Counter()
        self._fits = fits
        self.cores_in_flight = 0
        """Cores of the chores that are RUNNING."""

    # -- adding

    def add(self, call: Call) -> Chore:
        """Add a chore that nobody spawned; one that is known by its key already is returned."""
        chore, fresh = self._make(call, None, 0)
        if fresh:
            self._install(chore)
            self.journal.append({"e": "add", "c": chore.as_dict()})
        return chore

    def _make(self, call: Call, parent: Chore | None, ordinal: int) -> tuple[Chore, bool]:
        key = self._key(call, parent, ordinal)
        if key in self.keys:
            return self.records[self.keys[key]].chore, False
        sequence = len(self.records) + 1
        name = chore_id(call.name, sequence)
        job = call.function is None or self._is_job(call.resources)
        directory = self.store.directory_for(name, sequence, job=job)
        payload = self.store.put_payload(name, directory, call.payload)
        chore = Chore(
            id=name,
            key=key,
            name=call.name,
            payload=payload,
            inputs=call.inputs,
            function=call.function,
            resources=call.resources,
            nice=call.nice,
            parent=parent.id if parent else None,
            unfit=Failure(FailureKind.DOES_NOT_FIT, why) if (why := self._fits(call.resources)) else None,
        )
        if len(call.payload) <= SMALL_PAYLOAD:
            self.small_payloads[name] = call.payload
        return chore, True

    @staticmethod
    def _is_job(wants: Resources) -> bool:
        return wants.num_tasks > 1 or wants.mpi or wants.isolated

    def _key(self, call: Call, parent: Chore | None, ordinal: int) -> str:
        if call.key is not None:
            return content_key("named", call.key)
        if parent is not None:
            return content_key("spawned", parent.key, str(ordinal))
        inputs = [self.records[name].chore.key for name in call.inputs if name in self.records]
        content = content_key(call.function or "command", call.payload, *inputs)
        self._occurrences[content] += 1
        return content_key("root", content, str(self._occurrences[content]))

    def _install(self, chore: Chore) -> None:
        sequence = len(self.records) + 1
        directory = self.store.directory_for(chore.id, sequence, job=chore.lane is Lane.JOB)
        if chore.payload.path.startswith("segments/"):
            directory = None
        elif directory is None:
            directory = chore.payload.path.rpartition("/")[0]
        self.records[chore.id] = Record(chore, directory)
        self.keys[chore.key] = chore.id
        self.tally.setdefault(chore.name, Tally()).added += 1
        self._handle(Added(chore.id, chore.inputs, chore.nice, chore.unfit))

    # -- events

    def _handle(self, event: Event, facts: dict[str, Any] | None = None) -> list[Instruction]:
        """Pass an event to the graph and sort what comes out."""
        before = self.graph.counts[ChoreState.RUNNING]
        instructions = self.graph.handle(event)
        for instruction in instructions:
            if isinstance(instruction, Publish):
                self._published(instruction, facts or {})
        change = self.graph.counts[ChoreState.RUNNING] - before
        if change and isinstance(event, Started | Succeeded | Failed | Lost):
            self.cores_in_flight += change * self.records[event.id].chore.resources.cores
        return instructions

    def _published(self, publish: Publish, facts: dict[str, Any]) -> None:
        record = self.records[publish.id]
        node = self.graph.nodes[publish.id]
        own = facts if facts.get("id") == publish.id else {}
        journalled: dict[str, Any] = {"e": "end", "id": publish.id, "s": publish.state.value}
        if own:
            journalled |= own["journal"]
        elif publish.failure is not None:
            journalled["f"] = publish.failure.as_dict()
        self.outbox.append(
            Ending(
                record.chore,
                publish.state,
                publish.failure,
                node.number,
                own.get("report", {}),
                record.result,
                own.get("inline"),
                journalled,
            )
        )

    def submit_next(self) -> Submit | None:
        """Take the next ready chore, if there is one, and count it as running."""
        instructions = self.graph.handle(Offered(1))
        if not instructions:
            return None
        submit = instructions[0]
        assert isinstance(submit, Submit)
        self.cores_in_flight += self.records[submit.id].chore.resources.cores
        return submit

    def is_current(self, attempt: Attempt) -> bool:
        """Whether a report about this attempt still counts; stale ones are discarded."""
        node = self.graph.nodes.get(attempt.chore_id)
        return (
            node is not None
            and attempt.epoch == self.epoch
            and node.state is ChoreState.RUNNING
            and node.number == attempt.number
        )

    def succeeded(
        self,
        attempt: Attempt,
        result: Location,
        *,
        report: dict[str, Any],
        usage: Usage,
        inline: bytes | None = None,
    ) -> None:
        """The current attempt has published ``result``."""
        record = self.records[attempt.chore_id]
        record.result = self.store.accept(attempt, record.directory, result)
        assert record.result is not None
        journal = {"n": attempt.number, "r": record.result.as_list(), "u": _usage_list(usage)}
        if report:
            journal["p"] = report
        record.attempts.append(_attempt(attempt, usage, "completed"))
        facts = {"id": attempt.chore_id, "journal": journal, "report": report, "inline": inline}
        self._handle(Succeeded(attempt.chore_id, attempt.number), facts)

    def failed(self, attempt: Attempt, failure: Failure, usage: Usage) -> None:
        """The current attempt has ended by its own fault, or was cancelled."""
        record = self.records[attempt.chore_id]
        self.store.accept(attempt, record.directory, None)
        record.attempts.append(_attempt(attempt, usage, failure.kind.value))
        journal = {"n": attempt.number, "f": failure.as_dict(), "u": _usage_list(usage)}
        facts = {"id": attempt.chore_id, "journal": journal}
        self._handle(Failed(attempt.chore_id, attempt.number, failure), facts)

    def lost(self, attempt: Attempt, failure: Failure) -> None:
        """The place of the current attempt is gone."""
        record = self.records[attempt.chore_id]
        record.attempts.append(_attempt(attempt, Usage(), failure.kind.value))
        journal = {"n": attempt.number, "f": failure.as_dict()}
        ended = self._handle(
            Lost(attempt.chore_id, attempt.number, failure), {"id": attempt.chore_id, "journal": journal}
        )
        if not ended:
            self.journal.append({"e": "lost", "id": attempt.chore_id, **journal})

    def cancel(self, chore_id: str) -> list[Instruction]:
        """Cancel on a person's behalf; journalled by itself."""
        node = self.graph.nodes[chore_id]
        running = node.number if node.state is ChoreState.RUNNING else 0
        self.journal.append({"e": "cancel", "id": chore_id, "n": running})
        return self._handle(Cancelled(chore_id))

    # -- decisions

    def settle(
        self, ending: Ending, steps: Sequence[Step], *, state: str | None, error: str = ""
    ) -> tuple[list[Chore], list[Instruction]]:
        """Apply what the strategy decided about the oldest ending, and journal both as one record.

        Returns
        -------
        spawned : list of Chore
        instructions : list
            ``Cancel`` instructions for the executor.
        """
        assert self.outbox[0] is ending
        self.outbox.popleft()
        self.tally[ending.chore.name].count(ending.state, ending.report)
        decisions, spawned, instructions = self._apply(steps, ending.chore)
        record = dict(ending.journalled)
        if decisions:
            record["d"] = decisions
        if state is not None and state != self.strategy_state:
            record["st"] = self.strategy_state = state
        if error:
            record["x"] = error
        self.journal.append(record)
        return spawned, instructions

    def decide(
        self, steps: Sequence[Step], *, state: str | None, origin: str
    ) -> tuple[list[Chore], list[Instruction]]:
        """Apply decisions that answer no ending (a strategy's start, a person's wish)."""
        decisions, spawned, instructions = self._apply(steps, None, origin)
        record: dict[str, Any] = {"e": "decide", "o": origin, "d": decisions}
        if state is not None and state != self.strategy_state:
            record["st"] = self.strategy_state = state
        self.journal.append(record)
        return spawned, instructions

    def _apply(
        self, steps: Sequence[Step], parent: Chore | None, origin: str = ""
    ) -> tuple[list[Any], list[Chore], list[Instruction]]:
        decisions: list[Any] = []
        spawned: list[Chore] = []
        instructions: list[Instruction] = []
        ordinal = 0
        for step in steps:
            if isinstance(step, Call):
                if parent is None and step.key is None:
                    step = Call(
                        step.name, step.payload, step.inputs, step.function, step.resources, step.nice,
                        f"{origin}-{ordinal}",
                    )  # fmt: skip
                chore, fresh = self._make(step, parent, ordinal)
                ordinal += 1
                if fresh:
                    self._install(chore)
                    spawned.append(chore)
                    decisions.append(["spawn", chore.as_dict()])
            elif isinstance(step, Stop):
                for chore_id in [i for i, n in self.graph.nodes.items() if _unstarted(n.state)]:
                    decisions.append(["cancel", chore_id, 0])
                    instructions += self._handle(Cancelled(chore_id))
            elif step.id in self.graph.nodes:
                node = self.graph.nodes[step.id]
                if isinstance(step, Cancelled):
                    running = node.number if node.state is ChoreState.RUNNING else 0
                    decisions.append(["cancel", step.id, running])
                else:
                    decisions.append(["nice", step.id, step.nice])
                instructions += self._handle(step)
        return decisions, spawned, instructions

    # -- replay

    def replay(self, records: Iterable[dict[str, Any]]) -> None:
        """Rebuild the run from its journal; afterwards nothing is RUNNING."""
        for record in records:
            self._replay_one(record)
        for node in list(self.graph.nodes.values()):
            if node.state is ChoreState.RUNNING:  # being cancelled when the driver died
                why = Failure(FailureKind.CANCELLED, "Cancelled; its driver ended meanwhile.")
                self._handle(Failed(node.id, node.number, why))

    def _replay_one(self, record: dict[str, Any]) -> None:
        kind = record["e"]
        if kind == "add":
            chore = Chore.from_dict(record["c"])
            if chore.key not in self.keys:
                self._install(chore)
        elif kind == "end":
            self._replay_end(record)
        elif kind == "lost":
            self._restart(record["id"], record["n"])
            self._handle(Lost(record["id"], record["n"], Failure.from_dict(record["f"])))
        elif kind == "cancel":
            self._restart(record["id"], record.get("n", 0))
            self._handle(Cancelled(record["id"]))
        elif kind == "decide":
            self._replay_decisions(record)
        elif kind not in ("run", "resume", "submitted", "state"):
            raise MatForgeError(
                f"The journal of {self.store.path} holds a record of kind {kind!r}, which this version "
                "does not know; resume the run with the version that wrote it."
            )

    def _restart(self, chore_id: str, number: int) -> None:
        """Make the graph believe that attempt ``number`` runs, as it did when the record was written."""
        if number and self.graph.nodes[chore_id].state is ChoreState.READY:
            self._handle(Started(chore_id, number))

    def _replay_end(self, record: dict[str, Any]) -> None:
        chore_id = record["id"]
        if not (self.outbox and self.outbox[0].chore.id == chore_id):
            self._replay_outcome(record)
        ending = self.outbox.popleft()
        if ending.chore.id != chore_id or ending.state.value != record["s"]:
            raise MatForgeError(
                f"The journal of {self.store.path} contradicts itself: record {record['seq']} says that "
                f"{chore_id} {record['s']}, but {ending.chore.id} {ending.state.value} comes first."
            )
        self.tally[ending.chore.name].count(ending.state, ending.report)
        self._replay_decisions(record)

    def _replay_outcome(self, record: dict[str, Any]) -> None:
        chore_id, number = record["id"], record.get("n", 0)
        self._restart(chore_id, number)
        if record["s"] == ChoreState.COMPLETED.value:
            self.records[chore_id].result = Location.from_list(record["r"])
            facts = {"id": chore_id, "journal": {}, "report": record.get("p", {})}
            self._handle(Succeeded(chore_id, number), facts)
        else:
            self._handle(Failed(chore_id, number, Failure.from_dict(record["f"])))

    def _replay_decisions(self, record: dict[str, Any]) -> None:
        for decision in record.get("d", ()):
            if decision[0] == "spawn":
                self._install(Chore.from_dict(decision[1]))
            elif decision[0] == "cancel":
                self._restart(decision[1], decision[2])
                self._handle(Cancelled(decision[1]))
            else:
                self._handle(Reprioritised(decision[1], decision[2]))
        self.strategy_state = record.get("st", self.strategy_state)


def _unstarted(state: ChoreState | None) -> bool:
    return state in (ChoreState.BLOCKED, ChoreState.READY)


def _usage_list(usage: Usage) -> list[Any]:
    return [usage.host, usage.slot, round(usage.started_at, 3), round(usage.wall_s, 6),
            round(usage.cpu_s, 6), usage.max_rss]  # fmt: skip


def _attempt(attempt: Attempt, usage: Usage, outcome: str) -> dict[str, Any]:
    return {"epoch": attempt.epoch, "number": attempt.number, "outcome": outcome, **usage.as_dict()}
