"""``status.json`` and its history: what whoever watches a run reads.

The file keeps MatEnsemble's schema 2, so that its users' tools read it, and adds keys. It is
replaced atomically, at most every ``log_delay`` seconds and once at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matforge.engine.records import Tally
from matforge.model import Failure, MatForgeError, RunState

SCHEMA_VERSION = 2
STATUS_NAME = "status.json"
HISTORY_NAME = "status_history.jsonl"
FAILURES_KEPT = 100
"""Failures shown in status.json, half of them the first and half the latest; all are in the journal."""


def timestamp(seconds: float) -> str:
    """ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


@dataclass(slots=True)
class Counters:
    """What ``current`` holds; ``pending = ready + blocked``."""

    ready: int = 0
    blocked: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    free_cores: int = 0
    free_gpus: int = 0

    def as_dict(self) -> dict[str, int]:
        """In the order of the schema."""
        return {
            "pending": self.ready + self.blocked,
            "ready": self.ready,
            "blocked": self.blocked,
            "running": self.running,
            "completed": self.completed,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "free_cores": self.free_cores,
            "free_gpus": self.free_gpus,
        }


@dataclass
class StatusWriter:
    """Writes the two files of one run.

    Parameters
    ----------
    run_dir : Path
    workflow : mapping
        ``id``, ``name``, ``campaign``.
    started_at : float
        Unix time of the *first* driver's start; survives a resume.
    log_delay : float
        Least seconds between two writes.
    """

    run_dir: Path
    workflow: Mapping[str, Any]
    started_at: float
    log_delay: float = 5.0
    allocation: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    state: RunState = RunState.INITIALIZING
    extra: dict[str, Any] = field(default_factory=dict)
    """Further top-level keys: what strategies and the manager want people to know."""
    tally: Mapping[str, Tally] = field(default_factory=dict)
    """How the chores of each name stand; shown as ``kinds``."""
    sequence: int = 0
    _written_at: float = float("-inf")
    _last: Counters | None = None

    def failed(self, chore_id: str, failure: Failure, now: float) -> None:
        """Remember a failure for the list."""
        if len(self.failures) == FAILURES_KEPT:
            del self.failures[FAILURES_KEPT // 2]
        self.failures.append(
            {
                "chore_id": chore_id,
                "timestamp": timestamp(now),
                "reason": failure.kind.value,
                "upstream": failure.root,
                "message": failure.message,
                "stderr": failure.stderr,
            }
        )

    def changed(self, counters: Counters) -> bool:
        """Whether the file on disk shows other numbers."""
        return counters != self._last

    def due(self) -> float:
        """When the next write may happen."""
        return self._written_at + self.log_delay

    def write(self, counters: Counters, now: float, *, force: bool = False) -> bool:
        """Replace the file if it is due and something changed, or if forced."""
        if not force and (now < self.due() or counters == self._last):
            return False
        current = counters.as_dict()
        self.sequence += 1
        elapsed = max(0.0, now - self.started_at)
        ended = self.state in (RunState.COMPLETED, RunState.FAILED, RunState.INTERRUPTED)
        document = {
            "schema_version": SCHEMA_VERSION,
            "workflow": {
                **self.workflow,
                "state": self.state.value,
                "started_at": timestamp(self.started_at),
                "updated_at": timestamp(now),
                "finished_at": timestamp(now) if ended else None,
                "elapsed_seconds": round(elapsed, 3),
            },
            "allocation": self.allocation,
            "current": {"sequence": self.sequence, **current},
            "failures": self.failures,
            "history_file": HISTORY_NAME,
            "kinds": {name: tally.counts() for name, tally in self.tally.items()},
            **self.extra,
        }
        replace_text(self.run_dir / STATUS_NAME, json.dumps(document, indent=1))
        line = {
            "sequence": self.sequence,
            "timestamp": timestamp(now),
            "elapsed_seconds": round(elapsed, 3),
            "state": self.state.value,
            **current,
        }
        with (self.run_dir / HISTORY_NAME).open("a") as history:
            history.write(json.dumps(line) + "\n")
        self._written_at, self._last = now, counters
        return True


def replace_text(path: Path, text: str) -> None:
    """Write ``text`` to a file beside ``path`` and rename it over ``path``."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_text(text)
        os.replace(beside, path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise


def last_sequence(run_dir: Path) -> int:
    """Number of the last status, so that a resumed run goes on counting; 0 if there is none."""
    try:
        return int(read_status(run_dir)["current"]["sequence"])
    except (MatForgeError, KeyError, TypeError, ValueError):
        return 0


def read_status(run_dir: Path) -> dict[str, Any]:
    """The status document of a run.

    Raises
    ------
    MatForgeError
        If there is none, or it cannot be read.
    """
    path = run_dir / STATUS_NAME
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise MatForgeError(f"{run_dir} has no {STATUS_NAME}; is it the directory of a run?") from error
    except (OSError, ValueError) as error:
        raise MatForgeError(f"{path} cannot be read: {error}.") from error
    if not isinstance(document, dict) or not all(
        isinstance(document.get(part), dict) for part in ("workflow", "current")
    ):
        raise MatForgeError(f"{path} cannot be read: it is not what MatForge has written.")
    return document
