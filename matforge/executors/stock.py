"""The nodes of a Flux instance as a run may use them: the ledger, kept in step with what Flux says."""

from __future__ import annotations

import logging
import socket
from collections.abc import Container

from matforge.executors import placement
from matforge.executors.instance import Inventory, NodeState
from matforge.executors.placement import Node
from matforge.executors.protocol import Capacity
from matforge.executors.walltime import allocation_end
from matforge.model import Resources
from matforge.worker.processes import memory_limit

log = logging.getLogger("matforge")


class Stock:
    """Nodes, their slots, and what others hold of them.

    Parameters
    ----------
    inventory : Inventory
        The first one.
    workers : int or None
        Slots in all; None: one a core.
    """

    def __init__(self, inventory: Inventory, workers: int | None) -> None:
        self.nodes: dict[int, Node] = {}
        self.others = False
        """Whether other jobs hold cores that may become ours."""
        self._workers = workers
        self._slots: dict[int, int] = {}
        self.take(inventory)

    def take(self, inventory: Inventory) -> None:
        """Put what Flux says of its nodes into the ledger."""
        states = inventory.nodes
        if not any(s.free_cores for s in states.values()) and not self.nodes:
            log.warning("all cores of this Flux instance are held by other jobs; waiting for them to end")
            # perhaps by a dead driver's agents: Flux starts ours when they have gone
            usable = {rank: s.cores for rank, s in states.items()}
        else:
            usable = {rank: self._usable(rank, s) for rank, s in states.items()}
        self._slots = placement.shares({r: n for r, n in usable.items() if n}, self._workers)
        for rank, state in states.items():
            cores = min(usable[rank], self._slots.get(rank, 0))
            node = self.nodes.setdefault(rank, Node(rank, state.host or f"rank {rank}", cores, state.gpus))
            node.cores, node.up = cores, state.up
        for rank in set(self.nodes) - set(states):
            self.nodes[rank].up = False
        self.others = any(usable[rank] < s.cores and s.up for rank, s in states.items())

    def _usable(self, rank: int, state: NodeState) -> int:
        """Cores of a node that no other job holds."""
        ours = sum(b.cores for b in self.nodes[rank].blocks) if rank in self.nodes else 0
        return min(state.cores, state.free_cores + ours) if state.up else state.cores

    def slots(self, node: Node) -> int:
        """Slots of a whole node."""
        return self._slots.get(node.rank, 0)

    def slots_of(self, node: Node, cores: int) -> int:
        """Slots of an agent with so many of a node's cores."""
        return max(1, self._slots.get(node.rank, cores) * cores // max(node.cores, 1))

    def usable(self, given_up: Container[int] = ()) -> list[Node]:
        """Nodes that are there and on which agents can live."""
        return [n for n in self.nodes.values() if n.up and n.cores and n.rank not in given_up]

    def fits_a_node(self, wants: Resources, given_up: Container[int] = ()) -> bool:
        """Whether some node could hold all of a chore's tasks."""
        return any(self.slots(n) >= wants.cores and n.gpus >= wants.gpus for n in self.usable(given_up))

    def capacity(self, given_up: Container[int] = (), ends_at: float | None = None) -> Capacity:
        """All nodes together; the end is that of the allocation."""
        nodes = self.usable(given_up)
        slots = [self.slots(n) for n in nodes]
        total = sum(slots)
        return Capacity(
            nodes=len(nodes),
            cores_per_node=max(slots, default=0),
            gpus_per_node=max((n.gpus for n in nodes), default=0),
            total_cores=total,
            total_gpus=sum(n.gpus for n in nodes),
            queue_depth=max(64, 2 * total),
            ends_at=allocation_end(ends_at),
            # Flux does not count memory; nodes of one instance are mostly alike
            memory_per_node=memory_limit() if any(is_here(n.host) for n in nodes) else 0,
        )


def is_here(host: str) -> bool:
    """Whether a node is the one that this process runs on."""
    return host.partition(".")[0] == socket.gethostname().partition(".")[0]
