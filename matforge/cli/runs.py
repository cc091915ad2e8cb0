"""The commands that look at runs and speak to their drivers: ``status``, ``cancel``, ``ls``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from matforge.cli import completion
from matforge.cli.console import Exit, complain, leave, out
from matforge.cli.options import JsonOption, Run

SHOWN = 10
"""Failures, or ids, that are shown where a longer list can be asked for."""
COUNTS = ("pending", "running", "completed", "failed", "cancelled")


# ---------------------------------------------------------------- status


def status(
    run: Run,
    failed: Annotated[bool, typer.Option("--failed", help="Tell of every chore that failed.")] = False,
    chore: Annotated[
        str | None,
        typer.Option("--chore", help="Tell everything about this chore.", autocompletion=completion.chores),
    ] = None,
    result: Annotated[
        bool, typer.Option("--result", help="With --chore: also show its result in short.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say how a run stands: one that lives, has ended, or was killed.

    Only reads the run directory, so it works from every host that sees it.

    Examples:

    `matforge status matforge_workflow-20260101_120000`

    `matforge status runs --failed`

    `matforge status runs --chore chore-fit-0017 --result`
    """
    from matforge.cli import chores
    from matforge.engine.history import failed_chores, standing, story_of
    from matforge.engine.store import find_run

    if failed and chore is not None:
        leave(Exit.USAGE, "Give either --failed or --chore, not both.")
    if result and chore is None:
        leave(Exit.USAGE, "--result needs --chore ID, the chore whose result is to be shown.")
    path = find_run(run)
    if chore is not None:
        told = chores.describe(path, story_of(path, chore), with_result=result)
        print(json.dumps(told, indent=1) if as_json else chores.text(told))
    elif failed:
        stories = failed_chores(path)
        print(json.dumps(chores.failures(stories), indent=1) if as_json else chores.failures_text(stories))
    else:
        document = standing(path)
        if as_json:
            print(json.dumps(document, indent=1))
        else:
            _show_status(path, document)


def _show_status(path: Path, document: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value in _status_rows(path, document):
        table.add_row(name, Text(value))  # not markup: paths and names may hold brackets
    out(table)
    shown = document["failures"][:SHOWN]
    for failure in shown:
        complain(failure_line(failure))
    if (rest := document["current"]["failed"] - len(shown)) > 0:
        complain(f"{rest:,} more failed; `matforge status {path} --failed` tells of all.")
    for error in document.get("strategy_errors", []):
        complain(f"the strategy failed: {error}")


def _status_rows(path: Path, document: dict[str, Any]) -> list[tuple[str, str]]:
    workflow, current = document["workflow"], document["current"]
    state = workflow["state"]
    if "note" in workflow:
        state += f" ({workflow['note']})"
    elif driver := workflow["driver"]:
        state += f" (process {driver['pid']} on {driver['host']})"
    rows = [("run", str(path)), ("state", state)]
    rows += [(key, workflow[key]) for key in ("name", "campaign") if workflow.get(key)]
    rows += [
        ("started", str(workflow["started_at"] or "not yet")),
        ("elapsed", duration(workflow["elapsed_seconds"])),
        ("chores", ", ".join(f"{current[n]:,} {n}" for n in COUNTS if n in current)),
        ("cores", cores_text(document)),
    ]
    kinds = document.get("kinds", {})
    return rows + [("" if i else "kinds", kind_line(name, kinds[name])) for i, name in enumerate(kinds)]


def kind_line(name: str, counts: dict[str, int]) -> str:
    """How the chores of one name stand."""
    parts = [f"{counts['completed']:,} of {counts['added']:,} completed"]
    parts += [f"{counts[n]:,} {n}" for n in ("failed", "cancelled") if counts[n]]
    return f"{name}: {', '.join(parts)}"


def cores_text(document: dict[str, Any]) -> str:
    """How many cores there are, and, while a driver lives, how many of them are at work."""
    total = document["allocation"].get("total_cores", 0)
    if document["workflow"]["driver"] is None:
        return str(total)
    return f"{max(0, total - document['current']['free_cores'])} of {total} busy"


def failure_line(failure: dict[str, Any]) -> str:
    """One entry of ``failures`` in ``status.json`` as a sentence."""
    message = failure["message"].removeprefix(f"{failure['chore_id']}: ")
    return f"{failure['chore_id']} failed ({failure['reason']}): {message}"


# ---------------------------------------------------------------- cancel


def cancel(
    run: Run,
    chores: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHORE",
            help="Ids of chores, or patterns such as 'chore-fit*'; none: the whole run.",
            show_default=False,
            autocompletion=completion.chores,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the driver.")] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Cancel chores of a living run and all that depends on them, or end the run.

    The driver is asked through the run directory, so this works from every host that sees it. A
    run that is ended can be resumed; a chore that was cancelled stays so.

    Examples:

    `matforge cancel runs 'chore-fit*' chore-plot-0042`

    `matforge cancel matforge_workflow-20260101_120000`
    """
    from dataclasses import asdict

    from matforge.engine.requests import ask
    from matforge.engine.store import find_run

    path = find_run(run)
    answer = ask(path, chores or (), timeout=timeout)
    if not chores:
        _tell_end(path, timeout, as_json=as_json)
        return
    if as_json:
        print(json.dumps(asdict(answer), indent=1))
    else:
        for ids, what in (
            (answer.cancelled, "cancelled"),
            (answer.dependents, "cancelled with them, because they depend on them"),
            (answer.ended, "had ended before"),
        ):
            if ids:
                print(f"{what}: {few(ids)}")
    if not answer.cancelled:
        leave(Exit.FAILED, "Nothing was cancelled: all of these had ended.")


def few(ids: tuple[str, ...]) -> str:
    """Some of the ids, and how many more there are."""
    more = f" and {len(ids) - SHOWN:,} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more


def _tell_end(path: Path, timeout: float, *, as_json: bool) -> None:
    """Wait until the driver has gone, and say how it left the run."""
    from matforge.engine.history import standing

    deadline = time.monotonic() + timeout
    while (document := standing(path))["workflow"]["driver"] is not None:
        if time.monotonic() > deadline:
            leave(Exit.FAILED, f"The driver of {path} agreed to end, but is still there after {timeout:g} s.")
        time.sleep(0.05)
    if as_json:
        print(json.dumps(document, indent=1))
        return
    state = document["workflow"]["state"]
    then = f"; `matforge resume {path}` goes on with it" if state == "interrupted" else ""
    print(f"The run in {path} has ended ({state}){then}.")


# ---------------------------------------------------------------- ls


def list_runs(
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="The folder to look in.", show_default="here")
    ] = Path("."),
    depth: Annotated[int, typer.Option(min=0, help="How many folders deep to look.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """List the runs below a folder, newest first.

    A run whose driver was killed is shown as interrupted, with a cross.

    Example: `matforge ls runs --json`
    """
    from matforge.engine.history import find_runs
    from matforge.model import UsageError

    if not root.is_dir():
        raise UsageError(f"{root} is not a folder.")
    found = sorted((_entry(path) for path in find_runs(root, depth)), key=_age, reverse=True)
    if as_json:
        print(json.dumps(found, indent=1))
    elif not found:
        print(f"There is no run in {root} or {depth} folders below it.")
    else:
        _show_runs(root, found)


def _age(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["started_at"] or "", entry["run_dir"]


def _entry(path: Path) -> dict[str, Any]:
    """What the list says of one run; a run that cannot be read is listed with the reason."""
    from matforge.engine.history import standing
    from matforge.model import MatForgeError

    entry: dict[str, Any] = {"run_dir": str(path), "state": "unreadable", "started_at": None}
    try:
        document = standing(path)
        workflow, current = document["workflow"], document["current"]
        counts = {name: current.get(name, 0) for name in COUNTS}
        return {
            **entry,
            **{key: workflow.get(key) for key in ("state", "name", "campaign", "started_at", "finished_at")},
            "elapsed_seconds": workflow["elapsed_seconds"],
            **counts,
            "total": sum(counts.values()),
            "driver": workflow["driver"],
            "dead": "note" in workflow,
        }
    except (MatForgeError, KeyError, TypeError) as error:
        return {**entry, "problem": str(error)}


def _show_runs(root: Path, found: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("run", "state", "name", "campaign"):
        table.add_column(name, overflow="fold")
    for name in ("completed", "failed", "of", "elapsed"):
        table.add_column(name, justify="right")
    for entry in found:
        path = Path(entry["run_dir"])
        label = str(path.relative_to(root)) if path != root else str(path)
        if "problem" in entry:
            table.add_row(Text(label), "unreadable")
            continue
        table.add_row(
            Text(label),
            entry["state"] + (" ✗" if entry["dead"] else ""),
            Text(entry["name"] or ""),
            Text(entry["campaign"] or ""),
            f"{entry['completed']:,}",
            f"{entry['failed']:,}",
            f"{entry['total']:,}",
            duration(entry["elapsed_seconds"]),
        )
    out(table)


def duration(seconds: float) -> str:
    """A time span with the two units that matter."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
