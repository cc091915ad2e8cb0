"""Results that did not survive: found when a run is taken up again, or when a chore wants one.

The driver trusts the message that a result was written, and never looks at the file. So a power
failure, or somebody's ``rm``, may have taken a result of which the journal says that it is there.
Such a chore is simply run again: nothing that is missing or torn is ever used (length and checksum
stand in the journal), and the strategy hears of no chore twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from matforge.engine.locations import damaged_among, is_whole
from matforge.engine.run import Run
from matforge.engine.store import OUT_NAME
from matforge.model import ChoreState, Failure, FailureKind, Location

RECENT_S = 60.0
"""A file that was written this long before the last sign of life of a driver is on the disk by now,
whether or not somebody has synced it: Linux writes back after 35 seconds at most."""
TRIES = 3
"""A chore that so often could not read what the driver can read ends the run, resumable: something is
wrong with the place where it ran."""
OF_AN_ATTEMPT = re.compile(r"\.e\d+a\d+(\.new)?$|^\..*\.new$")
"""Names of files that belong to one attempt, or to a replacement that was never finished."""


def look_over(run: Run, records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Let chores run again whose result may not have reached the disk, and did not; their ids.

    Only the latest results of the last driver are looked at, and those that the strategy is still
    to be asked about: a run of a million chores is not read from end to end. An older result that is
    missing is noticed by the chore that wants it (:func:`mend`).

    Parameters
    ----------
    run : Run
        Just replayed.
    records : iterable of mapping
        Its journal.
    """
    suspects = dict.fromkeys(one.chore.id for one in run.outbox)
    suspects.update(dict.fromkeys(_recent(records)))
    places = {name: where for name in suspects if (where := run.records[name].result) is not None}
    lost = [name for name in damaged_among(run.store.path, places) if not _restored(run, places[name])]
    return [name for name in lost if run.remake(name, unanswered=True)]


def _recent(records: Iterable[Mapping[str, Any]]) -> list[str]:
    ends = {
        r["id"]: r["u"][2] + r["u"][3]
        for r in records
        if r["e"] == "end" and r["s"] == ChoreState.COMPLETED.value and "u" in r
    }
    latest = max(ends.values(), default=0.0)
    return [name for name, at in ends.items() if at >= latest - RECENT_S]


def mend(run: Run, chore_id: str, failure: Failure) -> bool:
    """An attempt could not read one of its inputs: see to it that the next one can.

    Returns
    -------
    bool
        Whether the run can go on; else the failure is one of the storage.
    """
    if failure.input is None:
        return False
    record = run.records[chore_id]
    source = record.chore.inputs[failure.input]
    where = run.records[source].result
    if where is None or run.graph.nodes[source].state is not ChoreState.COMPLETED:
        return True  # it is being made again already, or cannot be, and then the chore ends with it
    if is_whole(run.store.path, where):
        # written anew meanwhile, or seen late by another host; but not for ever
        before = [a for a in record.attempts if a["outcome"] == FailureKind.STORAGE.value]
        return len(before) + 1 < TRIES
    return _restored(run, where) or run.remake(source)


def _restored(run: Run, where: Location) -> bool:
    """Whether the file could be found under the name that its attempt gave it, as after a power failure
    that has undone the renaming."""
    path = run.store.path / where.path
    for found in path.parent.glob(f"{path.name}.e*"):
        if is_whole(run.store.path, replace(where, path=str(found.relative_to(run.store.path)))):
            with suppress(OSError):
                os.replace(found, path)
                return True
    return False


# ---------------------------------------------------------------- what nobody will ever want


def sweep(run: Run, chore_ids: Iterable[str]) -> int:
    """Remove what attempts that nobody accepted have left in the folders of these chores; how many files.

    Nothing of these chores may be running. A file that cannot be removed stays.
    """
    out = run.store.path / OUT_NAME
    with suppress(OSError):
        there = set(os.listdir(out))
        return sum(_swept(path) for name in chore_ids if name in there for path in _left_in(out / name))
    return 0


def sweep_run(run: Run) -> int:
    """The same for all chores that have not ended, and for replacements that were never finished."""
    count = sum(_swept(path) for path in _left_in(run.store.path))
    count += sum(_swept(path) for path in _left_in(run.store.path / OUT_NAME / "registry"))
    nodes = run.graph.nodes.values()
    return count + sweep(run, [n.id for n in nodes if n.state is not None and not n.state.final])


def _left_in(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        for name in os.listdir(folder):
            if OF_AN_ATTEMPT.search(name):
                yield folder / name


def _swept(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
