"""The arguments and options that several commands share, so that they mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from matforge.cli import completion

Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="The directory of a run, or a folder that holds exactly one.",
        show_default=False,
        autocompletion=completion.runs,
    ),
]
ExecutorOption = Annotated[
    str | None,
    typer.Option(
        "--executor",
        help="Who runs the chores: local (this machine), flux (all nodes of the enclosing Flux instance), "
        "or auto (flux where there is one).",
        autocompletion=completion.executors,
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", help="Slots; may exceed the cores. Default: the cores there are.")
]
StrategyOption = Annotated[
    str | None,
    typer.Option("--strategy", help="NAME or FILE.py:Class.", autocompletion=completion.strategies),
]
DirectoryOption = Annotated[
    Path | None, typer.Option("--dir", help="Folder in which the run directory is made.")
]
LayoutOption = Annotated[
    str | None,
    typer.Option(
        "--layout",
        help="full (a directory a chore), packed (few files), or auto.",
        autocompletion=completion.layouts,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also print to standard error what the log gets.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
