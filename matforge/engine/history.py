"""What a run directory tells of a run and its chores, read beside the driver or after its end.

Nothing here writes, and nothing of the user's is loaded. What is told of a chore comes from the
journal, which both layouts have, a living run as well as one that was killed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from matforge.chore import Chore, nearest, salt_of
from matforge.engine.journal import select
from matforge.engine.lock import holder
from matforge.engine.records import attempt_record
from matforge.engine.status import SCHEMA_VERSION, STATUS_NAME, Counters, read_status
from matforge.engine.store import JOURNAL_NAME, LOCK_NAME, OUT_NAME, STREAM_NAMES
from matforge.model import (
    Attempt,
    ChoreState,
    Failure,
    FailureKind,
    Location,
    MatForgeError,
    RunState,
    Usage,
    UsageError,
)

_UNDER_WAY = (RunState.INITIALIZING.value, RunState.RUNNING.value)
_CHORE_ID = re.compile(rb'\{"id":"([^"]+)","key":')
"""How a chore begins in the journal, whether it was added or spawned."""


# ---------------------------------------------------------------- runs


def standing(run_dir: Path) -> dict[str, Any]:
    """The run's ``status.json``, corrected where its driver could not write the end.

    ``workflow`` gets ``driver`` (host and pid, while one lives), and a ``note`` if it was killed;
    ``elapsed_seconds`` of a living run goes on until now.

    Raises
    ------
    MatForgeError
        If the file is there and cannot be read.
    """
    document = _read(run_dir)
    driver = holder(run_dir / LOCK_NAME)
    if document["workflow"]["state"] in _UNDER_WAY and driver is None:
        document = _read(run_dir)  # it may have ended between the two looks
    workflow = document["workflow"]
    workflow["driver"] = driver and {name: driver.get(name) for name in ("host", "pid")}
    if driver is not None and workflow["started_at"]:
        # the file is written when something changes, and a long chore changes nothing
        since_start = time.time() - datetime.fromisoformat(workflow["started_at"]).timestamp()
        workflow["elapsed_seconds"] = max(workflow["elapsed_seconds"], round(since_start, 3))
    if workflow["state"] in _UNDER_WAY and driver is None:
        workflow["state"] = RunState.INTERRUPTED.value
        workflow["note"] = (
            f"its driver is gone; `matforge resume {run_dir}` goes on"
            if _begun(run_dir)
            else "its driver was gone before it had begun; start it again instead"
        )
    return document


def _begun(run_dir: Path) -> bool:
    """Whether all that its script had to say is in the journal, so that it can be resumed."""
    try:
        return any(select(run_dir / JOURNAL_NAME, lambda line: b'"e":"submitted"' in line))
    except MatForgeError:  # whoever resumes it is told where it is damaged
        return True


def _read(run_dir: Path) -> dict[str, Any]:
    if (run_dir / STATUS_NAME).exists() or not (run_dir / JOURNAL_NAME).exists():
        return read_status(run_dir)
    return {  # a driver that has just begun, or was killed before it wrote the first
        "schema_version": SCHEMA_VERSION,
        "workflow": {
            "id": run_dir.name,
            "name": "",
            "campaign": "",
            "state": RunState.INITIALIZING.value,
            "started_at": None,
            "updated_at": None,
            "finished_at": None,
            "elapsed_seconds": 0.0,
        },
        "allocation": {},
        "current": {"sequence": 0, **Counters().as_dict()},
        "failures": [],
    }


def find_runs(root: Path, depth: int) -> Iterator[Path]:
    """Run directories at most ``depth`` folders below ``root``, which may itself be one."""
    if (root / JOURNAL_NAME).is_file():
        yield root
        return
    if depth < 1:
        return
    try:
        with os.scandir(root) as entries:
            folders = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    except OSError:  # not ours to read
        return
    for name in folders:
        if not name.startswith("."):
            yield from find_runs(root / name, depth - 1)


# ---------------------------------------------------------------- chores


@dataclass
class Story:
    """All that the journal tells of one chore."""

    id: str
    chore: Chore | None = None
    state: ChoreState | None = None
    """How it ended; None while it has not."""
    cancelling: bool = False
    """Whether it was asked to stop."""
    failure: Failure | None = None
    result: Location | None = None
    report: dict[str, Any] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """Epoch, number, outcome and, where known, host, slot, times and memory of each."""

    def _take(self, record: dict[str, Any], epoch: int) -> None:
        """Add what a record says, written in that epoch."""
        if record["e"] == "end":
            self._end(record, epoch)
        elif record["e"] in ("lost", "retry"):
            attempt = Attempt(self.id, record["ep"], record["n"])
            usage = Usage(**record.get("u", {}))
            self.attempts.append(attempt_record(attempt, usage, record["f"]["kind"]))
        elif record["e"] == "redo":
            self.state = self.result = None

    def _end(self, record: dict[str, Any], epoch: int) -> None:
        self.state = ChoreState(record["s"])
        self.failure = Failure.from_dict(record["f"]) if "f" in record else None
        self.result = Location.from_list(record["r"]) if "r" in record else None
        self.report = record.get("p", {})
        if "n" in record:
            outcome = self.failure.kind.value if self.failure else self.state.value
            outcome = "cached" if "k" in record else outcome
            usage = Usage(*record["u"]) if "u" in record else Usage()
            self.attempts.append(attempt_record(Attempt(self.id, epoch, record["n"]), usage, outcome))


def read_stories(run_dir: Path, chore_ids: Iterable[str]) -> dict[str, Story]:
    """What the journal tells of these chores; those it does not know are left out.

    Raises
    ------
    JournalError
        If the journal cannot be read.
    """
    stories = {name: Story(name) for name in chore_ids}
    # most lines are about others: they are passed over undecoded
    needle = re.compile(b"|".join([rb'"e":"resume"', *(re.escape(f'"{name}"'.encode()) for name in stories)]))
    epoch = 1
    for record in select(run_dir / JOURNAL_NAME, needle.search):
        if record["e"] == "resume":
            epoch = record["epoch"]
        for made in _made(record):
            if made["id"] in stories:
                stories[made["id"]].chore = Chore.from_dict(made)
        for decision in record.get("d", ()):
            if decision[0] == "cancel" and decision[1] in stories:
                stories[decision[1]].cancelling = True
        if (story := stories.get(record.get("id", ""))) is not None:
            story._take(record, epoch)
    return {name: story for name, story in stories.items() if story.chore is not None}


def _made(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The chores that a record adds to the run."""
    if record["e"] == "add":
        yield record["c"]
    # a plan is an answer too large for one go: what it spawns becomes part of the run bit by bit
    for decision in (*record.get("d", ()), *record.get("plan", ())):
        if decision[0] == "spawn":
            yield decision[1]


def seed_of(run_dir: Path, chore: Chore) -> int:
    """The seed that the chore gets in this run.

    Raises
    ------
    JournalError
        If the journal cannot be read.
    """
    first = next(select(run_dir / JOURNAL_NAME, lambda line: True), {})
    return chore.seed ^ salt_of(first.get("settings", {}).get("seed", 0))


def story_of(run_dir: Path, chore_id: str) -> Story:
    """What the journal tells of one chore.

    Raises
    ------
    UsageError
        If the run has no such chore; the sentence gives the nearest ids.
    JournalError
        If the journal cannot be read.
    """
    found = read_stories(run_dir, [chore_id])
    if chore_id not in found:
        raise UsageError(f"The run has no chore {chore_id!r}{nearest(chore_id, chore_ids(run_dir))}.")
    return found[chore_id]


def chore_ids(run_dir: Path) -> list[str]:
    """Ids of all chores, in the order of the run; empty if the journal cannot be read."""
    try:
        with (run_dir / JOURNAL_NAME).open("rb") as file:
            return [found.decode() for line in file for found in _CHORE_ID.findall(line)]
    except OSError:
        return []


def failed_chores(run_dir: Path) -> list[Story]:
    """The chores that failed, in the order in which they did; without their :attr:`Story.chore`.

    Raises
    ------
    JournalError
        If the journal cannot be read.
    """
    needle = re.compile(rb'"e":"resume"|"s":"failed"')
    found, epoch = [], 1
    for record in select(run_dir / JOURNAL_NAME, needle.search):
        if record["e"] == "resume":
            epoch = record["epoch"]
        elif record["e"] == "end" and record["s"] == ChoreState.FAILED.value:
            story = Story(record["id"])
            story._end(record, epoch)
            found.append(story)
    return found


def is_consequence(failure: Failure) -> bool:
    """Whether a chore failed only because another one did."""
    return failure.kind is FailureKind.DEPENDENCY_FAILED and failure.root is not None


# ---------------------------------------------------------------- files


def files_of(run_dir: Path, chore_id: str) -> list[Path]:
    """The files of a chore's own folder, if it has one."""
    folder = run_dir / OUT_NAME / chore_id
    return sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []


def streams_of(run_dir: Path, chore_id: str) -> dict[str, Path]:
    """``stdout`` and ``stderr`` of the accepted attempt, else of the latest one that has begun."""
    files = files_of(run_dir, chore_id)
    found = {}
    for name in STREAM_NAMES:
        of_attempts = [p for p in files if p.name.startswith(f"{name}.e")]
        final = run_dir / OUT_NAME / chore_id / name
        if final in files:
            found[name] = final
        elif of_attempts:
            found[name] = max(of_attempts, key=lambda path: path.stat().st_mtime)
    return found
