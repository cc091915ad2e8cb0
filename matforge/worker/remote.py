"""An agent on a node of its own: what only that node knows, and then the agent.

Started by the resource manager as ``python -c ... CONFIG``, pinned to the cores and told of the
GPUs that are its own; talks to the driver over TCP with CURVE.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matforge.worker import processes, warden
from matforge.worker.agent import Agent
from matforge.worker.wire import AgentConfig

CONNECT_S = 5.0
"""Seconds for one address: a packet to a network that is not ours may vanish without an answer."""
SCHEDULER_VARIABLES = ("FLUX_", "PMI_", "PMIX_", "PMI2_", "SLURM_JOB_ID", "SLURM_JOBID", "SLURM_STEP")
"""Prefixes of what would lead a chore into the enclosing instance, where it could only wait for cores
that its own agent holds. Without them ``flux start`` in a chore makes a nested instance."""
UNREACHABLE = 4
"""Exit code of an agent that could not reach its driver."""


def reachable(endpoints: Sequence[str], timeout: float = CONNECT_S) -> str | None:
    """The first of ``tcp://host:port`` that accepts a connection; None if none does."""
    for endpoint in endpoints:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout).close()
        except OSError:  # no route, no such name, nobody there
            continue
        return endpoint
    return None


def leave_scheduler() -> None:
    """Forget the enclosing instance, for this process and all it starts."""
    for name in [n for n in os.environ if n.startswith(SCHEDULER_VARIABLES)]:
        del os.environ[name]


def visible_gpus() -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` calls the GPUs that this process was given."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name for name in named.split(",") if name and name != "-1"]


def settle(config: AgentConfig, endpoint: str) -> tuple[AgentConfig, str]:
    """Complete the configuration with what this node knows, and keep it without its keys.

    Returns
    -------
    config : AgentConfig
        For the agent.
    path : str
        File for the agent's slots, which need no keys; in the scratch directory.
    """
    scratch = Path(tempfile.mkdtemp(prefix="mf-"))
    complete = replace(
        config,
        endpoint=endpoint,
        scratch=str(scratch),
        cores=processes.usable_cores(),
        gpus=visible_gpus(),
        max_rss=config.max_rss or processes.fair_share(config.workers),
    )
    path = scratch / "agent.json"
    replace(complete, curve={}).save(path)
    return complete, str(path)


def main() -> None:
    """Entry point; the one argument is the path of the configuration."""
    config = AgentConfig.load(sys.argv[1])
    sys.argv = ["matforge-agent"]
    endpoint = reachable(config.endpoints)
    if endpoint is None:
        print(
            f"The driver cannot be reached from {socket.gethostname()}; tried "
            f"{', '.join(config.endpoints)}. Set MATFORGE_ADDRESS to an address or an interface of the "
            "driver's node that the other nodes can reach.",
            file=sys.stderr,
        )
        sys.exit(UNREACHABLE)
    complete, path = settle(config, endpoint)
    leave_scheduler()
    # the job's shell may be killed; SIGTERM, because the agent has to end what its slots have started
    processes.die_with_parent(os.getppid(), signal.SIGTERM)
    guard = warden.start(complete)
    processes.adopt_orphans()
    Agent(complete, path, guard).run()
    processes.leave()
