"""What lies in a staging folder, and putting right what killed processes left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from matforge.model import UsageError
from matforge.vulcan import layout, ledger, shelf, waiting
from matforge.vulcan.budget import CommitBudget
from matforge.vulcan.lease import StagingLease
from matforge.vulcan.ledger import COMMITTED, OUTBOX_DIRNAME, Ledger, LedgerError
from matforge.vulcan.settings import DEFAULT_BUDGET, DEFAULT_WINDOW_S
from matforge.vulcan.shard import DamagedShardError, ShardGoneError, load, read_sidecar, write_sidecar

LEFTOVER_AGE_S = 900.0
"""A ``.tmp`` file younger than this may belong to a process that is writing it."""


@dataclass
class Status:
    """How a staging folder stands."""

    staging_dir: str
    shards: dict[str, int]
    """By state: ``pending``, ``synced``, ``failed``, ``in_review``."""
    pending: list[str]
    """Names of the first pending shards."""
    budget: int
    budget_left: int
    next_slot: float
    """Unix time of the next free slot of the budget."""
    publisher: str | None
    """Who publishes right now."""
    not_before: float | None
    """Unix time before which the Hub does not want to be asked."""
    open_batches: list[int]
    """Batches on their way or in review."""
    problems: list[str] = field(default_factory=list)
    """One sentence each; :func:`repair` puts right what it can."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def status(
    staging_dir: Path,
    budget: int = DEFAULT_BUDGET,
    window_s: float = DEFAULT_WINDOW_S,
    clock: Callable[[], float] = time.time,
    first: int = 10,
) -> Status:
    """Look at a staging folder; writes nothing.

    Raises
    ------
    UsageError
        If there is no such folder.
    """
    staging_dir = Path(staging_dir)
    if not staging_dir.is_dir():
        raise UsageError(f"There is no staging folder {staging_dir}; it is made by the first write.")
    slots = CommitBudget(staging_dir, budget, window_s, clock)
    found = {state: layout.contents(staging_dir, state) for state in layout.STATES}
    holder = StagingLease(staging_dir).holder(clock())
    state = waiting.read(staging_dir, clock())
    later = state.not_before if state else None
    report = Status(
        str(staging_dir), {name: len(content.shards) for name, content in found.items()},
        [path.name for path in found[layout.PENDING_DIRNAME].shards[:first]], budget, slots.remaining(),
        slots.next_free(), None if holder is None else f"process {holder.get('pid')} on {holder.get('host')}",
        later, [],
    )  # fmt: skip
    report.problems += [problem for problem in [slots.problem()] if problem]
    report.problems += list(_problems(staging_dir, found))
    try:
        view = Ledger(staging_dir).read()
    except LedgerError as error:
        report.problems.append(str(error))
        return report
    report.open_batches = [batch.number for batch in view.batches if batch.open]
    report.problems += list(_stray(staging_dir, found, view))
    return report


def _problems(staging_dir: Path, found: dict[str, layout.Contents]) -> Iterator[str]:
    for state, content in found.items():
        for path in content.orphan_sidecars:
            yield f"{state}/{path.name} is a sidecar without its shard."
        for path in content.leftovers:
            yield f"{state}/{path.name} was left by a process that was killed, or is just being written."
        for path in content.foreign:
            yield f"{state}/{path.name} is not ours; it is left alone."
        for path in content.shards if state != layout.FAILED_DIRNAME else ():
            if not layout.sidecar_of(path).is_file():
                yield f"{state}/{path.name} has no sidecar."
    for path in ledger.leftovers(staging_dir / ledger.LEDGER_DIRNAME):
        yield f"{path.name} was left in the ledger by a process that was killed."


def _stray(staging_dir: Path, found: dict[str, layout.Contents], view: ledger.View) -> Iterator[str]:
    for path in found[layout.PENDING_DIRNAME].shards:
        home = view.batch_of(_run_id(path))
        if home is not None and home.outcome == COMMITTED:
            yield f"pending/{path.name} was published with batch {home.number}."
    there = {path.name for content in found.values() for path in content.shards}
    for batch in view.batches:
        lost = [name for name in batch.shards.values() if name not in there] if batch.open else []
        if lost:
            yield f"batch {batch.number} is on its way, but {len(lost)} of its shards are gone."
    used = {batch.outbox for batch in view.batches if batch.open}
    folder = staging_dir / OUTBOX_DIRNAME
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if str(path.relative_to(staging_dir)) not in used:
            yield f"{OUTBOX_DIRNAME}/{path.name} belongs to no batch on its way."


def _run_id(path: Path) -> str:
    name = layout.ShardName.parse(path.name)
    return name.run_id if name else ""


def repair(
    staging_dir: Path,
    *,
    reset_budget: bool = False,
    retry_failed: bool = False,
    dry_run: bool = False,
    clock: Callable[[], float] = time.time,
) -> list[str]:
    """Put right what killed processes left.

    Leftovers and sidecars without a shard are removed, shards without a sidecar get one, shards that are
    not whole go to ``failed/``, published ones that were left in ``pending/`` go to ``synced/``.

    Parameters
    ----------
    staging_dir : Path
    reset_budget : bool
        Also forget which slots of the budget were taken.
    retry_failed : bool
        Also move what is in ``failed/`` back to ``pending/``.
    dry_run : bool
        Only say what would be done.
    clock : callable
        Unix time.

    Returns
    -------
    list of str
        One sentence for each thing done.

    Raises
    ------
    BusyError
        If the folder is being published.
    UsageError
        If there is no such folder.
    """
    staging_dir = Path(staging_dir)
    if not staging_dir.is_dir():
        raise UsageError(f"There is no staging folder {staging_dir}; it is made by the first write.")
    with StagingLease(staging_dir):
        done = []
        for sentence, act in _repairs(staging_dir, reset_budget, retry_failed, clock()):
            done.append(sentence)
            if not dry_run:
                act()
        return done


Repair = tuple[str, Callable[[], object]]


def _repairs(staging_dir: Path, reset_budget: bool, retry_failed: bool, now: float) -> Iterator[Repair]:
    if reset_budget:
        yield "The budget counts from now on.", CommitBudget(staging_dir).reset
    if retry_failed:
        for path in layout.contents(staging_dir, layout.FAILED_DIRNAME).shards:
            yield f"{path.name} is pending again.", _again(staging_dir, path)
    for state in layout.STATES:
        yield from _tidy(staging_dir, state, now)
    view = Ledger(staging_dir).read()
    for path in layout.contents(staging_dir, layout.PENDING_DIRNAME).shards:
        home = view.batch_of(_run_id(path))
        if home is not None and home.outcome == COMMITTED:
            act = partial(shelf.move, staging_dir, path.name, layout.PENDING_DIRNAME, layout.SYNCED_DIRNAME)
            yield f"{path.name} was published; it is in synced/ now.", act
    used = {batch.outbox for batch in view.batches if batch.open}
    yield (
        "The outbox holds only what is on its way.",
        lambda: shelf.clean(staging_dir / OUTBOX_DIRNAME, used, staging_dir),
    )


def _tidy(staging_dir: Path, state: str, now: float) -> Iterator[Repair]:
    content = layout.contents(staging_dir, state)
    old = [path for path in content.leftovers if _age(path, now) > LEFTOVER_AGE_S]
    if state == layout.STATES[0]:
        old += ledger.leftovers(staging_dir / ledger.LEDGER_DIRNAME)
    for path in [*content.orphan_sidecars, *old]:
        yield f"{path.name} is removed.", partial(path.unlink, missing_ok=True)
    for path in content.shards:
        if state == layout.FAILED_DIRNAME or _as_staged(path):
            continue
        try:
            record, _ = load(path)
        except ShardGoneError:
            continue
        except DamagedShardError as error:
            note = {"why": str(error), "at": now}
            act = partial(shelf.fail, staging_dir, path.name, state, note)
            yield f"{path.name} is in failed/: {error}", act
            continue
        yield f"{path.name} has its sidecar again.", partial(write_sidecar, path, record)


def _as_staged(path: Path) -> bool:
    """Whether a shard has its sidecar, and the size that stands there; a sync looks closer."""
    record = read_sidecar(path)
    try:
        return record is not None and record.n_bytes == path.stat().st_size
    except FileNotFoundError:
        return True


def _age(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _again(staging_dir: Path, path: Path) -> Callable[[], object]:
    def act() -> None:
        shelf.move(staging_dir, path.name, layout.FAILED_DIRNAME, layout.PENDING_DIRNAME)
        layout.error_of(path).unlink(missing_ok=True)

    return act
