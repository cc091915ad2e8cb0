"""Many nodes: what the driver of an allocation spends on a chore, from its report to the next one given out.

No Flux and no agents: their messages are made here, so that thousands of nodes fit on one machine.

Run: ``python tests/benchmarks/bench_lanes.py [NODES ...]``
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "executors"))

from allocations import Allocation

CORES = 64
AT_ONCE = 8
"""Chores whose ends arrive together."""


def lanes(nodes: int, chores: int = 10_000) -> dict[str, object]:
    """Microseconds a chore of a minute, with every core busy and as many chores waiting."""
    with tempfile.TemporaryDirectory() as home:
        allocation = Allocation(Path(home), nodes, CORES)
        allocation.connect(allocation.agents)
        begun = time.perf_counter()
        allocation.lanes.submit([allocation.task() for _ in range(2 * nodes * CORES)], 0.0)
        filled = time.perf_counter() - begun
        chance = random.Random(0)
        spent = 0.0
        for _ in range(0, chores, AT_ONCE):
            agent = chance.choice(allocation.agents)
            handles = sorted(agent.link.in_flight)[:AT_ONCE]
            more = [allocation.task() for _ in handles]
            begun = time.perf_counter()
            allocation.finish(agent, handles)
            allocation.lanes.submit(more, 0.0)
            spent += time.perf_counter() - begun
        return {
            "nodes": nodes, "cores": nodes * CORES, "us_a_chore": round(1e6 * spent / chores, 1),
            "s_to_fill": round(filled, 2),
        }  # fmt: skip


if __name__ == "__main__":
    for count in [int(word) for word in sys.argv[1:]] or [1, 100, 1000, 9000]:
        print(lanes(count), flush=True)
