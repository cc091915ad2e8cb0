"""An allocation of any size without Flux: the driver's side of it, told what agents would tell it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matforge._version import __version__
from matforge.executors.fleet import Fleet
from matforge.executors.fluxjobs import FluxJobs
from matforge.executors.instance import Inventory, JobOrder, NodeState
from matforge.executors.lanes import Lanes
from matforge.executors.protocol import Task
from matforge.executors.remote import RemoteAgent
from matforge.executors.stock import Stock
from matforge.model import Attempt, Resources
from matforge.worker.wire import FINISHED, AgentConfig, encode


class _Outside:
    """Hub and broker: messages to agents and orders go nowhere, messages from agents are put in."""

    def __init__(self) -> None:
        self.inbox: list[tuple[bytes, list[bytes]]] = []

    def receive(self) -> list[tuple[bytes, list[bytes]]]:
        messages, self.inbox = self.inbox, []
        return messages

    def send(self, identity: bytes, frames: list[bytes]) -> None:
        pass

    def dismiss(self, identity: bytes) -> None:
        pass

    def admit(self, identity: bytes) -> dict[str, str]:
        return {}

    def endpoints(self, *, near: bool) -> list[str]:
        return ["tcp://127.0.0.1:1"]

    def submit(self, key: int, order: JobOrder) -> None:
        pass

    def cancel(self, key: int) -> None:
        pass


class Allocation:
    """So many nodes of so many cores, with an agent on each that has not connected yet."""

    def __init__(self, home: Path, nodes: int, cores: int) -> None:
        self._outside = outside = _Outside()
        states = {rank: NodeState(rank, f"node{rank}", cores, 0, cores, 0, True) for rank in range(nodes)}
        self.stock = Stock(Inventory(states), None)
        config = AgentConfig(
            run_dir=str(home), epoch=1, agent=0, endpoint="", identity="", token="", scratch="", workers=1,
            python="python",
        )  # fmt: skip
        self.fleet = Fleet(
            outside, outside, config, self.stock.nodes, home, run_id="run",  # type: ignore[arg-type]
            slots_of=self.stock.slots_of, near=lambda host: False, lease=10.0,
        )  # fmt: skip
        jobs = FluxJobs(config, home / "jobs.json", "run", "pmi2")
        self.lanes = Lanes(self.stock, self.fleet, outside, outside, jobs, self._key)  # type: ignore[arg-type]
        self._keys = self._tasks = 0
        self.fleet.staff((), self._key)
        self.agents = list(self.fleet.agents.values())

    def _key(self) -> int:
        self._keys += 1
        return self._keys

    def connect(self, agents: Iterable[RemoteAgent]) -> None:
        """Let agents say hello."""
        for agent in agents:
            self._say(agent, {"t": "hello", "version": __version__, "host": agent.node.host})
        self.fleet.hear(0.0)

    def task(self, resources: Resources | None = None, *, alone: bool = False) -> Task:
        """A fresh warm chore."""
        self._tasks += 1
        return Task(
            Attempt(f"chore-{self._tasks}", 1, 1), "chore", resources or Resources(), function="function",
            payload=b"payload", alone=alone,
        )  # fmt: skip

    def finish(self, agent: RemoteAgent, handles: Iterable[int], wall_s: float = 60.0) -> None:
        """Let chores end that an agent has in flight; what is free is given out again."""
        usage = [0, 0.0, wall_s, wall_s, 0]
        ends = [[FINISHED, handle, usage, None, 0, None, None, False] for handle in handles]
        self._say(agent, {"t": "reports", "r": ends})
        self.fleet.hear(0.0)
        reports, self.fleet.reports = self.fleet.reports, []
        self.lanes.account(reports)
        self.lanes.dispatch(0.0)

    def _say(self, agent: RemoteAgent, header: dict[str, Any]) -> None:
        self._outside.inbox.append((agent.identity, [encode(header), b""]))
