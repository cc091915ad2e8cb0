"""The run as a pure state machine: events go in, instructions come out, nothing is performed.

``handle(event)`` is the only way to change a :class:`Graph`, and the table :data:`TRANSITIONS` is
the only place that says which state may follow which. Every step costs O(log n) in the number of
chores (plus the number of dependents of the chore that ended). Because nothing is performed here,
replaying the same events gives the same graph: that is how a run is resumed. Events and
instructions are in :mod:`matforge.engine.events`.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from matforge.engine.events import (
    Added,
    Cancel,
    Cancelled,
    Event,
    Failed,
    Finish,
    Held,
    Instruction,
    Lost,
    Offered,
    Publish,
    Released,
    Reprioritised,
    Settled,
    Spoiled,
    Started,
    Submit,
    Succeeded,
    Withdrawn,
)
from matforge.model import ChoreState, Failure, FailureKind, UsageError
from matforge.policy import RULES

BLOCKED, READY, RUNNING = ChoreState.BLOCKED, ChoreState.READY, ChoreState.RUNNING
COMPLETED, FAILED, CANCELLED = ChoreState.COMPLETED, ChoreState.FAILED, ChoreState.CANCELLED

TRANSITIONS: dict[tuple[ChoreState | None, ChoreState], str] = {
    (None, BLOCKED): "added, and a chore it needs has not completed",
    (None, READY): "added, and needs nothing more",
    (None, FAILED): "added, and can never run: a chore it needs failed, or it does not fit",
    (None, CANCELLED): "added, and a chore it needs was cancelled",
    (BLOCKED, READY): "the last chore it needs has completed",
    (BLOCKED, FAILED): "a chore it needs failed",
    (BLOCKED, CANCELLED): "cancelled, or a chore it needs was",
    (READY, RUNNING): "submitted",
    (READY, CANCELLED): "cancelled before it was submitted",
    (RUNNING, READY): "its slot or node was lost, it failed and may try again, or it was taken back unbegun",
    (RUNNING, COMPLETED): "succeeded",
    (RUNNING, FAILED): "failed and may not try again, or lost too often",
    (RUNNING, CANCELLED): "cancelled while it ran",
    (RUNNING, BLOCKED): "found that the result of a chore it needs is lost, which is made again",
    (COMPLETED, READY): "its result is missing or damaged, and is made again",
}
"""Every legal change of state and when it happens; the diagram in the documents is drawn from it."""

MAX_LOSSES = 3
"""A chore that was lost this often with its slot, or alone with its node, is set aside: it is probably what
kills them. So is one that has had all the time that there may be as often."""
MAX_DOUBTS = 2
"""A chore that was lost this often with its node, beside others, has the next one for itself: then it is
seen which of them kills it, and the others are not blamed."""


@dataclass(slots=True)
class Node:
    """One chore's part of the graph."""

    id: str
    inputs: tuple[str, ...]
    sequence: int
    nice: int
    state: ChoreState | None = None
    waiting: int = 0
    """Inputs that have not completed; 0 unless BLOCKED."""
    dependents: list[str] = field(default_factory=list)
    """Chores that name this one as an input; emptied when this one ends."""
    number: int = 0
    """The latest attempt; 0 before the first."""
    started: bool = False
    """Whether the latest attempt has begun; only while RUNNING."""
    losses: int = 0
    """Attempts lost with their slot, alone with their node, or after all the time that there may be."""
    doubts: int = 0
    """Attempts lost with their node, beside others, of which one may have killed it."""
    retries: int = 0
    """Failures of its own that it may still have."""
    held: bool = False
    """Whether it is kept back although it is READY; only while READY."""
    cancelling: bool = False
    """Whether the executor was asked to stop the attempt; only while RUNNING."""
    spoiled: bool = False
    """Whether it had completed and its result was lost; until it has completed again."""
    lookup: bool = False
    """Whether it is to be held when it becomes READY for the first time."""
    failure: Failure | None = None
    """Present exactly when FAILED, or CANCELLED because of another chore."""

    @property
    def suspect(self) -> bool:
        """Whether it is to have a node for itself."""
        return self.doubts >= MAX_DOUBTS


class Graph:
    """States, in-degrees and the heap of what is ready.

    Parameters
    ----------
    max_losses : int
        After this many lost attempts a chore fails instead of being tried again.
    """

    def __init__(self, *, max_losses: int = MAX_LOSSES) -> None:
        self.nodes: dict[str, Node] = {}
        self.counts: Counter[ChoreState] = Counter()
        """Nodes in each state; always sums to ``len(nodes)``."""
        self.max_losses = max_losses
        self.doubted: set[str] = set()
        """Chores with doubts about them."""
        self.lookups: deque[str] = deque()
        """Chores that were held so that their results are looked for, oldest first; some may have
        gone on since."""
        self._ready: list[tuple[int, int, str]] = []
        """Heap of (nice, sequence, id). Every READY node that is not held has an entry with its present
        nice; other entries are stale and skipped when popped."""
        self._finished = False
        self._handlers: dict[type, Callable[..., list[Instruction]]] = {
            Added: self._added,
            Offered: self._offered,
            Started: self._started,
            Succeeded: self._succeeded,
            Failed: self._failed,
            Lost: self._lost,
            Withdrawn: self._withdrawn,
            Spoiled: self._spoiled,
            Cancelled: self._cancelled,
            Reprioritised: self._reprioritised,
            Held: self._held,
            Released: self._released,
            Settled: self._settled,
        }

    def handle(self, event: Event) -> list[Instruction]:
        """Take one event and say what has to be done.

        Raises
        ------
        UsageError
            If a chore is added twice, or names an input that does not exist.
        """
        return self._handlers[type(event)](event)

    @property
    def open(self) -> int:
        """Chores that have not ended."""
        return self.counts[BLOCKED] + self.counts[READY] + self.counts[RUNNING]

    def next_ready(self) -> str | None:
        """Id of the chore that the next :class:`Offered` would submit first."""
        while self._ready:
            nice, _, chore_id = self._ready[0]
            node = self.nodes[chore_id]
            if node.state is READY and node.nice == nice and not node.held:
                return chore_id
            heapq.heappop(self._ready)
        return None

    # -- changes of state: nothing else assigns Node.state

    def _move(self, node: Node, state: ChoreState) -> None:
        if (node.state, state) not in TRANSITIONS:
            raise AssertionError(f"{node.id}: {node.state} -> {state} is not a legal transition")
        if node.state is not None:
            self.counts[node.state] -= 1
        node.state = state
        self.counts[state] += 1
        node.started = node.cancelling = node.held = False
        if node.lookup and state is READY:
            node.lookup, node.held = False, True
            self.lookups.append(node.id)
        self._offer(node)

    def _end(self, node: Node, state: ChoreState, failure: Failure | None = None) -> list[Instruction]:
        """Move to a final state and carry a failure or a cancellation down the graph."""
        out: list[Instruction] = []
        stack = [(node, state, failure)]
        while stack:
            item, final, why = stack.pop()
            if item.state is not None and item.state.final:
                continue
            self._move(item, final)
            self._trust(item.id)
            if why is not None and why.kind is FailureKind.NODE_LOST:  # what killed the others' node is found
                self._trust(*self.doubted)
            item.failure, item.waiting = why, 0
            item.spoiled = item.spoiled and final is not COMPLETED
            out.append(Publish(item.id, final, why))
            dependents, item.dependents = item.dependents, []
            if final is not COMPLETED:
                # reversed, so that the stack publishes dependents in the order they were added
                stack += [(self.nodes[name], *_inherited(item)) for name in reversed(dependents)]
                continue
            for name in dependents:
                self._unblock(self.nodes[name])
        return out

    def _trust(self, *chore_ids: str) -> None:
        for name in chore_ids:
            self.nodes[name].doubts = 0
        self.doubted.difference_update(chore_ids)

    def _unblock(self, node: Node) -> None:
        if node.state is BLOCKED:
            node.waiting -= 1
            if node.waiting == 0:
                self._move(node, READY)

    # -- one handler for each event

    def _added(self, event: Added) -> list[Instruction]:
        if event.id in self.nodes:
            raise UsageError(f"Chore {event.id} was added twice.")
        inputs = tuple(dict.fromkeys(event.inputs))
        for name in inputs:
            if name not in self.nodes:
                raise UsageError(
                    f"Chore {event.id} needs the result of {name}, which is not part of this run."
                )
        node = Node(event.id, inputs, len(self.nodes), event.nice, retries=event.retries, lookup=event.lookup)
        self.nodes[event.id] = node
        self._finished = False
        if event.unfit is not None:
            return self._end(node, FAILED, event.unfit)
        for name in inputs:
            source = self.nodes[name]
            if source.state in (FAILED, CANCELLED):
                return self._end(node, *_inherited(source))
        for name in inputs:
            if self.nodes[name].state is not COMPLETED:
                node.waiting += 1
                self.nodes[name].dependents.append(node.id)
        self._move(node, BLOCKED if node.waiting else READY)
        return []

    def _offered(self, event: Offered) -> list[Instruction]:
        out: list[Instruction] = []
        while len(out) < event.count and (chore_id := self.next_ready()) is not None:
            heapq.heappop(self._ready)
            node = self.nodes[chore_id]
            self._move(node, RUNNING)
            node.number += 1
            out.append(Submit(node.id, node.number))
        return out

    def _current(self, chore_id: str, number: int) -> Node | None:
        """The node, unless the event is about a stale attempt: those are discarded."""
        node = self.nodes.get(chore_id)
        return node if node is not None and node.state is RUNNING and node.number == number else None

    def _started(self, event: Started) -> list[Instruction]:
        node = self.nodes.get(event.id)
        if node is not None and node.state is READY and event.number > node.number:
            self._move(node, RUNNING)
            node.number = event.number
        if (node := self._current(event.id, event.number)) is not None:
            node.started = True
        return []

    def _succeeded(self, event: Succeeded) -> list[Instruction]:
        node = self._current(event.id, event.number)
        return [] if node is None else self._end(node, COMPLETED)

    def _failed(self, event: Failed) -> list[Instruction]:
        node = self._current(event.id, event.number)
        if node is None:
            return []
        if node.cancelling or event.failure.kind is FailureKind.CANCELLED:
            return self._end(node, CANCELLED, event.failure)
        cost = RULES[event.failure.kind].cost
        if event.final or cost is None or cost > node.retries:
            return self._end(node, FAILED, event.failure)
        node.retries -= cost
        return self._again(node)

    def _lost(self, event: Lost) -> list[Instruction]:
        node = self._current(event.id, event.number)
        if node is None:
            return []
        # a slot's death may be the chore's fault, and a node's, if nothing else was there; to be stopped
        # for want of time is not, unless there will never be more
        kind = event.failure.kind
        if kind is FailureKind.NODE_LOST and not event.alone:
            node.doubts += 1
            self.doubted.add(node.id)
        elif kind is not FailureKind.WALLTIME or event.alone:
            node.losses += 1
        if node.cancelling:
            return self._end(node, CANCELLED, Failure(FailureKind.CANCELLED, "Cancelled while it ran."))
        if node.losses >= self.max_losses:
            return self._end(node, FAILED, event.failure)
        return self._again(node)

    def _withdrawn(self, event: Withdrawn) -> list[Instruction]:
        node = self._current(event.id, event.number)
        if node is None:
            return []
        if node.cancelling:
            return self._end(node, CANCELLED, Failure(FailureKind.CANCELLED, "Cancelled before it ran."))
        # as after a replay, which knows nothing of it: an input that was spoiled is found when it runs
        self._move(node, READY)
        return []

    def _again(self, node: Node) -> list[Instruction]:
        """Let a chore that ran be tried again, once the results that it needs are there (again)."""
        for name in node.inputs:
            source = self.nodes[name]
            if source.state in (FAILED, CANCELLED):
                self._move(node, BLOCKED)
                return self._end(node, *_inherited(source))
            if source.state is not COMPLETED:
                node.waiting += 1
                source.dependents.append(node.id)
        self._move(node, BLOCKED if node.waiting else READY)
        return []

    def _spoiled(self, event: Spoiled) -> list[Instruction]:
        # others that need it, and are READY, find out when they run: that is rare, and a search is not
        node = self.nodes.get(event.id)
        if node is not None and node.state is COMPLETED:
            self._move(node, READY)
            node.spoiled = True
        return []

    def _cancelled(self, event: Cancelled) -> list[Instruction]:
        node = self.nodes.get(event.id)
        if node is None or node.state is None or node.state.final or node.cancelling:
            return []
        if node.state is RUNNING:
            node.cancelling = True
            return [Cancel(node.id, node.number)]
        why = Failure(FailureKind.CANCELLED, "Cancelled before it ran.")
        return self._end(node, CANCELLED, why)

    def _reprioritised(self, event: Reprioritised) -> list[Instruction]:
        node = self.nodes.get(event.id)
        if node is not None and node.nice != event.nice:
            node.nice = event.nice
            self._offer(node)
        return []

    def _offer(self, node: Node) -> None:
        if node.state is READY and not node.held:
            heapq.heappush(self._ready, (node.nice, node.sequence, node.id))

    def _held(self, event: Held) -> list[Instruction]:
        node = self.nodes[event.id]
        node.held = node.state is READY
        return []

    def _released(self, event: Released) -> list[Instruction]:
        node = self.nodes[event.id]
        if node.held:
            node.held = False
            self._offer(node)
        return []

    def _settled(self, event: Settled) -> list[Instruction]:
        if self.open or self._finished:
            return []
        self._finished = True
        return [Finish()]

    # -- the invariants, for tests

    def check(self) -> None:
        """Assert every invariant; O(n), for tests."""
        assert sum(self.counts.values()) == len(self.nodes)
        assert Counter(node.state for node in self.nodes.values()) == +self.counts
        entries = {(nice, chore_id) for nice, _, chore_id in self._ready}
        for node in self.nodes.values():
            inputs = [self.nodes[name] for name in node.inputs if self.nodes[name].state is not COMPLETED]
            # what was spoiled after it had been waited for is noticed by whoever runs
            unfinished = sum(not source.spoiled for source in inputs)
            if node.state is BLOCKED:
                assert node.waiting == sum(node.id in source.dependents for source in inputs) > 0
                assert all(source.spoiled or node.id in source.dependents for source in inputs)
            else:
                assert node.waiting == 0
            if node.state is READY and not node.held:
                assert (node.nice, node.id) in entries
            assert node.state is READY or not node.held
            assert node.retries >= 0
            assert (node.doubts > 0) == (node.id in self.doubted)
            assert not (node.state is not None and node.state.final and node.doubts)
            if node.state in (READY, RUNNING, COMPLETED):
                assert unfinished == 0
                assert node.failure is None
            if node.state is FAILED:
                assert node.failure is not None
            assert node.state is RUNNING or not (node.started or node.cancelling)
            assert node.state is not None
            assert not (node.state.final and node.dependents)


def _inherited(source: Node) -> tuple[ChoreState, Failure]:
    """What becomes of a chore that needs ``source``, which has ended without a result."""
    failure = source.failure
    root = failure.root if failure is not None and failure.root is not None else source.id
    if source.state is CANCELLED:
        return CANCELLED, Failure(FailureKind.CANCELLED, f"{root}, which it needs, was cancelled.", root=root)
    return FAILED, Failure(FailureKind.DEPENDENCY_FAILED, f"{root}, which it needs, failed.", root=root)
