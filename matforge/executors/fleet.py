"""The agents of an allocation: one a node, started as Flux jobs, heard, lost and replaced."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from matforge._version import __version__
from matforge.executors.channel import node_lost, time_over
from matforge.executors.hub import Hub
from matforge.executors.instance import JobEvent, JobOrder
from matforge.executors.placement import Block, Node
from matforge.executors.protocol import Finished, Lost, Report
from matforge.executors.remote import RemoteAgent
from matforge.executors.restarts import RESTARTS, Restarts
from matforge.model import Failure, FailureKind
from matforge.worker.slotproc import slot_environment
from matforge.worker.wire import AgentConfig, Profile, decode, encode

log = logging.getLogger("matforge")

START_S = 120.0
"""Seconds until an agent whose job has started must have said hello: Python and zmq may come from a
slow file system."""
PAUSE_S = 1.0
"""When Flux itself has ended an agent's job, perhaps because the node is lost, its scheduler goes on
for a tenth of a second to place jobs there, which end at once."""
_BEAT = encode({"t": "beat"})


class Jobs(Protocol):
    """What starts and cancels jobs."""

    def submit(self, key: int, order: JobOrder) -> None:
        """Submit a job."""

    def cancel(self, key: int) -> None:
        """Cancel one."""


class Fleet:
    """All agents of one executor.

    Parameters
    ----------
    jobs : Jobs
        Where agents are started.
    hub : Hub
        Where they connect back.
    config : AgentConfig
        What every agent of the run is told.
    nodes : mapping
        The ledger, by rank; shared with the executor.
    home : Path
        A 0700 directory that all nodes see.
    run_id : str
        Part of the names of jobs.
    slots_of : callable
        Slots of an agent that holds so many cores of a node.
    near : callable
        Whether a host is the driver's own.
    lease : float
        Seconds of silence after which an agent is lost.
    start_s : float
        Seconds that a started agent has to connect.
    """

    def __init__(
        self, jobs: Jobs, hub: Hub, config: AgentConfig, nodes: Mapping[int, Node], home: Path, *,
        run_id: str, slots_of: Callable[[Node, int], int], near: Callable[[str], bool], lease: float,
        start_s: float = START_S,
    ) -> None:  # fmt: skip
        self.reports: list[Report] = []
        self.agents: dict[int, RemoteAgent] = {}
        """By the key of their jobs; until Flux has taken back what they held."""
        self.given_up: dict[int, Failure] = {}
        """Nodes where agents cannot live, and why."""
        self._welcomed: list[RemoteAgent] = []
        self._by_identity: dict[bytes, RemoteAgent] = {}
        self._jobs = jobs
        self._hub = hub
        self._config = config
        self._nodes = nodes
        self._home = home
        self._run_id = run_id
        self._slots_of = slots_of
        self._near = near
        self._lease = lease
        self._start_s = start_s
        self._count = 0
        self._ends: dict[int, Restarts] = {}
        self._pauses: dict[int, float] = {}
        """Nodes on which no agent is started yet, and until when (monotonic)."""
        self._beaten = 0.0
        for path in home.glob("agent-*.json"):
            path.unlink()  # of a driver that was killed: keys that open nothing any more

    # -- start

    def staff(self, reserved: Iterable[int], key: Callable[[], int]) -> None:
        """Start agents on what nobody holds, except where a job is about to be placed."""
        kept = {*reserved, *self._pauses}
        for node in self._nodes.values():
            if not node.up or node.rank in kept or node.rank in self.given_up:
                continue
            cores, gpus = node.free()
            if cores:
                self._start(node, Block(cores, gpus), key())

    def _start(self, node: Node, block: Block, key: int) -> None:
        self._count += 1
        slots = self._slots_of(node, block.cores)
        agent = RemoteAgent(self._count, node, block, slots, self._home, self._config.epoch)
        try:
            argv = agent.configure(self._hub, self._config, near=self._near(node.host))
        except OSError as error:
            self._give_up(node, f"{error.filename} cannot be written: {error.strerror}", "")
            return
        node.blocks.append(block)
        self.agents[key] = self._by_identity[agent.identity] = agent
        plain = Profile(cores_per_task=block.cores)
        environment = slot_environment(replace(self._config, token=agent.token), plain, ())
        del environment["CUDA_VISIBLE_DEVICES"]  # the job's shell says which GPUs it has
        self._jobs.submit(
            key,
            JobOrder(
                name=f"{self._run_id}:agent-{agent.number}", argv=tuple(argv), ranks=(node.rank,),
                cores=block.cores, gpus=block.gpus, environment=environment, stdout=str(agent.stderr_path),
                stderr=str(agent.stderr_path),
            ),
        )  # fmt: skip

    # -- what Flux says

    def job_event(self, key: int, event: JobEvent, now: float) -> None:
        """Follow an agent's job."""
        agent = self.agents[key]
        context = event.context
        if event.name == "alloc":
            agent.limit_s = context.get("seconds")
        elif event.name == "start":
            agent.launched = now
        elif event.name == "finish":
            self._ended(agent, _status_words(int(context["status"])), now)
        elif event.name == "exception" and not context.get("severity"):
            kind = context.get("type")
            words = f"{kind}: {str(context.get('note', '')).strip().rstrip('.')}"
            reason = f"Flux has ended its agent's job ({words.removesuffix(': ')})"
            self._ended(agent, reason, now, over=kind == "timeout")
            if kind == "exec":
                self._pauses[agent.node.rank] = now + PAUSE_S
        elif event.name == "refused":
            self._ended(agent, f"Flux does not take its agent's job: {context.get('note')}", now)
        if event.name in ("clean", "refused"):
            del self.agents[key]
            agent.node.blocks.remove(agent.block)
            agent.forget()

    def _ended(self, agent: RemoteAgent, reason: str, now: float, *, over: bool = False) -> None:
        if not agent.told_to_end:
            self.lose(agent, reason, now, over=over)

    def offline(self, ranks: Iterable[int], now: float) -> None:
        """Nodes are lost to Flux, though their processes may live on."""
        gone = set(ranks)
        for agent in list(self.agents.values()):
            if agent.node.rank in gone:
                self.lose(agent, "Flux has lost the node", now)
        for rank in gone:  # when it is back, it is as good as new
            self._ends.pop(rank, None)
            self.given_up.pop(rank, None)

    def rested(self, now: float) -> bool:
        """Whether agents may be started again where they could not a while ago."""
        over = [rank for rank, until in self._pauses.items() if now > until]
        for rank in over:
            del self._pauses[rank]
        return bool(over)

    def leave(self, nodes: Iterable[Node]) -> None:
        """Let agents of drained nodes finish what they have, and end."""
        for node in nodes:
            for block in node.blocks:
                block.leaving = block.leaving or not block.fixed
        self.dismiss_idle()

    # -- what agents say

    def hear(self, now: float) -> None:
        """Read all messages that are there."""
        for identity, frames in self._hub.receive():
            agent = self._by_identity.get(identity)
            if agent is None or agent.lost:
                continue  # the last words of an agent that was given up
            agent.heard = now
            message = decode(frames[0])
            kind = message["t"]
            if kind == "reports":
                reports = agent.link.reports(message, frames, now)
                self.reports += _beside_others(agent, reports)
                if agent.node.rank in self._ends and any(isinstance(r, Finished) for r in reports):
                    del self._ends[agent.node.rank]  # this node works, so another agent is worth starting
            elif kind == "hello":
                self._welcome(agent, message, now)
            elif kind == "gone":
                agent.gone = True
            elif kind == "failed":
                failure = Failure.from_dict(message["failure"])
                self._give_up(agent.node, failure.message, failure.stderr)
                self.lose(agent, failure.message, now)

    def _welcome(self, agent: RemoteAgent, message: Mapping[str, str], now: float) -> None:
        if message["version"] != __version__:
            said = (
                f"The agent on {message['host']} is MatForge {message['version']}, "
                f"and the driver is {__version__}."
            )
            self._give_up(agent.node, said, "")
            self.dismiss(agent, kill=True)
            return
        agent.link.host = message["host"]
        agent.connected = True
        agent.welcomed = now
        self._welcomed.append(agent)

    def take_welcomed(self) -> list[RemoteAgent]:
        """Agents that have connected since the last call."""
        welcomed, self._welcomed = self._welcomed, []
        return welcomed

    def away(self, seconds: float) -> None:
        """The driver was elsewhere; that is not the agents' silence."""
        for agent in self.agents.values():
            agent.heard += seconds
            if agent.launched is not None:
                agent.launched += seconds

    def look_after(self, now: float) -> None:
        """Tell agents that the driver lives, and see whether they do."""
        beat = now - self._beaten > self._config.beat_s
        if beat:
            self._beaten = now
        for key, agent in list(self.agents.items()):
            if agent.lost:
                continue
            if agent.connected:
                if beat:
                    self._hub.send(agent.identity, [_BEAT])
                if now - agent.heard > self._lease:
                    self.lose(agent, f"its agent was silent for {self._lease:g} seconds", now)
                    self._jobs.cancel(key)
            elif agent.launched is not None and now - agent.launched > self._start_s:
                self.lose(agent, f"its agent did not connect within {self._start_s:g} seconds", now)
                self._jobs.cancel(key)
        self.dismiss_idle()

    # -- the end of agents

    def dismiss_idle(self) -> None:
        """Let those end that are to leave and have nothing left to do."""
        for agent in self.agents.values():
            leaving = agent.block.leaving and not (agent.lost or agent.told_to_end)
            if leaving and not agent.block.load:
                self.dismiss(agent)

    def dismiss(self, agent: RemoteAgent, *, kill: bool = False) -> None:
        """Let an agent end, at once if ``kill``."""
        agent.told_to_end = agent.block.leaving = True
        if agent.connected:
            self._hub.send(agent.identity, [encode({"t": "bye", "kill": kill})])
        else:
            self._jobs.cancel(next(key for key, one in self.agents.items() if one is agent))

    def lose(self, agent: RemoteAgent, reason: str, now: float, *, over: bool = False) -> None:
        """Everything in flight there is lost, and it cannot come back; ``over``: its time was."""
        if agent.lost:
            return
        if agent.connected:
            self._hub.send(agent.identity, [encode({"t": "bye", "kill": True})])
        agent.lost = agent.block.leaving = True
        self._hub.dismiss(agent.identity)
        self._by_identity.pop(agent.identity, None)
        stderr, host = agent.stderr(), agent.link.host or agent.node.host
        if over and agent.connected:
            log.info("the agent on %s has come to the end of its time", host)
            limit_s = agent.limit_s or now - agent.welcomed
            failure = time_over("its agent's", limit_s)
            self.reports += agent.link.lose_all(failure, early=agent.early(limit_s))
            return
        log.warning("the agent on %s was lost: %s\n%s", host, reason, stderr)
        lost = agent.link.lose_all(node_lost(f"The node {host} was lost: {reason}.", stderr))
        self.reports += _beside_others(agent, lost)
        ends = self._ends.setdefault(agent.node.rank, Restarts())
        if ends.count(now, agent.link.lost, connected=agent.connected):
            self._give_up(agent.node, f"its agent has ended {RESTARTS} times: {reason}", stderr)

    def _give_up(self, node: Node, reason: str, stderr: str) -> None:
        if node.rank not in self.given_up:
            last = next((line for line in reversed(stderr.splitlines()) if line.strip()), "")
            said = f" It said: {last.strip()[:300]}" if last else ""
            message = f"The node {node.host} is given up: {reason.rstrip('.')}.{said}"
            self.given_up[node.rank] = Failure(FailureKind.START_FAILED, message, stderr=stderr)
            log.error("%s", message)


def _beside_others(agent: RemoteAgent, reports: Sequence[Report]) -> Sequence[Report]:
    """The same, but nothing is blamed for the loss of a node where other agents are, or jobs."""
    if agent.node.only(agent.block):
        return reports
    return [
        replace(one, alone=False)
        if isinstance(one, Lost) and one.failure.kind is FailureKind.NODE_LOST
        else one
        for one in reports
    ]


def _status_words(status: int) -> str:
    """What a wait status says, where Flux may have put a signal into the exit code."""
    code = status >> 8 if not status & 0x7F else 0
    number = status & 0x7F or (code - 128 if code > 128 else 0)
    return f"its agent was ended by signal {number}" if number else f"its agent ended with exit code {code}"
