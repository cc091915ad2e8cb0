"""``matforge vulcan …``: publish what was forged, look at it, put it right, read it back."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matforge.cli.console import Exit, complain, leave, no_bars_in_logs, out, save
from matforge.model import UsageError

if TYPE_CHECKING:
    from matforge.vulcan import Vulcan
    from matforge.vulcan.report import SyncReport

app = typer.Typer(help="Publish vacua to a data set on a Hub, and read them back.", no_args_is_help=True)

RepoOption = Annotated[
    str | None, typer.Option(help="The data set, owner/name; default: MATFORGE_VULCAN_REPO.")
]
StagingOption = Annotated[
    Path | None, typer.Option(help="The staging folder; default: MATFORGE_VULCAN_STAGING_DIR.")
]
BudgetOption = Annotated[
    int | None, typer.Option(help="Commits in a window; default: MATFORGE_VULCAN_BUDGET, else 90.")
]
WindowOption = Annotated[float | None, typer.Option(help="Length of the window in seconds; default 3600.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def _forge(
    repo: str | None, staging_dir: Path | None, budget: int | None = None, window_s: float | None = None
) -> Vulcan:
    from matforge.vulcan import Vulcan

    given = {"repo": repo, "staging_dir": staging_dir, "budget": budget, "window_s": window_s}
    return Vulcan.from_env(**{name: value for name, value in given.items() if value is not None})


def _staging(staging_dir: Path | None) -> Path:
    import os

    from matforge.vulcan.settings import staging_dir_setting

    return staging_dir_setting(staging_dir, os.environ)


@app.command()
def status(
    staging_dir: StagingOption = None,
    budget: BudgetOption = None,
    window_s: WindowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what waits, what was published, what failed, and what is wrong.

    Example: `matforge vulcan status --staging-dir staging`
    """
    import os

    from matforge.vulcan import repair as repairs
    from matforge.vulcan.settings import DEFAULT_WINDOW_S, budget_setting

    chosen = budget_setting(os.environ) if budget is None else budget
    found = repairs.status(_staging(staging_dir), chosen, window_s or DEFAULT_WINDOW_S)
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
        return
    print(f"staging dir: {found.staging_dir}")
    for state, count in found.shards.items():
        print(f"{state.replace('_', ' ')} shards: {count}")
    for name in found.pending:
        print(f"  {name}")
    if found.shards["pending"] > len(found.pending):
        print(f"  ... and {found.shards['pending'] - len(found.pending)} more")
    print(f"budget: {found.budget_left} of {found.budget} commits left")
    if found.open_batches:
        print(f"batches on their way: {', '.join(map(str, found.open_batches))}")
    if found.publisher:
        print(f"being published by {found.publisher}")
    if found.not_before:
        print(f"the Hub is not asked before {_time(found.not_before)}")
    for problem in found.problems:
        complain(problem)


def _time(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


@app.command()
def sync(
    repo: RepoOption = None,
    staging_dir: StagingOption = None,
    budget: BudgetOption = None,
    window_s: WindowOption = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Shards a commit; default: as many as 256 MiB hold.")
    ] = None,
    max_retries: Annotated[int, typer.Option(help="Further tries of a request that failed.")] = 3,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to publish to; default main.")] = None,
    compact: Annotated[bool, typer.Option(help="Put many shards into few files.")] = True,
    pictures: Annotated[bool, typer.Option(help="A picture on the card, where matplotlib is.")] = True,
    split_by: Annotated[
        str | None, typer.Option(help="geometry or row; only for a new data set, where it is frozen.")
    ] = None,
    salt: Annotated[str | None, typer.Option(help="Salt of the splits; only for a new data set.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but send.")] = False,
    every: Annotated[
        str | None, typer.Option(help="Go on, once in 900, 90s, 15m or 1h, until a signal ends it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Publish what is pending, in few commits.

    The token is taken from MATFORGE_VULCAN_TOKEN or HF_TOKEN. Exit codes: 0 all done; 1 a shard failed;
    3 the Hub refuses us; 75 something waits for the budget, the Hub, or another publisher.

    Examples:

    `matforge vulcan sync --repo me/vacua --dry-run`

    `matforge vulcan sync --repo me/vacua --every 15m`
    """
    pause = None if every is None else _seconds(every)
    forge = _forge(repo, staging_dir, budget, window_s)
    options: dict[str, Any] = {
        "max_batch": max_batch, "max_retries": max_retries, "create_pr": create_pr, "revision": revision,
        "compact": compact, "pictures": pictures, "dry_run": dry_run,
    }  # fmt: skip
    if split_by is not None or salt is not None:
        from matforge.vulcan import SplitSpec

        options["splits"] = SplitSpec(by=split_by or "geometry", salt=salt or "")
    if not forge.staging_dir.is_dir():
        complain(f"There is no staging folder {forge.staging_dir} yet; is it the one that the workers use?")
    no_bars_in_logs()
    with _stopped_by_signals() as stop:
        options.update(stopping=stop.is_set, sleep=stop.wait)
        if pause is None:
            leave(_once(forge, options, as_json))
        code = Exit.DONE
        while not stop.is_set():
            code = _again(forge, options, as_json)
            stop.wait(pause)
        leave(code)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--every is a length of time such as 900, 90s, 15m or 1h, not {text!r}.")
    return float(match[1]) * _UNITS[match[2]]


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set: what is being sent is finished, nothing new is begun.

    A second signal ends at once, which is safe at any moment: an upload may take long.
    """
    stop = threading.Event()

    def end(*_: object) -> None:
        if stop.is_set():
            leave(Exit.UNFINISHED, "ended in the middle; the next sync goes on.")
        stop.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _once(forge: Vulcan, options: dict[str, Any], as_json: bool) -> Exit:
    from matforge.vulcan.errors import RefusedError

    try:
        report = forge.sync(**options)
    except RefusedError as error:
        if error.report is not None:
            _show(error.report, as_json)
        leave(Exit.REFUSED, str(error))
    _show(report, as_json)
    if not report.ok:
        return Exit.FAILED
    return Exit.UNFINISHED if report.stopped else Exit.DONE


def _again(forge: Vulcan, options: dict[str, Any], as_json: bool) -> Exit:
    """One round of many: another publisher at work is no reason to end."""
    from matforge.vulcan.errors import BusyError

    try:
        return _once(forge, options, as_json)
    except BusyError as error:
        complain(str(error))
        return Exit.UNFINISHED


def _show(report: SyncReport, as_json: bool) -> None:
    for error in report.errors:
        complain(error)
    if report.stopped:
        complain(report.stopped)
    if as_json:
        from dataclasses import asdict

        print(json.dumps(asdict(report)), flush=True)
    else:
        print(report.line(), flush=True)


@app.command()
def repair(
    staging_dir: StagingOption = None,
    reset_budget: Annotated[
        bool, typer.Option("--reset-budget", help="Forget which slots of the budget were taken.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Move what failed back to pending.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Put right what killed processes left in a staging folder.

    Example: `matforge vulcan repair --staging-dir staging --dry-run`
    """
    from matforge.vulcan import repair as repairs

    for sentence in repairs.repair(
        _staging(staging_dir), reset_budget=reset_budget, retry_failed=retry_failed, dry_run=dry_run
    ):
        print(sentence)


@app.command()
def catalog(repo: RepoOption = None, staging_dir: StagingOption = None, as_json: JsonOption = False) -> None:
    """List the published shards.

    Example: `matforge vulcan catalog --repo me/vacua`
    """
    _print_frame(_forge(repo, staging_dir).catalog(), as_json)


@app.command()
def query(
    filters: Annotated[
        list[str] | None, typer.Argument(help="NAME=VALUE, for example ks_id=384564 is_susy=true.")
    ] = None,
    repo: RepoOption = None,
    staging_dir: StagingOption = None,
    source: Annotated[str, typer.Option(help="synced, pending, local or hub.")] = "synced",
    columns: Annotated[str | None, typer.Option(help="Columns to show, with commas between.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write parquet instead.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find vacua among the published ones.

    Example: `matforge vulcan query h12=2 is_susy=true --repo me/vacua --columns flux,tau_im`
    """
    chosen: dict[str, Any] = dict(_filter(text) for text in filters or [])
    if columns:
        chosen["columns"] = columns.split(",")
    frame = _forge(repo, staging_dir).query(source=source, **chosen)
    if output is None:
        _print_frame(frame, as_json)
        return
    save(frame, output)
    print(output)


def _filter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"A filter reads NAME=VALUE, not {text!r}.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _print_frame(frame: Any, as_json: bool) -> None:
    if as_json:
        print(frame.to_json(orient="records", date_format="iso"))
        return
    out(frame.to_string(max_rows=50, index=False) if len(frame) else "nothing found")
    print(f"{len(frame)} rows", file=sys.stderr)
