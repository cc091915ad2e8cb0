"""``matforge vacua …``: the exhaustive search and what belongs to it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matforge.cli import completion
from matforge.cli.console import FULL, Exit, leave, log_to_stderr, out
from matforge.cli.options import (
    DirectoryOption,
    ExecutorOption,
    JsonOption,
    LayoutOption,
    QuietOption,
    StrategyOption,
    VerboseOption,
    WorkersOption,
)
from matforge.model import MatForgeError, why_unwritable

if TYPE_CHECKING:
    from matforge.session import Session
    from matforge.vacua.geometry import Geometry
    from matforge.vacua.region import Region

DEFAULT_PRESET = "p11169-slice"
ROWS = 10
"""Vacua shown at the end."""
ACROSS = 12
"""Counts per N_flux that are shown side by side."""

app = typer.Typer(help="Every string-theory flux vacuum in a region of moduli space.", no_args_is_help=True)


@app.command()
def search(
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"A named search; default {DEFAULT_PRESET}. See `presets`.",
            autocompletion=completion.presets,
        ),
    ] = None,
    geometry: Annotated[
        str | None,
        typer.Option(help="Name of a geometry, or a JSON file.", autocompletion=completion.geometries),
    ] = None,
    nmax: Annotated[str | None, typer.Option(help="Largest N_flux.")] = None,
    im_z: Annotated[
        str | None, typer.Option("--im-z", help="LO:HI for every modulus, or one a modulus: LO:HI,LO:HI.")
    ] = None,
    s: Annotated[str | None, typer.Option("--s", help="LO:HI of Im tau; LO may be left out.")] = None,
    executor: ExecutorOption = None,
    workers: WorkersOption = None,
    strategy: StrategyOption = None,
    directory: DirectoryOption = None,
    layout: LayoutOption = None,
    block: Annotated[
        int | None, typer.Option(help="Values of h in a chunk; does not change the answer.")
    ] = None,
    leaf: Annotated[
        float | None, typer.Option(help="Size of the smallest boxes; does not change the answer.")
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Stage the vacua for the data set MATFORGE_VULCAN_REPO.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json instead of tables.")] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Find every flux vacuum of a region, with progress, and write parquet.

    Without options: the preset p11169-slice. Options on top of a preset change it.

    Examples:

    `matforge vacua search`

    `matforge vacua search --preset p11169-full --workers 2`

    `matforge vacua search --geometry octic --nmax 5 --im-z 2:7 --s :30`
    """
    from matforge.vacua import campaign

    where, region = _request(preset, geometry, nmax, im_z, s)
    tuning = _tuning(block, leaf)
    chosen = None
    if strategy is not None:
        from matforge.strategies import load

        chosen = load(strategy)()
    if verbose:
        log_to_stderr()
    target = _staging_target() if publish else None
    session = campaign.start(
        where, region, tuning=tuning, strategy=chosen, basedir=directory, executor=executor,
        workers=workers, layout=layout, quiet=quiet, publish=target,
    )  # fmt: skip
    follow(session, quiet=quiet)
    show_result(session.run_dir, as_json=as_json, quiet=quiet)
    if target is not None and not quiet:
        print(f"  staged   {target['staging_dir']}; `matforge vulcan sync` publishes it", file=sys.stderr)


def _staging_target() -> dict[str, str]:
    """Where the vacua are to be staged; told before any work if that is not known."""
    from matforge.vulcan import Vulcan
    from matforge.vulcan.results import target_of

    return target_of(Vulcan.from_env())


def _request(
    preset: str | None, geometry: str | None, nmax: str | None, im_z: str | None, s: str | None
) -> tuple[Geometry, Region]:
    """What is to be searched."""
    from matforge.vacua import region as regions
    from matforge.vacua.geometry import load_geometry

    given = {"geometry": geometry, "n_max": nmax, "im_z": im_z, "s": s}
    changes = {name: value for name, value in given.items() if value is not None}
    if geometry is not None and preset is None:
        missing = [flag for flag, value in (("--nmax", nmax), ("--im-z", im_z)) if value is None]
        if missing:
            leave(
                Exit.USAGE,
                f"A search of {geometry!r} needs {' and '.join(missing)}, for example --nmax 5 --im-z 2:5.",
            )
        where = load_geometry(geometry)
        return where, regions.Region.parse(where, im_z, s if s is not None else ":10", nmax)
    known = regions.preset(preset or DEFAULT_PRESET)
    changed: Any = replace(known, **changes)
    where = load_geometry(changed.geometry)
    return where, regions.Region.parse(where, changed.im_z, changed.s, changed.n_max)


def _tuning(block: int | None, leaf: float | None) -> Any:
    from matforge.vacua.campaign import Tuning

    changes = {name: value for name, value in (("block", block), ("leaf", leaf)) if value is not None}
    return Tuning(**changes)


# ---------------------------------------------------------------- progress


STAGES = (
    ("cover of the region", ("prepare", "cover_part", "cover")),
    ("flux enumeration", ("isd_chunk",)),
    ("Newton refines", ("newton_refine",)),
    ("shards and merge", ("shard_write", "merge")),
)


def follow(session: Session, *, quiet: bool) -> None:
    """Wait for the end, with a progress bar on a terminal."""
    if quiet or not sys.stderr.isatty():
        session.wait()
    else:
        _bars(session)
    session.outcome()


def _bars(session: Session) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = [progress.add_task(label, total=None, note="") for label, _ in STAGES]
        while True:
            ended = session.manager.done.wait(0.1)
            for task, (_, names) in zip(tasks, STAGES, strict=True):
                _update(progress, task, session, names)
            if ended:
                break
    session.wait()


def _update(progress: Any, task: Any, session: Session, names: tuple[str, ...]) -> None:
    tallies = [t for name in names if (t := session.engine.tally.get(name)) is not None]
    if not tallies:
        return
    notes = {"isd_chunk": ("starts", "starts"), "newton_refine": ("vacua", "vacua, with repeats")}
    key, label = notes.get(names[0], ("", ""))
    note = f"{int(tallies[0].sums.get(key, 0)):,} {label}" if key else ""
    progress.update(
        task, completed=sum(t.completed for t in tallies), total=sum(t.added for t in tallies), note=note
    )


# ---------------------------------------------------------------- the result


def show_result(run_dir: Path, *, as_json: bool, quiet: bool) -> None:
    """Print the summary of a finished search."""
    from matforge.vacua.campaign import result_file

    summary = _read(result_file(run_dir, "summary.json"), lambda path: json.loads(path.read_text()))
    _check_known(summary)
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    vacua = _read(result_file(run_dir, "vacua.parquet"), _vacua_table)
    out(_counts_table(summary))
    if summary["count_mod_sign"]:
        out(vacua)
    smallest = summary["min_W0_abs"]
    out(
        f"[bold]{summary['count_mod_sign']:,}[/] vacua modulo sign, "
        f"{summary['count_both_signs']:,} with both signs of the fluxes"
        + (f"; smallest |W0| {smallest:.6f}" if smallest is not None else "")
        + f"; {summary['wall_s']:.1f} s, {summary['core_s']:.1f} core-seconds."
    )
    if not quiet:
        print(
            f"  table    {run_dir / 'vacua.parquet'}\n  summary  {run_dir / 'summary.json'}\n"
            f"  plot     matforge vacua plot {run_dir}",
            file=sys.stderr,
        )


def _read(path: Path, how: Callable[[Path], Any]) -> Any:
    try:
        return how(path)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise MatForgeError(f"{path} cannot be read: {str(error).removesuffix('.')}.") from error


def _check_known(summary: dict[str, Any]) -> None:
    """Compare with the preset of this region, if there is one whose count is known."""
    from matforge.vacua.geometry import load_geometry
    from matforge.vacua.region import PRESETS

    for known in PRESETS.values():
        geometry = load_geometry(known.geometry)
        same = geometry.hash == summary["geometry_hash"]
        if not same or known.region(geometry).as_dict() != summary["region"]:
            continue
        if known.expected not in (None, summary["count_mod_sign"]):
            leave(
                Exit.FAILED,
                f"{summary['count_mod_sign']} vacua were found where {known.expected} are known to exist; "
                "this is a defect of MatForge, please report it.",
            )


def _counts_table(summary: dict[str, Any]) -> Any:
    """Counts per N_flux: across while they fit on a line, else down."""
    from rich import box
    from rich.table import Table

    title = f"{summary['geometry']}: vacua by N_flux (modulo sign)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    counts, total = summary["by_n_flux"], f"{summary['count_mod_sign']:,}"
    if len(counts) > ACROSS:
        table.add_column("N_flux", justify="right")
        table.add_column("vacua", justify="right")
        for n, count in counts.items():
            table.add_row(n, f"{count:,}")
        table.add_row("all", total, style="bold")
        return table
    for n in counts:
        table.add_column(n, justify="right")
    table.add_column("all", justify="right", style="bold")
    table.add_row(*(f"{count:,}" for count in counts.values()), total)
    return table


def _vacua_table(path: Path) -> Any:
    """The vacua of smallest |W0|, two lines each: one modulus a line, f above h."""
    import pyarrow.parquet as pq
    from rich import box
    from rich.table import Table

    content = pq.read_table(path).sort_by("W0_abs").slice(0, ROWS).to_pylist()
    title = f"the {len(content)} of smallest |W0|"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_lines=False)
    for name, side in (("N", "right"), ("|W0|", "right"), ("z", "left"), ("tau", "left"), ("f, h", "left")):
        table.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for row in content:
        moduli = "\n".join(_complex(x, y) for x, y in zip(row["moduli_re"], row["moduli_im"], strict=True))
        half = len(row["flux"]) // 2
        f, h = (" ".join(map(str, part)) for part in (row["flux"][:half], row["flux"][half:]))
        tau = _complex(row["tau_re"], row["tau_im"])
        table.add_row(str(row["n_flux"]), f"{row['W0_abs']:.6f}", moduli, tau, f"{f}\n{h}")
    return table


def _complex(x: float, y: float) -> str:
    return f"{round(x, 4) + 0.0:+.4f}{y:+.4f}i"  # + 0.0: no minus sign before zero


# ---------------------------------------------------------------- other commands


@app.command()
def plot(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A finished search, or a vacua.parquet.", autocompletion=completion.runs
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Picture (png, pdf, svg); default: vacua.png in the run."),
    ] = None,
) -> None:
    """Draw the set: moduli, tau in its fundamental domain, N_flux and |W0|.

    Example: `matforge vacua plot matforge_workflow-20260101_120000 -o vacua.pdf`
    """
    from matforge.engine.store import find_run
    from matforge.vacua import plots

    path = run if run.is_file() else find_run(run) / "vacua.parquet"
    if not path.is_file():
        leave(
            Exit.USAGE, f"{path} does not exist; the search has not come to its end (see `matforge resume`)."
        )
    target = output or path.with_name("vacua.png")
    try:
        plots.plot_file(path, target, title=_title(path))
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        number = error.errno if isinstance(error, OSError) else None
        why = why_unwritable(error) if isinstance(error, OSError) and number else error
        code = Exit.UNFINISHED if number in FULL else Exit.USAGE
        leave(code, f"{path} cannot be drawn to {target}: {str(why).removesuffix('.')}.")
    print(target)


def _title(path: Path) -> str:
    """The geometry, from the file's own metadata."""
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    stored = json.loads((schema.metadata or {}).get(b"matforge.geometry", b"{}"))
    return str(stored.get("name", path.stem))


@app.command()
def geometries(
    as_json: JsonOption = False,
) -> None:
    """List the geometries that come with MatForge.

    Example: `matforge vacua geometries`
    """
    from matforge.vacua.geometry import list_geometries, load_geometry

    found = [load_geometry(name) for name in list_geometries()]
    if as_json:
        print(json.dumps([g.to_dict() for g in found], indent=1))
        return
    from rich.table import Table

    table = Table()
    for name in ("name", "h12", "h11", "Euler number", "description"):
        table.add_column(name, justify="right" if name[0] in "hE" else "left", overflow="fold")
    for g in found:
        table.add_row(g.name, str(g.h12), str(g.h11), str(g.euler_characteristic), g.description)
    out(table)


@app.command()
def presets(
    as_json: JsonOption = False,
) -> None:
    """List the named searches and how many vacua each has.

    Example: `matforge vacua presets`
    """
    from dataclasses import asdict

    from matforge.vacua.region import PRESETS

    if as_json:
        print(json.dumps([asdict(p) for p in PRESETS.values()], indent=1))
        return
    from rich.table import Table

    table = Table()
    for name in ("name", "geometry", "Im z", "s", "N_flux", "vacua mod sign", "description"):
        table.add_column(name, overflow="fold")
    for p in PRESETS.values():
        count = "" if p.expected is None else f"{p.expected:,}"
        table.add_row(p.name, p.geometry, p.im_z, p.s, f"<= {p.n_max}", count, p.description)
    out(table)
