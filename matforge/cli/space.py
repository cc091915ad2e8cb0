"""The commands about disk space: ``du`` and ``clean``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matforge.cli.console import Exit, complain, leave, out
from matforge.cli.options import JsonOption

if TYPE_CHECKING:
    from matforge.engine.tidy import Proposal

SHOWN = 10
"""Files that are named before it is asked whether to remove them."""


# ---------------------------------------------------------------- du


def du(
    root: Annotated[
        Path, typer.Argument(metavar="[RUN|ROOT]", help="A run, or a folder of runs.", show_default="here")
    ] = Path("."),
    depth: Annotated[int, typer.Option(min=0, help="How many folders deep to look.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Say what takes how much of the disk: results, streams, arguments, journal, by kind of chore; the cache.

    Bytes in files, told by their sizes. `leftovers` are of attempts that did not count, or that run
    now; `other` is what chores wrote themselves.

    Examples:

    `matforge du runs`

    `matforge du matforge_workflow-20260101_120000 --json`
    """
    from matforge.engine.footprint import measure, measure_cache
    from matforge.engine.history import find_runs
    from matforge.model import UsageError

    if not root.is_dir():
        raise UsageError(f"{root} is not a folder.")
    runs = sorted(find_runs(root, depth))
    found = [measure(path) for path in runs]
    bases = sorted({root, *(path.parent for path in runs)} - set(runs))
    if root in runs:
        bases = []
    caches = {base: sizes for base in bases if any(sizes := measure_cache(base))}
    if as_json:
        print(json.dumps({
            "runs": [one.as_dict() for one in found],
            "caches": [
                {"folder": str(base), "bytes": own, "shared_with_runs": shared}
                for base, (own, shared) in caches.items()
            ],
        }, indent=1))  # fmt: skip
        return
    if not found and not caches:
        print(f"There is no run in {root} or {depth} folders below it.")
        return
    _show(found, caches)


def _show(found: list[Any], caches: dict[Path, tuple[int, int]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "bytes", "files"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for one in found:
        table.add_row(Text(str(one.run_dir)), size_text(one.total), f"{one.files:,}")
        for part, size in one.parts.items():
            if size:
                table.add_row(f"  {part}", size_text(size))
        for kind, size in sorted(one.kinds.items(), key=lambda item: -item[1])[:SHOWN]:
            table.add_row(Text(f"  chores {kind}"), size_text(size))
    for base, (own, shared) in caches.items():
        table.add_row(Text(f"cache of {base}"), size_text(own))
        if shared:
            table.add_row("  shared with runs, counted there", size_text(shared))
    if len(found) > 1:
        total = sum(one.total for one in found) + sum(own for own, _ in caches.values())
        table.add_row("all", size_text(total), f"{sum(one.files for one in found):,}")
    out(table)


def size_text(size: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


# ---------------------------------------------------------------- clean


def clean(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run; with --cache alone, a folder of runs.", show_default=False
        ),
    ],
    results_of: Annotated[
        list[str] | None,
        typer.Option(
            "--results-of",
            metavar="NAME",
            help="Give up the results of chores of this name that every chore which needs them has used.",
        ),
    ] = None,
    streams: Annotated[
        bool, typer.Option("--streams", help="Also what functions that completed have printed.")
    ] = False,
    cache: Annotated[
        bool, typer.Option("--cache", help="Empty the cache of the folder that the runs lie in.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what a run does not need any more; says what, and asks.

    By itself: files of attempts that did not count. A run that somebody drives is left alone. What was
    removed is written down in the run, so that whoever asks for it is told.

    Examples:

    `matforge clean matforge_workflow-20260101_120000 --dry-run`

    `matforge clean runs --results-of simulate --streams`

    `matforge clean runs --cache --yes`
    """
    if cache:
        _clean_cache(run, dry_run=dry_run, yes=yes)
        if not (results_of or streams):
            return
    _clean_run(run, results_of or [], streams=streams, dry_run=dry_run, yes=yes)


def _clean_cache(place: Path, *, dry_run: bool, yes: bool) -> None:
    import shutil

    from matforge.engine.cache import FOLDER
    from matforge.engine.footprint import measure_cache
    from matforge.engine.store import JOURNAL_NAME
    from matforge.model import UsageError

    if not place.is_dir():
        raise UsageError(f"{place} is not a folder.")
    base = place.resolve().parent if (place / JOURNAL_NAME).is_file() else place
    own, shared = measure_cache(base)
    if not own and not shared:
        print(f"{base} has no cache.")
        return
    print(f"{base / FOLDER}: {size_text(own)} (and {size_text(shared)} that runs keep)")
    if _agreed(dry_run=dry_run, yes=yes):
        shutil.rmtree(base / FOLDER)
        print(f"freed {size_text(own)}")


def _clean_run(place: Path, results_of: list[str], *, streams: bool, dry_run: bool, yes: bool) -> None:
    from matforge.engine import tidy
    from matforge.engine.lock import RunLock
    from matforge.engine.store import LOCK_NAME, StorageError, find_run, storage_sentence

    path = find_run(place)
    lock = RunLock(path / LOCK_NAME)
    try:
        # held while we look, ask and remove, so that nobody begins to drive it meanwhile
        lock.acquire(time.time())
        proposal = tidy.propose(path, results_of=results_of, streams=streams)
        for sentence in proposal.kept:
            complain(sentence)
        if not proposal.paths:
            print("There is nothing to remove.")
            return
        _show_proposal(proposal)
        if _agreed(dry_run=dry_run, yes=yes):
            print(f"freed {size_text(tidy.remove(path, proposal, time.time()))}")
    except OSError as error:
        raise StorageError(storage_sentence(Path(error.filename or path), error)) from error
    finally:
        lock.release()


def _show_proposal(proposal: Proposal) -> None:
    for name in proposal.paths[:SHOWN]:
        print(name)
    if (rest := len(proposal.paths) - SHOWN) > 0:
        print(f"and {rest:,} more")
    print(f"{len(proposal.paths):,} files, {size_text(proposal.size)}")


def _agreed(*, dry_run: bool, yes: bool) -> bool:
    """Whether to go on: never without a word from the user."""
    if dry_run:
        return False
    if yes:
        return True
    if not sys.stdin.isatty():
        leave(Exit.USAGE, "There is nobody to ask; give --yes to remove this, or --dry-run to see it only.")
    return typer.confirm("Remove?")
