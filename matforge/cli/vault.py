"""``matforge vault …``: curated vacua and the sessions they come from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matforge.cli.console import complain, no_bars_in_logs, out, save
from matforge.model import UsageError

if TYPE_CHECKING:
    from matforge.vulcan.vault import Vault

app = typer.Typer(help="Curated vacua: designate, look up, take back, share.", no_args_is_help=True)

VaultOption = Annotated[
    Path | None, typer.Option("--vault", help="The vault's folder; default: MATFORGE_VAULT.")
]
LabelOption = Annotated[str, typer.Option(help="Name of the set: letters, digits, '-' and '_'.")]
ByOption = Annotated[str, typer.Option("--by", help="Who vouches for it.")]
GeometryOption = Annotated[str | None, typer.Option(help="Name of a geometry, or a JSON file.")]
TagOption = Annotated[list[str] | None, typer.Option("--tag", help="May be given several times.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ValidateOption = Annotated[bool, typer.Option(help="Check F-terms, tadpole and cone; needs --geometry.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Leave out the rows that fail.")]
COLUMNS = ("designated_id", "label", "geometry_id", "N_flux", "is_susy", "tags", "committed_by", "retracted")


def _vault(folder: Path | None) -> Vault:
    from matforge.vulcan.vault import Vault

    return Vault(folder)


@app.command()
def designate(
    file: Annotated[Path, typer.Argument(help="A parquet file of vacua, for example of a search.")],
    label: LabelOption,
    by: ByOption,
    geometry: GeometryOption = None,
    tag: TagOption = None,
    notes: Annotated[str, typer.Option(help="Anything to remember.")] = "",
    validate: ValidateOption = True,
    force: ForceOption = False,
    vault: VaultOption = None,
) -> None:
    """Put vacua into the vault, all or none, after checking them.

    Example: `matforge vault designate vacua.parquet --label paper --by me@example.org --geometry p11169`
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.is_file():
        raise UsageError(f"There is no file {file}; give a parquet file with vacua.")
    try:
        table = pq.read_table(file, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    ids = _vault(vault).designate(
        table, label, by, model=geometry, tags=tag or (), notes=notes, validate=validate, force=force
    )
    _say(ids, label)


def _say(ids: list[int], label: str) -> None:
    print(f"{len(ids)} vacua designated as {label}: numbers {ids[0]} to {ids[-1]}")


@app.command()
def promote(
    run_id: Annotated[str, typer.Option("--run-id", help="The write of a forge.")],
    label: LabelOption,
    by: ByOption,
    geometry: GeometryOption = None,
    tag: TagOption = None,
    notes: Annotated[str, typer.Option(help="Anything to remember.")] = "",
    validate: ValidateOption = True,
    force: ForceOption = False,
    vault: VaultOption = None,
    repo: Annotated[
        str | None, typer.Option(help="The forge's data set; default: MATFORGE_VULCAN_REPO.")
    ] = None,
    staging_dir: Annotated[Path | None, typer.Option(help="The forge's staging folder.")] = None,
) -> None:
    """Designate the vacua of one write of a forge.

    Example: `matforge vault promote --run-id RUN --label paper --by me@example.org --geometry p11169`
    """
    from matforge.vulcan import Vulcan

    given = {"repo": repo, "staging_dir": staging_dir}
    forge = Vulcan.from_env(**{name: value for name, value in given.items() if value is not None})
    ids = _vault(vault).promote(
        forge, run_id, label, by, model=geometry, tags=tag or (), notes=notes, validate=validate, force=force
    )
    _say(ids, label)


@app.command("ls")
def list_vacua(
    label: Annotated[str | None, typer.Option(help="Of this set only.")] = None,
    geometry: GeometryOption = None,
    tag: TagOption = None,
    n_flux_max: Annotated[int | None, typer.Option(help="Largest N_flux.")] = None,
    retracted: Annotated[bool, typer.Option("--retracted", help="Also those taken back.")] = False,
    limit: Annotated[int | None, typer.Option(help="At most so many.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write them to parquet.")] = None,
    as_json: JsonOption = False,
    vault: VaultOption = None,
) -> None:
    """List vacua of the vault, or write them to a file.

    Example: `matforge vault ls --label paper --n-flux-max 10 -o paper.parquet`
    """
    filters: dict[str, Any] = {
        "label": label, "model": geometry, "tags": tag, "n_flux_max": n_flux_max,
        "include_retracted": retracted, "limit": limit,
    }  # fmt: skip
    store = _vault(vault)
    if output is not None:
        save(store.load(**filters), output)
        print(output)
        return
    frame = store.query(**filters)
    if as_json:
        print(frame.to_json(orient="records", date_format="iso"))
        return
    shown = frame[list(COLUMNS)]
    out(shown.to_string(max_rows=50, index=False) if len(frame) else "nothing found")
    print(f"{len(frame)} vacua", file=sys.stderr)
    for problem in store.problems():
        complain(problem)


@app.command()
def retract(
    numbers: Annotated[list[int], typer.Argument(help="Numbers of the vacua.")],
    reason: Annotated[str, typer.Option(help="Why.")],
    by: Annotated[str, typer.Option("--by", help="Who says so.")],
    vault: VaultOption = None,
) -> None:
    """Take vacua back; they stay on record.

    Example: `matforge vault retract 17 18 --reason "outside the cone" --by me@example.org`
    """
    _vault(vault).retract(numbers, reason, by)
    print(f"{len(set(numbers))} vacua retracted")


@app.command()
def purge(
    older_than: Annotated[str, typer.Option(help="Only those retracted so long ago: 12h, 30d, 4w.")] = "30d",
    yes: Annotated[bool, typer.Option("--yes", help="Really remove them.")] = False,
    archive: Annotated[Path | None, typer.Option(help="A new parquet file to keep them in.")] = None,
    vault: VaultOption = None,
) -> None:
    """Remove retracted vacua for good; without --yes only say which.

    Example: `matforge vault purge --older-than 4w --archive removed.parquet --yes`
    """
    ids = _vault(vault).purge(older_than, dry_run=not yes, confirm=yes, archive=archive)
    print(f"{len(ids)} vacua {'removed' if yes else 'would be removed'}")


@app.command()
def push(
    label: LabelOption,
    repo: Annotated[str, typer.Option(help="The data set, owner/name.")],
    by: Annotated[str, typer.Option("--by", help="Whose set it is; part of the file's name.")],
    pull_request: Annotated[bool, typer.Option(help="Open a pull request instead of committing.")] = True,
    if_exists: Annotated[str, typer.Option(help="error, append or new_version.")] = "error",
    vault: VaultOption = None,
) -> None:
    """Share a set: one file in a data set on the Hub.

    Example: `matforge vault push --label paper --repo me/vault --by me`
    """
    from matforge.vulcan.vault import push as send

    no_bars_in_logs()
    done = send(_vault(vault), label, repo, by=by, create_pr=pull_request, if_exists=if_exists)
    where = f" (pull request {done.pull_request})" if done.pull_request else ""
    print(
        f"{done.rows} vacua in {repo}: {done.path}{where}" if done.commit else f"{done.path} is there already"
    )


@app.command()
def fetch(
    repo: Annotated[str, typer.Option(help="The data set, owner/name.")],
    path: Annotated[str | None, typer.Option(help="One vault of it; default: all.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write them to parquet.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Do not use the cache.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch what others shared.

    Example: `matforge vault fetch --repo me/vault -o theirs.parquet`
    """
    from matforge.vulcan.vault import fetch as receive

    no_bars_in_logs()
    frame = receive(repo, path, refresh=refresh)
    if output is not None:
        save(frame, output)
    if as_json:
        print(frame.to_json(orient="records", date_format="iso"))
    else:
        print(f"{len(frame)} vacua" + (f" in {output}" if output else ""))


@app.command()
def sessions(
    geometry: GeometryOption = None,
    tag: TagOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the sessions on this machine.

    Example: `matforge vault sessions --tag scan`
    """
    from matforge.vulcan.vault import SessionStore

    frame = SessionStore().runs(model=geometry, tags=tag)
    if as_json:
        print(frame.to_json(orient="records"))
        return
    out(frame.to_string(max_rows=50, index=False) if len(frame) else "nothing found")


@app.command("clear-cache")
def clear_cache(
    with_sessions: Annotated[
        bool, typer.Option("--with-sessions", help="Also remove all sessions on this machine.")
    ] = False,
) -> None:
    """Empty the cache of fetched vaults; never touches a vault.

    Example: `matforge vault clear-cache`
    """
    from matforge.vulcan.vault import SessionStore
    from matforge.vulcan.vault.exchange import clear_cache as clear

    removed = clear(SessionStore().folder if with_sessions else None)
    print(json.dumps(removed) if removed else "nothing to remove")
