"""One rank of a Python chore with several tasks: a process that runs it once and ends.

Started by :mod:`matforge.worker.launch` with the agent's configuration and the task's file; writes
``<task file>.<rank>.json`` and, on rank 0, ``<task file>.0.pickle``.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path

from matforge.engine import results
from matforge.worker import load, processes
from matforge.worker.runner import Job, run_function
from matforge.worker.seeds import Generators
from matforge.worker.settings import ImportWatch
from matforge.worker.wire import AgentConfig, unpack

_RANK_VARIABLES = ("MATFORGE_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "FLUX_TASK_RANK")


def rank_of(environment: os._Environ[str] | dict[str, str]) -> int:
    """This process's rank, from whichever launcher has set it; 0 if none has."""
    return next((int(environment[v]) for v in _RANK_VARIABLES if environment.get(v, "").isdigit()), 0)


def main() -> None:
    """Run the chore; ends with exit code 1 if it failed."""
    config, task_file = AgentConfig.load(sys.argv[1]), sys.argv[2]
    sys.argv = ["matforge-rank"]
    task, blob = unpack(Path(task_file).read_bytes())
    rank = rank_of(os.environ)
    run_dir = Path(config.run_dir)
    faulthandler.enable()
    job = Job.from_wire(task, blob)
    generators = Generators()
    ImportWatch(lambda: None, generators.after_import)
    generators.begin(job.seed + rank)  # ranks that draw the same numbers would be of no use
    outcome = run_function(job, load.Functions(run_dir), run_dir, keep=rank == 0)
    if outcome.data is not None:
        with Path(f"{task_file}.0.pickle").open("wb", buffering=0) as file:
            results.write(file, file.name, outcome.data)
    failure = outcome.failure.as_dict() if outcome.failure else None
    if rank == 0 or failure is not None:
        beside = Path(f"{task_file}.{rank}.new")
        beside.write_text(json.dumps({"failure": failure, "report": outcome.report or {}}))
        beside.rename(f"{task_file}.{rank}.json")
    sys.stdout.flush()
    if processes.has_children():
        processes.kill_children()
    sys.exit(1 if failure else 0)
