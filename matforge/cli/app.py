"""The commands about runs, and the tree of all commands.

Heavy imports stay inside the commands, so that ``matforge --help`` answers at once.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from matforge.cli import vacua, vault, vulcan
from matforge.cli.console import Exit, complain, leave, sentences

app = typer.Typer(
    name="matforge",
    help="Adaptive ensembles inside one allocation; on it, the exhaustive search for flux vacua.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(vacua.app, name="vacua")
app.add_typer(vulcan.app, name="vulcan")
app.add_typer(vault.app, name="vault")

RunArgument = Annotated[
    Path, typer.Argument(help="The directory of a run, or a folder that holds exactly one.")
]


def run() -> None:
    """Run the command line; every error a user can cause ends in one sentence."""
    try:
        with sentences():
            app()
    except KeyboardInterrupt:
        leave(Exit.INTERRUPTED, "interrupted; `matforge resume RUN` goes on with a run that had begun.")
    except BrokenPipeError:
        # whoever read our output has gone; nothing more to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(int(Exit.FAILED)) from None


def _version(wanted: bool) -> None:
    if wanted:
        from matforge import __version__

        print(f"matforge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def run_script(
    script: Annotated[Path, typer.Argument(help="A Python file that builds pipelines and submits them.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Passed to the script.")] = None,
    executor: Annotated[str | None, typer.Option(help="auto or local.")] = None,
    workers: Annotated[int | None, typer.Option(help="Slots; default: the cores there are.")] = None,
    directory: Annotated[Path | None, typer.Option("--dir", help="Folder for the run directory.")] = None,
    layout: Annotated[str | None, typer.Option(help="auto, full or packed.")] = None,
) -> None:
    """Run a script of your own.

    The options are defaults for every Pipeline in the script; what the script says wins.

    Example: `matforge run --workers 4 --dir runs my_campaign.py -- --my-option 3`
    """
    from matforge.executors import choose

    choose.check(executor or "auto", workers)
    if not script.is_file():
        leave(Exit.USAGE, f"There is no script {script}.")
    chosen = {
        "MATFORGE_EXECUTOR": executor,
        "MATFORGE_WORKERS": workers,
        "MATFORGE_DIR": directory,
        "MATFORGE_LAYOUT": layout,
    }
    os.environ.update({name: str(value) for name, value in chosen.items() if value is not None})
    given = list(arguments or [])
    sys.argv = [str(script), *(given[1:] if given[:1] == ["--"] else given)]
    sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(str(script), run_name="__main__")
    _wait_for_all()


def _wait_for_all() -> None:
    """A script may end right after submit(): its runs still finish, and their end is the exit code."""
    from matforge import signals

    for one in list(signals.live()):
        one.wait()
        one.outcome()


@app.command()
def resume(
    run: RunArgument,
    executor: Annotated[str | None, typer.Option(help="auto or local; default: as before.")] = None,
    workers: Annotated[int | None, typer.Option(help="Slots; default: as before.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result.")] = False,
) -> None:
    """Go on with a run that was interrupted or killed.

    What completed is not run again; the outcome is that of a run which was never disturbed. No
    script is needed.

    Example: `matforge resume matforge_workflow-20260101_120000`
    """
    from matforge.engine.store import find_run
    from matforge.opening import reopen

    path = find_run(run)
    session = reopen(path, executor=executor, workers=workers, quiet=quiet)
    if session.manager.status.workflow.get("name") == "vacua":
        vacua.follow(session, quiet=quiet)
        vacua.show_result(path, as_json=False, quiet=quiet)
        return
    session.wait()
    results = session.outcome()
    if not quiet:
        print(f"{len(results)} chores completed in {path}")


@app.command()
def status(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print status.json.")] = False,
) -> None:
    """Say how a run stands.

    Example: `matforge status matforge_workflow-20260101_120000 --json`
    """
    from matforge.engine.status import read_status
    from matforge.engine.store import find_run

    path = find_run(run)
    document = read_status(path)
    _mark_dead(path, document)
    if as_json:
        print(json.dumps(document, indent=1))
        return
    _show_status(path, document)


def _mark_dead(path: Path, document: dict[str, Any]) -> None:
    """A driver that was killed could not write its end; say so."""
    from matforge.engine.lock import is_held
    from matforge.engine.store import LOCK_NAME

    if document["workflow"]["state"] in ("initializing", "running") and not is_held(path / LOCK_NAME):
        document["workflow"]["state"] = "interrupted"
        document["workflow"]["note"] = f"its driver is gone; `matforge resume {path}` goes on"


def _show_status(path: Path, document: dict[str, Any]) -> None:
    from rich.table import Table

    from matforge.cli.console import out

    workflow, current = document["workflow"], document["current"]
    table = Table.grid(padding=(0, 2))
    state = workflow["state"] + (f" ({workflow['note']})" if "note" in workflow else "")
    table.add_row("run", str(path))
    table.add_row("state", state)
    table.add_row("started", str(workflow["started_at"]))
    table.add_row("elapsed", f"{workflow['elapsed_seconds']:.1f} s")
    names = ("pending", "running", "completed", "failed", "cancelled")
    table.add_row("chores", ", ".join(f"{current[n]} {n}" for n in names if n in current))
    total = document["allocation"].get("total_cores", 0)
    table.add_row("cores", f"{total - current['free_cores']} of {total} busy")
    out(table)
    for failure in document["failures"]:
        complain(f"{failure['chore_id']} failed ({failure['reason']}): {failure['message']}")
    for error in document.get("strategy_errors", []):
        complain(f"the strategy failed: {error}")
