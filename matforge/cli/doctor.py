"""``matforge doctor``: what is here and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matforge.cli.console import Exit, leave, out
from matforge.cli.options import JsonOption

if TYPE_CHECKING:
    from matforge.cli.checks import Check

MARKS = {"ok": "green", "warning": "yellow", "missing": "red"}


def doctor(
    directory: Annotated[
        Path, typer.Option("--dir", help="The folder in which runs are to be made.", show_default="here")
    ] = Path("."),
    timeout: Annotated[
        float, typer.Option(min=1.0, help="Seconds that a single program may take to answer.")
    ] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Say what is here and what is missing for runs on this machine.

    Looks at Python and the libraries, cores and memory (as the control group and the affinity leave
    them), Flux, Slurm, JAX, GPUs, the folder for runs (space, file system, locks, renames, syncs),
    the folder for temporary files, and the cache of compiled kernels. Each line is ok, a warning, or
    missing, with what to do about it. The exit code is 0 unless runs cannot work here.

    Example: `matforge doctor --dir /scratch/me/runs`
    """
    from dataclasses import asdict

    from matforge.cli import checks

    found = checks.examine(directory, timeout)
    if as_json:
        print(json.dumps([asdict(check) for check in found], indent=1))
    else:
        _show(found)
    if broken := [check.name for check in found if check.fatal]:
        leave(Exit.FAILED, f"Runs cannot work here: {', '.join(broken)}.")


def _show(found: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for check in found:
        told = Text(check.told)
        if check.advice:
            told.append(f"\n{check.advice}", style="italic")
        table.add_row(Text(check.verdict, style=MARKS[check.verdict]), Text(check.name), told)
    out(table)
