"""What the world is told of a run: metadata of each chore, the status, and whoever waits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from matforge.chore import Chore
from matforge.engine.records import Ending
from matforge.engine.run import Run
from matforge.engine.status import Counters, StatusWriter
from matforge.engine.store import FULL_LIMIT, OUT_NAME
from matforge.executors.protocol import Capacity
from matforge.model import ChoreState

log = logging.getLogger("matforge")

METADATA_VERSION = 1


class Teller:
    """Tells of endings once they are on their way into the journal.

    Parameters
    ----------
    run : Run
    status : StatusWriter
    salt : int
        Of the run's seed; see :func:`matforge.chore.salt_of`.
    on_end : callable, optional
        Called for every chore that has ended.
    """

    def __init__(
        self, run: Run, status: StatusWriter, salt: int, on_end: Callable[[Ending], None] | None
    ) -> None:
        self._run = run
        self._status = status
        self._salt = salt
        self._on_end = on_end

    def tell(self, now: float) -> None:
        """Metadata, status and whoever waits: of what is in the journal's queue by now."""
        endings, self._run.written = self._run.written, []
        for ending in endings:
            self._tell_one(ending, now)

    def _tell_one(self, ending: Ending, now: float) -> None:
        run, chore = self._run, ending.chore
        record = run.records[chore.id]
        failed = ending.state is ChoreState.FAILED
        directory = record.directory
        few = run.graph.counts[ChoreState.FAILED] <= FULL_LIMIT
        if directory is None and (ending.facts.printed or (failed and ending.facts.number and few)):
            directory = f"{OUT_NAME}/{chore.id}"  # where a person will look
        if failed and ending.failure is not None:
            self._status.failed(chore.id, ending.failure, now)
            log.warning("%s failed (%s): %s", chore.id, ending.failure.kind.value, ending.failure.message)
        run.store.put_metadata(chore.id, directory, self._metadata(ending))
        record.attempts = []
        if record.directory is None:
            run.small_payloads.pop(chore.id, None)
        if self._on_end is not None:
            self._on_end(ending)

    def _metadata(self, ending: Ending) -> dict[str, Any]:
        chore = ending.chore
        return {
            "format_version": METADATA_VERSION,
            "chore_id": chore.id,
            "key": chore.key,
            "name": chore.name,
            "function": chore.function,
            "resources": chore.resources.as_dict(),
            "policy": chore.policy.as_dict(),
            "dependencies": list(chore.inputs),
            "parent": chore.parent,
            "seed": self.seed_of(chore),
            "state": ending.state.value,
            "failure": ending.failure.as_dict() if ending.failure else None,
            "report": ending.facts.report,
            "result": ending.result.as_list() if ending.result else None,
            "cached": ending.facts.cached or None,
            "attempts": self._run.records[chore.id].attempts,
        }

    def seed_of(self, chore: Chore) -> int:
        """A reproducible 63-bit seed: of the chore's key and the run's seed."""
        return chore.seed ^ self._salt

    def tell_capacity(self, capacity: Capacity) -> None:
        """What the executor has, for the status."""
        self._status.allocation = {
            "nodes": capacity.nodes,
            "cores_per_node": capacity.cores_per_node,
            "gpus_per_node": capacity.gpus_per_node,
            "total_cores": capacity.total_cores,
            "total_gpus": capacity.total_gpus,
        }

    def counters(self) -> Counters:
        """How the run stands, for the status."""
        run, allocation = self._run, self._status.allocation
        counts = run.graph.counts
        return Counters(
            ready=counts[ChoreState.READY],
            blocked=counts[ChoreState.BLOCKED],
            running=counts[ChoreState.RUNNING],
            completed=counts[ChoreState.COMPLETED],
            failed=counts[ChoreState.FAILED],
            cancelled=counts[ChoreState.CANCELLED],
            free_cores=max(0, allocation.get("total_cores", 0) - run.cores_in_flight),
            free_gpus=max(0, allocation.get("total_gpus", 0) - run.gpus_in_flight),
        )
