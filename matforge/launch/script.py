"""The script of an allocation: pure text from a request."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matforge._version import __version__
from matforge.launch.site import Site
from matforge.model import UsageError

GRACE_S = 90
"""Seconds before the time limit at which Slurm tells the driver to leave."""
START_S = 300
"""Seconds until every broker must be there and the driver started; ``MATFORGE_START_S`` overrides it."""
REQUEUES = 100
"""Allocations after which a run that is never done is given up."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asks for."""

    nodes: int
    time: str
    """Slurm's ``[days-]hours:minutes:seconds``."""
    command: tuple[str, ...]
    site: Site = field(default_factory=Site)
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    job_name: str = "matforge"
    gpus_per_node: int = 0
    cores_per_node: int = 0
    """0: whole nodes."""
    requeue: bool = False
    extra: tuple[str, ...] = ()
    """Further options for Slurm, as they stand."""

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise UsageError(f"--nodes must be at least 1, not {self.nodes}.")
        if not self.command:
            raise UsageError("There is no command; give one after --, as in `-- matforge vacua search`.")
        seconds(self.time)


def seconds(time: str) -> int:
    """A time limit in seconds.

    Raises
    ------
    UsageError
        If it is not a time as Slurm writes it.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", time)
    if found is None:
        raise UsageError(f"--time must look like HH:MM:SS or D-HH:MM:SS, not {time!r}.")
    days, first, second, third = (int(part) if part else 0 for part in found.groups())
    if found[4] is None and found[1] is None:  # minutes:seconds
        return 60 * first + second
    return ((24 * days + first) * 60 + second) * 60 + third


def slurm_options(request: Request) -> list[str]:
    """Options of ``salloc`` and ``sbatch``, those of the user last, so that they win."""
    site = request.site
    named = {
        "job-name": request.job_name, "nodes": request.nodes, "time": request.time,
        "partition": request.partition, "account": request.account, "qos": request.qos,
        "constraint": request.constraint, "gpus-per-node": request.gpus_per_node or site.gpus_per_node,
    }  # fmt: skip
    options = [*site.options, *(f"--{name}={value}" for name, value in named.items() if value)]
    if request.cores_per_node:
        options += ["--ntasks-per-node=1", f"--cpus-per-task={request.cores_per_node}"]
    else:
        options.append("--exclusive")
    # to the steps: the script itself must live to see how the driver leaves
    grace = min(GRACE_S, seconds(request.time) // 3)
    return [*options, f"--signal=TERM@{max(grace, 1)}", *request.extra]


def text(request: Request, folder: Path, workdir: Path, resume: Sequence[str], *, batch: bool) -> str:
    """The script.

    Parameters
    ----------
    folder : Path
        For its own files, on a file system that all nodes see.
    workdir : Path
        Where the command runs.
    resume : sequence of str
        Command that goes on with a run; its directory is appended.
    batch : bool
        Whether it is for ``sbatch``, and submits itself again if it is to.
    """
    site = request.site
    head = ["#!/bin/bash"]
    if batch:
        head += [f"#SBATCH {option}" for option in slurm_options(request)]
        head += [f"#SBATCH --output={folder / 'output.%j'}"]
    lines = [
        *head,
        f"# Written by MatForge {__version__}: one Flux broker a node, and the driver in that.",
        f"folder={shlex.quote(str(folder))}",
        _DRIVER,
        f"cd {shlex.quote(str(workdir))} || exit 2",
        *(f"module load {shlex.quote(module)}" for module in site.modules),
        *site.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in site.environment.items()),
        f"export MATFORGE_MPI={shlex.quote(site.mpi)}",
        f"cores={request.cores_per_node or site.cores_per_node or ''}",
        'export MATFORGE_RUNS_FILE="$folder/runs"',
        f"command=({shlex.join(request.command)})",
        f"resume=({shlex.join(resume)})",
        f"image=({shlex.join(['apptainer', 'exec', site.image] if site.image else [])})",
        f"srun=({shlex.join(site.srun)})",
        f"start_s=${{MATFORGE_START_S:-{START_S}}}",
        _BODY,
        _AGAIN.format(limit=REQUEUES) if batch and request.requeue else "",
        'exit "$code"',
    ]
    return "\n".join(line for line in lines if line) + "\n"


_DRIVER = r"""
if [ "${1:-}" = --driver ]; then
  # in the instance: Slurm and Flux signal the driver too, and this shell waits for what it makes of it;
  # in the foreground, because `wait` gives -1 for a child that ends just when another signal comes
  trap : HUP TERM
  shift
  : > "$folder/started"
  "$@" < /dev/null
  code=$?
  echo "$code" > "$folder/code"
  exit "$code"
fi
""".strip()

_BODY = r"""
echo begun >> "$folder/allocations"
rm -f "$folder/started" "$folder/code"
[ -n "$cores" ] || cores=${SLURM_JOB_CPUS_PER_NODE%%[(,]*}
# older versions of Slurm do not say when the allocation ends, and Flux hides what Slurm says
ends=$(squeue -h -j "$SLURM_JOB_ID" -o %e 2> /dev/null)
export MATFORGE_END_TIME=${SLURM_JOB_END_TIME:-$(date -d "$ends" +%s 2> /dev/null)}
# what an earlier allocation has begun is gone on with, not begun again
if [ -s "$MATFORGE_RUNS_FILE" ]; then
  command=("${resume[@]}" "$(tail -n 1 "$MATFORGE_RUNS_FILE")")
fi
# the brokers' own exit codes may hide that of the driver
command=(bash "$folder/launch.sh" --driver "${command[@]}")
if [ ${#image[@]} -gt 0 ] || command -v flux > /dev/null; then
  command=("${image[@]}" flux start "${command[@]}")
elif [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ]; then
  echo "matforge: there is no flux on the PATH of $(hostname), and ${SLURM_JOB_NUM_NODES} nodes need it;" \
    "load its module in a site profile (--site), or ask for one node." >&2
  exit 2
else
  echo "matforge: there is no flux on the PATH of $(hostname); one node works without." >&2
fi
srun "${srun[@]}" --nodes="${SLURM_JOB_NUM_NODES:-1}" --ntasks="${SLURM_JOB_NUM_NODES:-1}" \
  --cpus-per-task="$cores" "${command[@]}" &
step=$!
trap 'interrupted=1; kill -TERM "$step" 2> /dev/null' TERM INT
(
  for ((waited = 0; waited < start_s; waited++)); do
    [ -e "$folder/started" ] && break
    kill -0 "$step" 2> /dev/null || exit
    sleep 1
  done
  if [ ! -e "$folder/started" ]; then
    echo "matforge: no driver was started within $start_s s: the Flux brokers do not find each other." >&2
    echo 1 > "$folder/code"
    kill -TERM "$step"
  fi
  # once the driver has left, brokers that do not follow must not use up the rest of the time
  until [ -s "$folder/code" ]; do sleep 2; done
  sleep 10
  kill -KILL "$step" 2> /dev/null
) &
watch=$!
interrupted=1
while [ -n "$interrupted" ]; do
  interrupted=
  wait "$step"
  code=$?
done
kill "$watch" 2> /dev/null
[ "$code" -ge 0 ] || code=143
[ -s "$folder/code" ] && code=$(cat "$folder/code")
""".strip()

_AGAIN = r"""
if [ "$code" -eq 75 ] && [ "$(wc -l < "$folder/allocations")" -le {limit} ]; then
  echo "matforge: the run is not finished; the same again." >&2
  sbatch "$folder/launch.sh" || exit 75
fi
""".strip()
