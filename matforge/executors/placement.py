"""Where things go on the nodes of an allocation: pure rules on a ledger of blocks.

A node's cores are held by *blocks*: agents, which serve many chores, and jobs, which end with
theirs. Normally a node has one agent that holds all of it. A job of its own (MPI, several nodes)
needs cores that no agent holds, so agents have to go first:

1. Chores are placed strictly in their order; what stands behind the head of the queue waits.
2. A job that fits into free cores is started there. Otherwise the nodes are chosen that need the
   fewest busy agents to go.
3. Those agents get nothing new, and end when they have nothing left to do.
4. The job is started; on these nodes no agent is started before it has its cores.
5. Cores that nobody holds and no waiting job wants are given to a new agent.

What is suspected of killing nodes has its nodes for itself: it waits until nothing else is there,
and meanwhile nothing else is started there.

The same rule joins small agents to a larger one, for a chore that needs more cores than any has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(slots=True, eq=False)
class Block:
    """Cores and GPUs of one node that an agent or a job holds."""

    cores: int
    gpus: int = 0
    load: int = 0
    """Cores' worth of chores that an agent has been given."""
    leaving: bool = False
    """An agent that gets nothing new and ends when it is idle."""
    fixed: bool = False
    """A job: it cannot be asked to go."""
    alone: bool = False
    """Whether it has the node for itself, whatever it holds of it."""


@dataclass(slots=True, eq=False)
class Node:
    """One node (one broker) and who holds what of it."""

    rank: int
    host: str
    cores: int
    """Cores that this run may hold."""
    gpus: int = 0
    up: bool = True
    blocks: list[Block] = field(default_factory=list)

    def only(self, block: Block) -> bool:
        """Whether nothing of this run holds anything here but ``block``."""
        return self.blocks == [block]

    def free(self) -> tuple[int, int]:
        """Cores and GPUs that nobody of this run holds."""
        if any(b.alone for b in self.blocks):
            return 0, 0
        return (
            max(0, self.cores - sum(b.cores for b in self.blocks)),
            max(0, self.gpus - sum(b.gpus for b in self.blocks)),
        )

    def room(self) -> tuple[int, int]:
        """Cores and GPUs that are free, or will be when those have gone who are leaving."""
        held = [b for b in self.blocks if not b.leaving]
        if any(b.alone for b in held):
            return 0, 0
        return (
            max(0, self.cores - sum(b.cores for b in held)),
            max(0, self.gpus - sum(b.gpus for b in held)),
        )


@dataclass(frozen=True, slots=True)
class Need:
    """What a job asks for; a task never spans nodes."""

    tasks: int
    cores: int
    """Of each task."""
    gpus: int = 0

    def tasks_in(self, cores: int, gpus: int) -> int:
        """How many of the tasks fit there."""
        fit = cores // self.cores
        return min(fit, gpus // self.gpus) if self.gpus else fit


@dataclass(frozen=True, slots=True)
class Plan:
    """How a job gets its place."""

    nodes: tuple[Node, ...]
    leaving: tuple[Block, ...]
    """Agents that have to be told to leave."""
    ready: bool
    """Whether the cores are free now."""


def fits(need: Need, nodes: Iterable[Node]) -> bool:
    """Whether the nodes could hold the job if nothing else ran there."""
    return sum(need.tasks_in(node.cores, node.gpus) for node in nodes if node.up) >= need.tasks


def plan(need: Need, nodes: Iterable[Node], *, alone: bool = False) -> Plan | None:
    """Choose nodes for a job, and the agents that must leave.

    Parameters
    ----------
    need : Need
    nodes : iterable of Node
    alone : bool
        Whether nothing else may be on these nodes.

    Returns
    -------
    Plan or None
        None if jobs hold so much that it must wait for one of them to end.
    """
    up = [node for node in nodes if node.up]
    # what is free now comes first, so that a place which was cleared for a job is not passed over
    # for another one that would have to be cleared too
    empty = [n for n in up if not (alone and n.blocks)]
    free = _choose(need, [_Offer(n, tasks, 0) for n in empty if (tasks := need.tasks_in(*n.free())) > 0])
    if free is not None:
        return Plan(tuple(node for node, _ in free), (), ready=True)
    chosen = _choose(need, [offer for n in up if (offer := _offer(need, n, alone)) is not None])
    if chosen is None:
        return None
    leaving = [block for node, takes in chosen for block in _must_leave(need, node, takes, alone)]
    return Plan(tuple(node for node, _ in chosen), tuple(leaving), ready=False)


class _Offer(NamedTuple):
    node: Node
    tasks: int
    """Tasks that could run there."""
    waits: int
    """Work that has to end before."""


def _choose(need: Need, offers: list[_Offer]) -> list[tuple[Node, int]] | None:
    """Nodes and how many tasks each takes; None if all of them together are too few.

    A node that holds all is better than several; then the one where least has to end before.
    """
    offers.sort(key=lambda o: (o.tasks < need.tasks, o.waits, -o.tasks, o.node.rank))
    chosen: list[tuple[Node, int]] = []
    missing = need.tasks
    for offer in offers:
        if missing <= 0:
            break
        takes = min(offer.tasks, missing)
        chosen.append((offer.node, takes))
        missing -= takes
    return chosen if missing <= 0 else None


def _offer(need: Need, node: Node, alone: bool) -> _Offer | None:
    """What a node could hold once its agents have gone; None if its jobs leave too little."""
    jobs = [b for b in node.blocks if b.fixed]
    if (alone and jobs) or any(b.alone for b in node.blocks):
        return None
    tasks = need.tasks_in(node.cores - sum(b.cores for b in jobs), node.gpus - sum(b.gpus for b in jobs))
    if tasks <= 0:
        return None
    leaving = _must_leave(need, node, min(tasks, need.tasks), alone)
    waits = sum(b.load for b in leaving) + sum(b.load for b in node.blocks if b.leaving)
    return _Offer(node, min(tasks, need.tasks), waits)


def _must_leave(need: Need, node: Node, tasks: int, alone: bool) -> list[Block]:
    """The agents of a node, idle and small ones first, without which ``tasks`` tasks fit."""
    cores, gpus = node.room()
    chosen: list[Block] = []
    for block in sorted(
        (b for b in node.blocks if not b.fixed and not b.leaving), key=lambda b: (b.load, b.cores)
    ):
        if need.tasks_in(cores, gpus) >= tasks and not alone:
            break
        chosen.append(block)
        cores += block.cores
        gpus += block.gpus
    return chosen


def shares(cores: Mapping[int, int], workers: int | None) -> dict[int, int]:
    """Slots of each node.

    Parameters
    ----------
    cores : mapping
        Cores of each node, by rank.
    workers : int or None
        Slots in all; fewer than there are cores leave the last nodes out, more are shared out in
        proportion to the cores. None: one a core.
    """
    total = sum(cores.values())
    if workers is None or workers == total:
        return dict(cores)
    given: dict[int, int] = {}
    left = workers
    if workers < total:
        for rank in sorted(cores):
            given[rank] = min(cores[rank], left)
            left -= given[rank]
        return {rank: count for rank, count in given.items() if count}
    for rank in sorted(cores):
        given[rank] = workers * cores[rank] // total
        left -= given[rank]
    for rank in sorted(cores)[:left]:
        given[rank] += 1
    return given
