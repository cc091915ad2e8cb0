"""A run in memory and on disk: the graph, the journal and the store kept in step.

Data flow: an event goes into the graph; what the graph publishes waits in :attr:`Run.outbox`
until the strategy has answered; then :attr:`Run.decisions` applies the answer and writes one journal
record (event + decisions + strategy state). Where the answer takes time, the event is written at
once, marked as waiting, and the answer gets a record of its own: what has ended is not lost to a
slow strategy.

One rule carries it all: **the records stand in the journal in the order in which the graph took
the events**. So :meth:`Run.replay` passes through the same states and ends in the same place,
whatever was lost after the last record.
"""

from __future__ import annotations

import base64
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from matforge.chore import Call, Chore, chore_id, content_key, named_key
from matforge.engine.decisions import Decisions
from matforge.engine.events import (
    Added,
    ChoreEvent,
    Failed,
    Instruction,
    Lost,
    Offered,
    Publish,
    Spoiled,
    Started,
    Submit,
    Succeeded,
    Withdrawn,
)
from matforge.engine.graph import READY, RUNNING, Graph
from matforge.engine.journal import Journal
from matforge.engine.records import DERIVED, Ending, Facts, Record, Tally, attempt_record
from matforge.engine.replay import Replay
from matforge.engine.store import SEGMENTS_NAME, SMALL_PAYLOAD, RunStore
from matforge.model import (
    Attempt,
    ChoreState,
    Failure,
    FailureKind,
    Location,
    Resources,
    Usage,
)


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
        """Endings that the strategy has not answered, in the order in which the graph published
        them, which is the order of the answers."""
        self.unwritten: deque[Ending] = deque()
        """Those at the end of :attr:`outbox` that are not in the journal yet."""
        self.written: list[Ending] = []
        """Endings that went to the journal since the manager last took them from here."""
        self.keys: dict[str, str] = {}
        """Chore id by key; a key spawned a second time is the same chore."""
        self.tally: dict[str, Tally] = {}
        """By name of the chores; counts what is in the journal."""
        self.small_payloads: dict[str, bytes] = {}
        """Payloads of at most :data:`SMALL_PAYLOAD` bytes, which travel in the message. Those of packed
        chores are kept until they are submitted; those that have files of their own are kept for good
        and stand in the journal, so that nothing depends on a small file that nobody has synced."""
        self.lossy: set[str] = set()
        """Chores of which files may lie about that nobody wants: this driver lost an attempt, or ended
        while their results were looked for."""
        self.remade: set[str] = set()
        """Chores whose result was lost after the strategy had heard of it, and is made again."""
        self.cores_in_flight = 0
        """Cores of the chores that are RUNNING."""
        self.gpus_in_flight = 0
        """GPUs of the chores that are RUNNING."""
        self.memory_in_flight = 0
        """Bytes that chores that are RUNNING have declared."""
        self.longest: dict[str, float] = {}
        """Longest wall time (seconds) so far, by name of the chores; of earlier drivers, too."""
        self.may_stop = False
        """Whether there is a chore whose failure stops the run."""
        self.numbered = 0
        """Chores that have a number, those of the plan included."""
        self.taken = 0
        """Events that the graph has taken, other than offers and starts."""
        self.decisions = Decisions(self)
        self._occurrences: Counter[str] = Counter()
        self._fits = fits

    # -- adding

    def add(self, call: Call) -> Chore:
        """Add a chore that nobody spawned; one that is known by its key already is returned."""
        key = self._key(call)
        if key in self.keys:
            return self.records[self.keys[key]].chore
        self.write_endings()
        chore = self.make(call, key, None)
        self.install(chore)
        self.journal.append({"e": "add", "c": self.entry_of(chore)})
        return chore

    def make(self, call: Call, key: str, parent: Chore | None) -> Chore:
        """Number a chore that is new, and write its payload."""
        self.numbered += 1
        sequence = self.numbered
        name = chore_id(call.name, sequence)
        job = call.function is None or call.resources.job_lane
        directory = self.store.directory_for(name, sequence, job=job)
        payload = self.store.put_payload(name, directory, call.payload)
        why = self._fits(call.resources)
        if len(call.payload) <= SMALL_PAYLOAD:
            self.small_payloads[name] = call.payload
        return Chore(
            id=name,
            key=key,
            name=call.name,
            payload=payload,
            inputs=call.inputs,
            function=call.function,
            resources=call.resources,
            nice=call.nice,
            parent=parent.id if parent else None,
            unfit=Failure(FailureKind.DOES_NOT_FIT, why) if why else None,
            policy=call.policy,
        )

    def entry_of(self, chore: Chore) -> dict[str, Any]:
        """A chore as the journal holds it: with its payload, if that is small and not packed."""
        payload = self.small_payloads.get(chore.id)
        if payload is None or chore.payload.path.startswith(SEGMENTS_NAME):
            return chore.as_dict()
        return {**chore.as_dict(), "args": base64.b64encode(payload).decode()}

    def take_entry(self, entry: dict[str, Any]) -> None:
        """Take a chore into the graph as the journal holds it."""
        chore = Chore.from_dict(entry)
        if "args" in entry:
            self.small_payloads[chore.id] = base64.b64decode(entry["args"])
        self.install(chore)

    def payload_of(self, chore: Chore) -> bytes | Location:
        """What goes into the message of an attempt: the payload itself, or where it lies."""
        if self.records[chore.id].directory is None:
            return self.small_payloads.pop(chore.id, chore.payload)
        return self.small_payloads.get(chore.id, chore.payload)

    def _key(self, call: Call) -> str:
        """Identity of a chore that nobody spawned: what it is, and the how-manieth of its kind."""
        if call.key is not None:
            return named_key(call.key)
        inputs = [self.records[name].chore.key for name in call.inputs if name in self.records]
        content = content_key(call.function or "command", call.payload, *inputs)
        self._occurrences[content] += 1
        return content_key("root", content, str(self._occurrences[content]))

    def install(self, chore: Chore) -> None:
        """Take a chore into the graph."""
        path = chore.payload.path
        directory = None if path.startswith("segments/") else path.rpartition("/")[0]
        self.records[chore.id] = Record(chore, directory)
        self.keys[chore.key] = chore.id
        self.numbered = max(self.numbered, len(self.records))
        if (tally := self.tally.get(chore.name)) is None:
            tally = self.tally[chore.name] = Tally()
        tally.added += 1
        self.may_stop = self.may_stop or chore.policy.stops
        self.taken += 1
        cached = chore.policy.cache is not None and chore.function is not None
        retries = chore.policy.retries or 0
        added = Added(chore.id, chore.inputs, chore.nice, chore.unfit, retries, cached)
        for instruction in self.graph.handle(added):
            assert isinstance(instruction, Publish)
            self._published(instruction, DERIVED)

    # -- events

    def handle(self, event: ChoreEvent, facts: Facts = DERIVED) -> list[Instruction]:
        """Pass an event to the graph and sort what comes out."""
        self.taken += 1
        counts = self.graph.counts
        running = counts[RUNNING]
        instructions = self.graph.handle(event)
        for instruction in instructions:
            if type(instruction) is Publish:
                self._published(instruction, facts if instruction.id == event.id else DERIVED)
        # only the chore that an event names can begin or cease to be RUNNING
        if change := counts[RUNNING] - running:
            self._occupy(event.id, change)
        return instructions

    def note_wall(self, name: str, wall_s: float) -> None:
        """An attempt of a chore of this name took so long (seconds)."""
        self.longest[name] = max(wall_s, self.longest.get(name, 0.0))

    def _occupy(self, chore_id: str, change: int) -> None:
        resources = self.records[chore_id].chore.resources
        self.cores_in_flight += change * resources.cores
        self.gpus_in_flight += change * resources.gpus
        self.memory_in_flight += change * (resources.memory or 0)

    def _published(self, publish: Publish, facts: Facts) -> None:
        record = self.records[publish.id]
        result = record.result if publish.state is ChoreState.COMPLETED else None
        again = publish.id in self.remade
        ending = Ending(record.chore, publish.state, publish.failure, result, self.taken, facts, again)
        if again:
            self.remade.discard(publish.id)
            for one in self.outbox:  # the strategy may still want to read it
                if one.chore.id == publish.id:
                    one.result = result
        else:
            self.outbox.append(ending)
        self.unwritten.append(ending)

    def submit_next(self) -> Submit | None:
        """Take the next ready chore, if there is one, and count it as running."""
        instructions = self.graph.handle(Offered(1))
        if not instructions:
            return None
        submit = instructions[0]
        assert isinstance(submit, Submit)
        self._occupy(submit.id, 1)
        return submit

    def is_current(self, attempt: Attempt) -> bool:
        """Whether a report about this attempt still counts; stale ones are discarded."""
        node = self.graph.nodes.get(attempt.chore_id)
        return (
            node is not None
            and attempt.epoch == self.epoch
            and node.state is RUNNING
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
        printed: bool = False,
        cached: str = "",
    ) -> None:
        """The current attempt has published ``result``, or it was found under the key ``cached``."""
        record = self.records[attempt.chore_id]
        record.result = self.store.accept(attempt, record.directory, result, printed=printed)
        record.attempts.append(attempt_record(attempt, usage, "cached" if cached else "completed"))
        facts = Facts(attempt.number, usage, report, inline, printed, cached)
        self.handle(Succeeded(attempt.chore_id, attempt.number), facts)

    def recalled(
        self,
        attempt: Attempt,
        key: str,
        where: Location | None,
        data: bytes | None,
        report: dict[str, Any],
        at: float = 0.0,
    ) -> None:
        """The result of a READY chore was found: an attempt that takes no slot and no time.

        Parameters
        ----------
        attempt : Attempt
            The chore's next.
        key : str
            Under which it was found.
        where : Location, optional
            The result, if it lies in the chore's directory already.
        data : bytes, optional
            The result, if it is still to be packed.
        report : dict
            What the chore reported when it was run.
        at : float
            When it was found (Unix time), so that a power failure soon after is thought of.
        """
        self.handle(Started(attempt.chore_id, attempt.number))
        if where is None:
            assert data is not None
            where = self.store.put_result(attempt.chore_id, data)
        self.succeeded(attempt, where, report=report, usage=Usage(started_at=at), inline=data, cached=key)

    def failed(self, attempt: Attempt, failure: Failure, usage: Usage, *, printed: bool = False) -> bool:
        """The current attempt has ended by its own fault, or was cancelled; whether it may try again."""
        record = self.records[attempt.chore_id]
        self.store.accept(attempt, record.directory, None, printed=printed)
        record.attempts.append(attempt_record(attempt, usage, failure.kind.value, failure))
        facts = Facts(attempt.number, usage, printed=printed)
        if self.handle(Failed(attempt.chore_id, attempt.number, failure), facts):
            return False
        self._write_again("retry", attempt, failure, usage)
        return True

    def lost(self, attempt: Attempt, failure: Failure, *, alone: bool = False) -> bool:
        """The place of the current attempt is gone, where it was ``alone``; whether it is tried again."""
        name, number = attempt.chore_id, attempt.number
        record = attempt_record(attempt, Usage(), failure.kind.value, failure)
        self.records[name].attempts.append(record)
        self.lossy.add(name)
        if self.handle(Lost(name, number, failure, alone), Facts(number)):
            return False
        self._write_again("lost", attempt, failure, Usage(), alone=alone)
        return True

    def withdrawn(self, attempt: Attempt) -> None:
        """The current attempt was taken back before it had begun."""
        self.handle(Withdrawn(attempt.chore_id, attempt.number), Facts(attempt.number))

    def remake(self, chore_id: str, *, unanswered: bool = False) -> bool:
        """A completed chore's result is lost: let it run again; whether that is to be done.

        Parameters
        ----------
        unanswered : bool
            Whether the strategy, which has not answered its ending, is to be asked once there is a
            result again; only before anything was put to it.
        """
        waiting = unanswered and any(one.chore.id == chore_id for one in self.outbox)
        if self.graph.nodes[chore_id].state is not ChoreState.COMPLETED and not waiting:
            return False
        self.write_endings()
        self.journal.append({"e": "redo", "id": chore_id, **({"q": 1} if waiting else {})})
        self.spoil(chore_id, withdraw=waiting)
        return True

    def spoil(self, chore_id: str, *, withdraw: bool) -> None:
        """Count a result as lost; with ``withdraw``, the strategy's question about it too."""
        self.remade.add(chore_id)
        for ending in [one for one in self.outbox if withdraw and one.chore.id == chore_id]:
            self.outbox.remove(ending)
            self.tally[ending.chore.name].take_back(ending)
            self.remade.discard(chore_id)
        self.handle(Spoiled(chore_id))

    def _write_again(
        self, kind: str, attempt: Attempt, failure: Failure, usage: Usage, *, alone: bool = False
    ) -> None:
        """Journal an attempt that did not end its chore."""
        self.write_endings()
        self.journal.append(
            {
                "e": kind,
                "id": attempt.chore_id,
                "n": attempt.number,
                "ep": attempt.epoch,
                "f": failure.as_dict(),
                **({"a": 1} if alone else {}),
                **({"u": usage.as_dict()} if usage != Usage() else {}),
            }
        )

    @property
    def unstarted(self) -> bool:
        """Whether there are chores that are not RUNNING and have not ended."""
        return bool(self.graph.counts[READY] or self.graph.counts[ChoreState.BLOCKED])

    # -- writing

    def flush(self, now: float) -> None:
        """Hand everything to the operating system: first payloads, then the records that point to them."""
        self.store.flush(sync=self.journal.will_sync(now))
        self.journal.flush(now)

    def write_endings(self) -> None:
        """Put what has ended into the journal, ahead of the strategy's answers."""
        while self.unwritten:
            ending = self.unwritten.popleft()
            self.journal.append({**ending.record(), "w": 1})
            self.note_written(ending)

    def note_written(self, ending: Ending) -> None:
        """An ending is in the journal."""
        self.tally[ending.chore.name].count(ending)
        self.written.append(ending)

    # -- replay

    def replay(self, records: Iterable[dict[str, Any]]) -> None:
        """Rebuild the run from its journal.

        Raises
        ------
        MatForgeError
            If the records contradict each other, or were written by a later version.
        """
        Replay(self).all(records)

    def resumed(self, now: float, torn: int) -> None:
        """Note that another driver goes on; afterwards nothing is RUNNING."""
        self.journal.append({"e": "resume", "t": now, "epoch": self.epoch, "torn": torn})
        self.end_orphans()

    def end_orphans(self) -> None:
        """What the last driver had asked to stop is not started again: it was cancelled."""
        for node in [n for n in self.graph.nodes.values() if n.state is RUNNING]:
            why = Failure(FailureKind.CANCELLED, "Cancelled; its driver ended meanwhile.")
            self.handle(Failed(node.id, node.number, why))
