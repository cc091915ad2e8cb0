"""What a running chore may take (time, memory), and whether its process goes on at all.

The agent looks; nothing of it depends on what the chore does to its own process.
"""

from __future__ import annotations

import signal
from dataclasses import replace

from matforge.model import Failure, FailureKind
from matforge.worker import processes
from matforge.worker.slotproc import AgentTask, SlotProcess
from matforge.worker.wire import TaskField

MEMORY_EVERY_S = 0.1
STOPPED_EVERY_S = 0.5
STOPPED_S = 2.0
"""Seconds after which a slot that somebody has stopped (``SIGSTOP``) is given up. A whole node that is
suspended and goes on is not hit by it: its agent stood still as well."""


def trespass(slot: SlotProcess, task: AgentTask, now: float) -> tuple[Failure, signal.Signals] | None:
    """Why ``task``, which ``slot`` runs, must end, and the signal for it; None if it may go on."""
    chore = task.wire[TaskField.CHORE_ID]
    if task.timeout_s is not None and now - slot.since > task.timeout_s:
        said = f"{chore}: it took longer than its timeout of {task.timeout_s:g} s."
        return Failure(FailureKind.TIMEOUT, said), signal.SIGTERM
    if task.memory is not None and now - task.weighed_at >= MEMORY_EVERY_S:
        task.weighed_at = now
        taken = _weigh(slot, task.memory)
        task.peak = max(task.peak, taken)
        if taken > task.memory:
            said = (
                f"{chore}: it occupied {size_words(taken)} of memory, and may have {size_words(task.memory)}."
            )
            return Failure(FailureKind.OUT_OF_MEMORY, said, peak_memory=task.peak), signal.SIGKILL
    if now - slot.stood_at >= STOPPED_EVERY_S and _stands(slot, now):
        said = f"{chore}: its process was stopped (SIGSTOP) and did not go on for {STOPPED_S:g} s."
        return Failure(FailureKind.WORKER_LOST, said), signal.SIGKILL
    return None


def restless(slot: SlotProcess, task: AgentTask, now: float, beat_s: float) -> bool:
    """Whether ``task`` must be looked at before the next heartbeat."""
    if task.memory is not None:
        return True
    return task.timeout_s is not None and slot.since + task.timeout_s - now < 2 * beat_s


def base_memory(slot: SlotProcess) -> int:
    """What a slot holds before it begins a task: that does not count against the task."""
    return processes.memory_of([slot.pid]) if slot.ready and not slot.launches else 0


def _weigh(slot: SlotProcess, limit: int) -> int:
    """Bytes that the running task occupies, with all it has started."""
    tree = processes.descendants_of(slot.pid)
    if not slot.launches:
        tree.append(slot.pid)
    taken = processes.memory_of(tree) - slot.base_memory
    if taken > limit and len(tree) > 1:
        # pages that a family shares were counted for each of them; to divide them takes a while
        taken = processes.proportional_memory_of(tree) - slot.base_memory
    return max(0, taken)


def _stands(slot: SlotProcess, now: float) -> bool:
    """Whether the slot, or the program that it has started, has been stopped for too long."""
    slot.stood_at = now
    looked_at = [slot.pid, *(processes.children_of(slot.pid) if slot.launches else ())]
    if not any(processes.is_stopped(pid) for pid in looked_at):
        slot.stopped_since = 0.0
        return False
    slot.stopped_since = slot.stopped_since or now
    return now - slot.stopped_since >= STOPPED_S


def size_words(count: int) -> str:
    """Bytes as a person says them."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def with_evidence(failure: Failure, slot: SlotProcess, begun: float, wall_s: float, peak: int) -> Failure:
    """``failure`` with where and when it happened, and the most memory that was seen."""
    peak = max(peak, failure.peak_memory or 0)
    return replace(
        failure, slot=slot.number, started_at=round(begun, 6), wall_s=round(wall_s, 6), peak_memory=peak
    )
