"""What may be started now: room, memory, pauses after failures, and the time that is left.

Nothing is started that cannot finish before the allocation ends. How long a chore takes is what
its author declared (``expected``), else the longest that a chore of the same name has taken so far.
What does not fit into the time that is left is kept back, and shorter chores go on.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from matforge.engine import arbitration, events
from matforge.engine.run import Run
from matforge.executors.protocol import Capacity
from matforge.model import ChoreState

GRACE_S = 10.0
"""Seconds before the end of an allocation at which everything is stopped and written."""


class Dispatch:
    """Picks what is started next.

    Parameters
    ----------
    run : Run
    backfill : bool
        Whether chores start as soon as there is room, or wave by wave.
    """

    def __init__(self, run: Run, *, backfill: bool) -> None:
        self._run = run
        self._backfill = backfill
        self._pauses: list[tuple[float, str]] = []
        """Heap of (time, id) of chores that are held until then."""
        self._late: set[str] = set()
        """Chores that are held because the time that is left is too short."""
        self._alone: set[str] = set()
        """Chores that were given a node for themselves; some may have ended since."""
        self._mean_wall: float | None = None
        self.capacity = Capacity(1, 0, 0, 0, 0, 0)
        self.ends_at: float | None = None
        """When everything has to be over (Unix time); the end of the allocation, or of our patience."""
        self.closed = False
        """Whether nothing may be started any more."""

    # -- what is known

    def learn_capacity(self, capacity: Capacity) -> None:
        """The executor has another capacity; what was too late may no longer be."""
        self.capacity = capacity
        if not self.closed:
            self.ends_at = capacity.ends_at
        for chore_id in self._late:
            self._run.graph.handle(events.Released(chore_id))
        self._late.clear()

    def close(self, ends_at: float | None) -> None:
        """Start nothing more; what runs may go on until ``ends_at``."""
        self.closed = True
        if ends_at is not None:
            self.ends_at = ends_at if self.ends_at is None else min(self.ends_at, ends_at)

    def learn_wall(self, name: str, wall_s: float) -> None:
        """A chore of this name took so long."""
        self._mean_wall = wall_s if self._mean_wall is None else 0.9 * self._mean_wall + 0.1 * wall_s
        self._run.note_wall(name, wall_s)

    def pause(self, chore_id: str, until: float) -> None:
        """Keep a READY chore back for a while."""
        self._run.graph.handle(events.Held(chore_id))
        heapq.heappush(self._pauses, (until, chore_id))

    def release(self, now: float) -> None:
        """Let go what has waited long enough."""
        while self._pauses and self._pauses[0][0] <= now:
            _, chore_id = heapq.heappop(self._pauses)
            self._run.graph.handle(events.Released(chore_id))

    # -- what follows from it

    def over(self, now: float) -> bool:
        """Whether what still runs has to be stopped now."""
        return self.ends_at is not None and now >= self.ends_at - GRACE_S

    def stuck(self) -> bool:
        """Whether nothing runs and nothing may be started any more, although there is something."""
        counts = self._run.graph.counts
        if counts[ChoreState.RUNNING] or not self._run.graph.open:
            return False
        if self.closed:
            return True
        nodes = self._run.graph.nodes
        late = sum(nodes[name].held for name in self._late)  # others were cancelled meanwhile
        return late > 0 and counts[ChoreState.READY] == late

    def due(self) -> float | None:
        """When there is something to do next for the time's sake: a pause that ends, or all."""
        times = [self._pauses[0][0]] if self._pauses else []
        if self.ends_at is not None:
            times.append(self.ends_at - GRACE_S)
        return min(times, default=None)

    def expected(self, chore_id: str) -> float | None:
        """Seconds that a chore will probably take, if anything is known."""
        chore = self._run.records[chore_id].chore
        declared = chore.policy.expected
        return declared if declared is not None else self._run.longest.get(chore.name)

    def select(self, now: float) -> Iterator[events.Submit]:
        """Attempts to hand to the executor, in order; each counts as running once it is taken."""
        if self.closed:
            return
        run, total = self._run, self.capacity.total_cores
        # where agents are lost, what waits there is suspected with what runs
        careful = self.ends_at is not None or run.may_stop or bool(run.graph.doubted)
        wanted = arbitration.queue_depth(self._mean_wall, total, careful=careful)
        depth = min(self.capacity.queue_depth, wanted)
        if not self._backfill:
            if run.cores_in_flight:
                return
            depth = run.graph.counts[ChoreState.READY] * total  # a whole wave
        memory = self.capacity.total_memory
        while (chore_id := run.graph.next_ready()) is not None:
            if self._too_late(chore_id, now):
                run.graph.handle(events.Held(chore_id))
                self._late.add(chore_id)
                continue
            wants = run.records[chore_id].chore.resources
            alone, kept = run.graph.nodes[chore_id].suspect, self._kept()
            cores = max(wants.cores, self.capacity.cores_per_node) if alone else wants.cores
            if not arbitration.fits_now(
                run.cores_in_flight + kept, cores, total, 0 if alone or self._alone else depth
            ):
                return
            if wants.memory and not arbitration.memory_fits(run.memory_in_flight, wants.memory, memory):
                return
            submit = run.submit_next()
            assert submit is not None
            if alone:
                self._alone.add(chore_id)
            yield submit

    def _kept(self) -> int:
        """Cores that are kept free beside chores that have a node for themselves."""
        if not self._alone:
            return 0
        run, node = self._run, self.capacity.cores_per_node
        self._alone = {name for name in self._alone if run.graph.nodes[name].state is ChoreState.RUNNING}
        return sum(max(0, node - run.records[name].chore.resources.cores) for name in self._alone)

    def _too_late(self, chore_id: str, now: float) -> bool:
        if self.ends_at is None:
            return False
        return now + (self.expected(chore_id) or 0.0) > self.ends_at - GRACE_S
