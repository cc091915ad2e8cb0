"""The tree of all commands, and those that execute runs.

Heavy imports stay inside the commands, so that ``matforge --help`` answers at once.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from matforge.cli import doctor, launch, runs, space, vacua, vault, vulcan, watch
from matforge.cli.console import (
    INTERRUPTED,
    STDOUT,
    Exit,
    complain,
    leave,
    log_to_stderr,
    sentences,
    tell_files,
)
from matforge.cli.options import (
    DirectoryOption,
    ExecutorOption,
    LayoutOption,
    QuietOption,
    Run,
    StrategyOption,
    VerboseOption,
    WorkersOption,
)
from matforge.model import MatForgeError

app = typer.Typer(
    name="matforge",
    help="Adaptive ensembles inside one allocation; on it, the exhaustive search for flux vacua.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


Misused: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What typer raises for a command that was not typed as it should; which click it is of, only it knows."""


def run() -> NoReturn:
    """Run the command line; every error a user can cause ends in one sentence."""
    try:
        try:
            with sentences():
                code = app(prog_name="matforge", standalone_mode=False)
        finally:
            _flush()  # when Python ends, nobody can say any more what is wrong with it
    except Misused as error:
        _tell_misuse(error)
    except typer.Abort:
        leave(Exit.FAILED, "nothing was done, as nobody said yes.")
    except OSError as error:
        tell_files(error)
    if code == Exit.INTERRUPTED:
        _tell_interrupted()
    raise SystemExit(int(code or Exit.DONE))


def _flush() -> None:
    if sys.stdout is not None and not sys.stdout.closed:  # a script may have done anything to it
        sys.stdout.flush()


def _tell_misuse(error: Any) -> NoReturn:
    """One sentence in place of typer's box; a group of commands without one shows what it has."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        leave(Exit.USAGE)
    # "No such command 'x'. Did you mean 'y'?" is two sentences
    message = re.sub(r"\. D(id you mean .*\?)$", r" (d\1)", error.format_message()).removesuffix(".")
    where = f"; see `{error.ctx.command_path} --help`" if getattr(error, "ctx", None) else ""
    leave(Exit.USAGE, f"{message}{where}.")


def _tell_interrupted() -> None:
    """Ctrl-C has ended the runs of this process: how each goes on."""
    from matforge import signals
    from matforge.session import InterruptedRunError

    told = False
    for one in signals.live():
        try:
            one.outcome()
        except InterruptedRunError as error:
            complain(str(error))
            told = True
        except MatForgeError:
            continue
    if not told:
        complain(INTERRUPTED)


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
    script: Annotated[
        Path,
        typer.Argument(metavar="SCRIPT", help="A Python file that builds pipelines and submits them."),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGUMENT", help="Passed to the script; put -- before the first."),
    ] = None,
    executor: ExecutorOption = None,
    workers: WorkersOption = None,
    strategy: StrategyOption = None,
    directory: DirectoryOption = None,
    layout: LayoutOption = None,
    resumed: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Go on with a run that this script began; its chores are found by their content.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print at the end, as one line of JSON, how each run stands.")
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run a script of your own.

    The options are defaults for every Pipeline in the script; what the script says wins. The
    script may end right after `submit()`: its runs still finish, and their end is the exit code.

    Examples:

    `matforge run --workers 4 --dir runs my_campaign.py -- --my-option 3`

    `matforge run --strategy my_strategy.py:Mine my_campaign.py`

    `matforge run --resume matforge_workflow-20260101_120000 my_campaign.py`
    """
    from matforge.engine.store import find_run
    from matforge.executors import choose

    choose.check(executor or "auto", workers)
    if str(script).startswith("-") and not script.exists():  # options of the script come after it
        leave(Exit.USAGE, f"`matforge run` has no option {script}; see `matforge run --help`.")
    if not script.is_file():
        leave(Exit.USAGE, f"There is no script {script}.")
    chosen = {
        "MATFORGE_EXECUTOR": executor,
        "MATFORGE_WORKERS": workers,
        "MATFORGE_STRATEGY": _checked_strategy(strategy),
        "MATFORGE_DIR": directory,
        "MATFORGE_LAYOUT": layout,
        "MATFORGE_QUIET": "1" if quiet else None,
        "MATFORGE_RESUME": find_run(resumed) if resumed is not None else None,
    }
    os.environ.update({name: str(value) for name, value in chosen.items() if value is not None})
    if verbose:
        log_to_stderr()
    given = list(arguments or [])
    _tell_misplaced(given)
    sys.argv = [str(script), *(given[1:] if given[:1] == ["--"] else given)]
    sys.path.insert(0, str(script.resolve().parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except (MatForgeError, Misused, typer.Abort, typer.Exit):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename == STDOUT:
            raise
        _tell_of_script(error, str(script))
        leave(Exit.FAILED)
    _wait_for_all(as_json=as_json)


def _tell_of_script(error: Exception, script: str) -> None:
    """A mistake of the script's own is told as Python tells it, beginning with the script."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != script:
        trace = trace.tb_next
    with suppress(OSError):
        sys.excepthook(type(error), error.with_traceback(trace), trace)


def _tell_misplaced(arguments: list[str]) -> None:
    """An option of ours after the script is the script's, which is hardly what was meant."""
    ours = {"--executor", "--workers", "--strategy", "--dir", "--layout", "--resume", "--json"}
    if arguments[:1] != ["--"] and (found := [a for a in arguments if a.partition("=")[0] in ours]):
        complain(
            f"{found[0]} stands after the script and is passed on to it; put options of `matforge run` "
            "before the script, or -- before what the script gets."
        )


def _checked_strategy(text: str | None) -> str | None:
    """What stands for the strategy wherever the script may go; refused here if there is none."""
    if text is None:
        return None
    from matforge.strategies import load

    load(text)
    name, colon, wanted = text.partition(":")
    return f"{Path(name).resolve()}{colon}{wanted}" if colon or name.endswith(".py") else text


def _wait_for_all(*, as_json: bool) -> None:
    """A script may end right after submit(): its runs still finish, and their end is the exit code."""
    from matforge import signals
    from matforge.engine.history import standing

    sessions = sorted(signals.live(), key=lambda one: one.run_dir)
    for one in sessions:
        one.wait()
    if as_json:
        print(json.dumps([{"run_dir": str(one.run_dir), **standing(one.run_dir)} for one in sessions]))
    for one in sessions:
        one.outcome()


@app.command()
def resume(
    run: Run,
    executor: ExecutorOption = None,
    workers: WorkersOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print at the end, as JSON, how the run stands.")
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Go on with a run that was interrupted or killed.

    What completed is not run again; the outcome is that of a run which was never disturbed. No
    script is needed. Executor and number of workers are as before, unless you give others.

    Example: `matforge resume matforge_workflow-20260101_120000 --workers 8`
    """
    from matforge.engine.history import standing
    from matforge.engine.store import find_run
    from matforge.opening import reopen

    path = find_run(run)
    if verbose:
        log_to_stderr()
    session = reopen(path, executor=executor, workers=workers, quiet=quiet)
    if session.manager.status.workflow.get("name") == "vacua":
        vacua.follow(session, quiet=quiet)
        vacua.show_result(path, as_json=as_json, quiet=quiet)
        return
    session.wait()
    if as_json:
        print(json.dumps(standing(path), indent=1))
    results = session.outcome()
    if not (quiet or as_json):
        print(f"{len(results)} chores completed in {path}")


app.command()(runs.status)
app.command()(watch.watch)
app.command()(runs.cancel)
app.command()(space.du)
app.command()(space.clean)
app.command("ls")(runs.list_runs)
app.command("launch", context_settings=launch.CONTEXT)(launch.launch)
app.command()(doctor.doctor)
app.add_typer(vacua.app, name="vacua")
app.add_typer(vulcan.app, name="vulcan")
app.add_typer(vault.app, name="vault")
