"""``matforge launch``: one allocation, Flux in it, the driver in that."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

CONTEXT = {"ignore_unknown_options": False, "allow_interspersed_args": False}


def launch(
    command: Annotated[list[str] | None, typer.Argument(help="What to run, after --.")] = None,
    nodes: Annotated[int, typer.Option(help="Nodes.")] = 1,
    time_limit: Annotated[str, typer.Option("--time", help="HH:MM:SS or D-HH:MM:SS.")] = "01:00:00",
    partition: Annotated[str, typer.Option(help="Slurm's partition.")] = "",
    account: Annotated[str, typer.Option(help="Whom to charge.")] = "",
    qos: Annotated[str, typer.Option(help="Quality of service.")] = "",
    constraint: Annotated[str, typer.Option(help="Features that the nodes must have.")] = "",
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of each node.")] = 0,
    cores_per_node: Annotated[int, typer.Option(help="Cores of each node; default: whole nodes.")] = 0,
    site: Annotated[
        str, typer.Option(envvar="MATFORGE_SITE", help="A site profile: NAME or FILE.yaml.")
    ] = "generic",
    slurm: Annotated[
        list[str] | None, typer.Option(help="A further option for Slurm, as it stands; repeatable.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the job.")] = "matforge",
    directory: Annotated[
        Path,
        typer.Option("--dir", help="Where its folder is made; all nodes must see it."),
    ] = Path(),
    batch: Annotated[bool, typer.Option("--batch", help="Submit with sbatch and return.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="With --batch: wait for its exit code.")] = False,
    requeue: Annotated[
        bool, typer.Option("--requeue", help="The same again while the driver leaves unfinished (75).")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script, and do nothing.")] = False,
) -> None:
    """Run a command on one allocation: Slurm, one Flux broker a node, and the driver in that.

    The exit code is that of the command. With `--requeue` what an allocation could not finish is
    resumed in the next.

    Examples:

    `matforge launch --nodes 4 --time 02:00:00 --account phy123 -- matforge vacua search`

    `matforge launch --nodes 64 --time 06:00:00 --batch --requeue -- matforge run campaign.py`
    """
    from matforge.launch import slurm as slurm_commands
    from matforge.launch.script import Request, text
    from matforge.launch.site import load_site

    request = Request(
        nodes=nodes, time=time_limit, command=tuple(command or ()), site=load_site(site),
        partition=partition, account=account, qos=qos, constraint=constraint, job_name=name,
        gpus_per_node=gpus_per_node, cores_per_node=cores_per_node, requeue=requeue,
        extra=tuple(slurm or ()),
    )  # fmt: skip
    folder = directory.resolve() / f"matforge_launch-{time.strftime('%Y%m%d_%H%M%S')}"
    if dry_run:
        resume = slurm_commands.resume_command()
        print(text(request, folder, Path.cwd(), resume, batch=batch), end="")
        return
    script = slurm_commands.prepare(request, folder, Path.cwd(), batch=batch)
    if batch:
        raise SystemExit(slurm_commands.submit(script, wait=wait))
    raise SystemExit(slurm_commands.allocate(request, script))
