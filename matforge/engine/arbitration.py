"""How much may be in flight, and what can never fit: pure rules on numbers.

The rule of the queue: chores are submitted strictly in the order of (nice, age). A chore that does
not fit beside what runs waits at the head, and nothing overtakes it, so a wide chore is never
starved by narrow ones.
"""

from __future__ import annotations

from matforge.model import Resources

QUEUED_WORK_S = 0.05
"""Seconds of work that agents should hold beyond what runs, so that no slot waits for the driver."""
SHORT_S = 1.0
"""Seconds: what a chore may take of which some wait at the agents although they are handed out with care."""
MAX_DEPTH_PER_CORE = 256
"""Chores per core that may wait at the agents at most, however short they are."""


def why_unfit(resources: Resources, total_cores: int, total_gpus: int, node_memory: int = 0) -> str:
    """A sentence if the resources can never be met, else an empty string."""
    if resources.cores > total_cores:
        return f"It needs {resources.cores} cores, and there are {total_cores} in all."
    if resources.gpus > total_gpus:
        return f"It needs {resources.gpus} GPUs, and there are {total_gpus} in all."
    if node_memory and (resources.memory or 0) > node_memory:
        wanted, there = (f"{n / 2**30:.1f} GiB" for n in (resources.memory or 0, node_memory))
        return f"It needs {wanted} of memory, and a node has {there}."
    return ""


def queue_depth(mean_wall_s: float | None, total_cores: int, *, careful: bool = False) -> int:
    """Cores' worth of chores to keep at the agents beyond what runs.

    Parameters
    ----------
    mean_wall_s : float or None
        Recent mean duration of a chore; None before the first has ended.
    total_cores : int
        Cores of the allocation.
    careful : bool
        Whether chores that are not known to be short are handed out one at a time: because the
        allocation has an end, and whether one can still finish is only known when it starts, or
        because a failure may stop the run, and what waits at an agent would start all the same.
    """
    if careful and (mean_wall_s is None or mean_wall_s > SHORT_S):
        return 0
    if mean_wall_s is None:
        return total_cores
    per_core = QUEUED_WORK_S / max(mean_wall_s, QUEUED_WORK_S / MAX_DEPTH_PER_CORE)
    return max(1, int(per_core + 1)) * total_cores


def fits_now(in_flight: int, cores: int, total_cores: int, depth: int) -> bool:
    """Whether a chore of ``cores`` cores may be handed to the agents now."""
    return in_flight == 0 or in_flight + cores <= total_cores + depth


def memory_fits(in_flight: int, wanted: int, total: int) -> bool:
    """Whether a chore that declares ``wanted`` bytes may be handed out beside ``in_flight`` declared
    ones; with ``total`` 0 nothing is known, and everything fits."""
    return not total or in_flight == 0 or in_flight + wanted <= total
