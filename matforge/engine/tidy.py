"""What of a run can be removed, and removing it; nothing that anybody may still need.

What is removed is first written into ``cleaned.jsonl``, so that whoever misses it is told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matforge.chore import nearest
from matforge.engine.footprint import part_of
from matforge.engine.journal import select
from matforge.engine.locations import CLEANED_NAME
from matforge.engine.store import JOURNAL_NAME, OUT_NAME, RESULT_NAME, STREAM_NAMES
from matforge.model import ChoreState, RunState, UsageError

_COMPLETED = ChoreState.COMPLETED.value


@dataclass(slots=True)
class _Known:
    """What matters here of one chore."""

    name: str
    function: str | None
    state: str = ""
    result: str = ""
    dependents: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Proposal:
    """What may be removed, and what was asked for and has to stay."""

    paths: tuple[str, ...]
    """Relative to the run directory."""
    size: int
    kept: tuple[str, ...] = ()
    """Sentences."""


def propose(run_dir: Path, *, results_of: Sequence[str] = (), streams: bool = False) -> Proposal:
    """What can be removed of a run that nobody drives.

    Parameters
    ----------
    run_dir : Path
    results_of : sequence of str
        Names of chores whose results are given up, where every chore that needs one has completed.
    streams : bool
        Also what completed functions printed.

    Raises
    ------
    UsageError
        If there are no chores of a name, or results are to go before the run has ended.
    JournalError
        If the journal cannot be read.
    """
    paths = list(_leftovers(run_dir))
    kept: list[str] = []
    if results_of or streams:
        known, ended = _chores(run_dir)
        if streams:
            paths += _streams(run_dir, known)
        if results_of:
            if not ended:
                raise UsageError(
                    f"The run in {run_dir} has not come to its end, so its results may still be needed; "
                    f"go on with it first (`matforge resume {run_dir}`)."
                )
            found, kept = _results(run_dir, known, results_of)
            paths += found
    return Proposal(tuple(paths), sum(_size(run_dir / path) for path in paths), tuple(kept))


def remove(run_dir: Path, proposal: Proposal, now: float) -> int:
    """Remove what was proposed, once that is written down; how many bytes that were.

    Raises
    ------
    OSError
        If something cannot be removed.
    """
    if not proposal.paths:
        return 0
    with (run_dir / CLEANED_NAME).open("a") as file:
        file.write(json.dumps({"version": 1, "at": now, "paths": proposal.paths}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    freed = 0
    for path in proposal.paths:
        freed += _size(run_dir / path)
        (run_dir / path).unlink(missing_ok=True)
    return freed


def _leftovers(run_dir: Path) -> Iterator[str]:
    """Files of attempts that nobody will ask for: with nobody driving the run, no attempt is under way."""
    out = run_dir / OUT_NAME
    for folder in sorted(out.iterdir()) if out.is_dir() else ():
        if folder.name.startswith("chore-") and folder.is_dir():
            for path in sorted(folder.iterdir()):
                # after a power failure, the name of an attempt may be all that an accepted result has
                only = path.name.startswith(RESULT_NAME) and not (folder / RESULT_NAME).exists()
                if part_of(path.name) == "leftovers" and path.is_file() and not only:
                    yield f"{OUT_NAME}/{folder.name}/{path.name}"


def _chores(run_dir: Path) -> tuple[dict[str, _Known], bool]:
    """The chores of a run, and whether it has come to its end."""
    known: dict[str, _Known] = {}
    ended = False
    for record in select(run_dir / JOURNAL_NAME, lambda line: True):
        ended = record["e"] == "state" and record["s"] in (RunState.COMPLETED.value, RunState.FAILED.value)
        for made in _made(record):
            known[made["id"]] = _Known(made["name"], made.get("function"))
            for name in made.get("inputs", ()):
                known[name].dependents.append(made["id"])
        if record["e"] == "end":
            chore = known[record["id"]]
            chore.state, chore.result = record["s"], record.get("r", [""])[0]
    return known, ended


def _made(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if record["e"] == "add":
        yield record["c"]
    for decision in (*record.get("d", ()), *record.get("plan", ())):
        if decision[0] == "spawn":
            yield decision[1]


def _streams(run_dir: Path, known: dict[str, _Known]) -> list[str]:
    """What completed functions printed; the streams of a command are its result."""
    names = (
        f"{OUT_NAME}/{chore_id}/{stream}"
        for chore_id, chore in known.items()
        if chore.state == _COMPLETED and chore.function is not None
        for stream in STREAM_NAMES
    )
    return [name for name in names if (run_dir / name).is_file()]


def _results(
    run_dir: Path, known: dict[str, _Known], results_of: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Results that have served, and sentences about those that have to stay."""
    names = {chore.name for chore in known.values()}
    for wanted in results_of:
        if wanted not in names:
            raise UsageError(f"The run has no chores named {wanted!r}{nearest(wanted, names)}.")
    found: list[str] = []
    needed = packed = 0
    for chore in known.values():
        if chore.name not in results_of or chore.state != _COMPLETED:
            continue
        if not chore.dependents or any(known[name].state != _COMPLETED for name in chore.dependents):
            needed += 1
        elif not chore.result.endswith(f"/{RESULT_NAME}"):
            packed += 1
        elif (run_dir / chore.result).is_file():
            found.append(chore.result)
    kept = [f"{needed} stay, because no chore has used them, or not all that need them have completed."]
    if packed:
        kept.append(f"{packed} stay, because they are packed with others in one file.")
    return found, kept if needed else kept[1:]


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
