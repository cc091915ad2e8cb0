"""``matforge watch``: a run while it runs, from its directory alone."""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matforge.cli.console import Exit, leave
from matforge.cli.options import Run
from matforge.cli.runs import cores_text, duration, failure_line

if TYPE_CHECKING:
    from rich.console import RenderableType

RATE_WINDOW_S = 60.0
"""The rate is that of the last minute."""
FAILURES = 5
ENDED = ("completed", "failed", "cancelled")
_TAIL = 1 << 16
_CODES = {"completed": Exit.DONE, "failed": Exit.FAILED, "interrupted": Exit.UNFINISHED}


def watch(
    run: Run,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Watch a run until it ends: progress by kind of chore, rate, busy cores, failures.

    On a terminal the picture is redrawn; in a pipe there is a line whenever something has
    changed. Only reads the run directory. Ends with the exit code of the run (0, 1, or 75 if it was
    interrupted); Ctrl-C ends the watching, not the run.

    Example: `matforge watch matforge_workflow-20260101_120000 --interval 5`
    """
    from matforge.engine.store import find_run

    path = find_run(run)
    try:
        state = _live(path, interval) if sys.stdout.isatty() else _lines(path, interval)
    except KeyboardInterrupt:
        leave(Exit.INTERRUPTED, f"no longer watching; the run in {path} goes on.")
    raise SystemExit(int(_CODES[state]))


# ---------------------------------------------------------------- what is seen


@dataclass(frozen=True)
class Look:
    """How the run stood at one moment."""

    document: dict[str, Any]
    rate: float | None
    """Chores that ended in a second, lately; None while that is unknown."""

    @property
    def state(self) -> str:
        """The run's state."""
        return str(self.document["workflow"]["state"])

    @property
    def ended(self) -> bool:
        """Whether nothing more will come; a driver that resumes has yet to say that it runs."""
        return self.state in _CODES and self.document["workflow"]["driver"] is None

    @property
    def over(self) -> int:
        """Chores that have ended."""
        current = self.document["current"]
        return sum(current.get(name, 0) for name in ENDED)

    @property
    def total(self) -> int:
        """Chores that there are; an adaptive run may get more."""
        current = self.document["current"]
        return self.over + int(current["pending"]) + int(current["running"])

    @property
    def left(self) -> float | None:
        """Seconds that the chores there are will take at this rate."""
        if not self.rate:
            return None
        return (self.total - self.over) / self.rate


def look(run_dir: Path) -> Look:
    """Read the run directory."""
    from matforge.engine.history import standing

    document = standing(run_dir)
    return Look(document, rate_of(_history(run_dir), document["workflow"]["elapsed_seconds"]))


def _history(run_dir: Path) -> list[dict[str, Any]]:
    """The last lines of the history; the first may be cut and the last unfinished, those are left out."""
    from matforge.engine.status import HISTORY_NAME

    try:
        with (run_dir / HISTORY_NAME).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def rate_of(history: list[dict[str, Any]], elapsed: float) -> float | None:
    """Chores that ended in a second, over the last minute; None if that is unknown.

    Parameters
    ----------
    history : list
        Lines of ``status_history.jsonl``; nothing changed between two of them.
    elapsed : float
        Seconds since the run began.
    """
    if not history:
        return None
    since = elapsed - RATE_WINDOW_S
    before = [line for line in history if line["elapsed_seconds"] <= since]
    first, last = before[-1] if before else history[0], history[-1]
    seconds = elapsed - max(since, first["elapsed_seconds"])
    ended = sum(last.get(n, 0) - first.get(n, 0) for n in ENDED)
    return ended / seconds if seconds > 0 and ended >= 0 else None


def _pace(seen: Look) -> list[str]:
    if seen.ended:
        return []
    parts = [] if seen.rate is None else [f"{seen.rate:.3g} chores/s"]
    if seen.left is not None:
        parts.append(f"{duration(seen.left)} left for the chores there are")
    return parts


# ---------------------------------------------------------------- a pipe


@dataclass
class Teller:
    """Says in lines what has changed since it last spoke."""

    told: set[str] = field(default_factory=set)
    last: tuple[Any, ...] = ()

    def lines(self, seen: Look) -> list[str]:
        """What is new."""
        document = seen.document
        current = document["current"]
        now = (seen.state, current["sequence"])
        new = [] if now == self.last else [summary(seen)]
        self.last = now
        for failure in document["failures"]:
            if failure["chore_id"] not in self.told:
                self.told.add(failure["chore_id"])
                new.append(failure_line(failure))
        for error in document.get("strategy_errors", []):
            if f"strategy {error}" not in self.told:
                self.told.add(f"strategy {error}")
                new.append(f"the strategy failed: {error}")
        return new


def summary(seen: Look) -> str:
    """The run on one line."""
    workflow, current = seen.document["workflow"], seen.document["current"]
    time = (workflow["updated_at"] or "")[11:19]
    parts = [f"{seen.state}: {current['completed']:,} of {seen.total:,} completed"]
    parts += [f"{current[n]:,} {n}" for n in ("failed", "cancelled") if current.get(n)]
    parts += [f"cores {cores_text(seen.document)}", *_pace(seen)]
    if "note" in workflow:
        parts.append(workflow["note"])
    return f"{time} {', '.join(parts)}".lstrip()


def _lines(run_dir: Path, interval: float) -> str:
    teller = Teller()
    while True:
        seen = look(run_dir)
        for line in teller.lines(seen):
            print(line, flush=True)
        if seen.ended:
            return seen.state
        _pause(interval)


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)


# ---------------------------------------------------------------- a terminal


def _live(run_dir: Path, interval: float) -> str:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            seen = look(run_dir)
            live.update(picture(run_dir, seen), refresh=True)
            if seen.ended:
                return seen.state
            _pause(interval)


def picture(run_dir: Path, seen: Look) -> RenderableType:
    """All that fits on a screen."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    workflow = seen.document["workflow"]
    colour = {"completed": "green", "failed": "red", "interrupted": "yellow"}.get(seen.state, "cyan")
    head = Text.assemble((workflow["id"], "bold"), "  ", (seen.state, colour))
    if "note" in workflow:
        head.append(f"  {workflow['note']}")
    bars = Table.grid(padding=(0, 2))
    rows = {"all": {**seen.document["current"], "added": seen.total}, **seen.document.get("kinds", {})}
    for name, counts in rows.items():
        bars.add_row(
            Text(name),
            ProgressBar(total=max(1, counts["added"]), completed=counts["completed"], width=30),
            f"{counts['completed']:,} of {counts['added']:,}",
            Text(f"{counts['failed']:,} failed", style="red") if counts["failed"] else "",
            f"{counts['cancelled']:,} cancelled" if counts["cancelled"] else "",
        )
    pace = [duration(workflow["elapsed_seconds"]), f"cores {cores_text(seen.document)}", *_pace(seen)]
    return Group(head, bars, Text(", ".join(pace)), *_troubles(run_dir, seen))


def _troubles(run_dir: Path, seen: Look) -> list[Any]:
    """The latest failures and what the strategy did wrong."""
    from rich.text import Text

    document = seen.document
    lines = [failure_line(f) for f in document["failures"][-FAILURES:]]
    if (rest := document["current"]["failed"] - len(lines)) > 0:
        lines.append(f"{rest:,} more: matforge status {run_dir} --failed")
    lines += [f"the strategy failed: {error}" for error in document.get("strategy_errors", [])[-FAILURES:]]
    return [Text(line, style="red", overflow="ellipsis", no_wrap=True) for line in lines]
