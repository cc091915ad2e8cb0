"""An allocation run by Flux as an executor: one agent a node, and jobs for what is no matter of one node.

Chores on one node go to an agent, those of the job lane too: their slots are processes of their
own there. Only MPI programs, and chores of several tasks that no node can hold, become Flux jobs.
Who gets which cores is said in :mod:`~matforge.executors.placement`.
"""

from __future__ import annotations

import heapq
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress

import zmq

from matforge.engine import arbitration
from matforge.executors import placement
from matforge.executors.fleet import START_S, Fleet
from matforge.executors.flux import Broker, BrokerLost, Inventory, JobEvent, NodeState
from matforge.executors.fluxjobs import FluxJob, FluxJobs, need_of
from matforge.executors.hub import Hub
from matforge.executors.placement import Block, Node
from matforge.executors.protocol import (
    Capacity,
    CapacityChanged,
    ExecutorFailed,
    Finished,
    Lost,
    Report,
    RunContext,
    Started,
    Task,
)
from matforge.executors.remote import RemoteAgent
from matforge.executors.waker import Waker
from matforge.executors.walltime import allocation_end
from matforge.model import Attempt, Failure, FailureKind, MatForgeError, Usage, UsageError
from matforge.worker.wire import AgentConfig

log = logging.getLogger("matforge")

HOME = "agents"
"""Folder of the run directory for what agents are told, and their complaints."""
_CLOSE_S = 10.0
_OTHERS_S = 5.0
"""While other jobs hold cores, Flux is asked this often whether they have ended."""


class FluxExecutor:
    """Runs chores on all nodes of the enclosing Flux instance.

    Parameters
    ----------
    workers : int, optional
        Slots in all; may exceed the cores there are. Default: one a core.
    set_cpu_affinity : bool
        Whether each slot is pinned to its cores (agents are, in any case).
    sync : bool
        Whether every result is put on the disk before it counts (``durability="power"``).
    lease : float
        Seconds of an agent's silence after which it is lost.
    driver_lease : float
        Seconds of the driver's silence after which agents end themselves and all they run.
    start_s : float
        Seconds that an agent has to connect, once Flux has started it.
    max_chores, max_rss : int
        As for the local executor.

    Raises
    ------
    UsageError
        If a number is out of range, or Flux cannot be used here; the sentence says what is missing.
    """

    name = "flux"

    def __init__(
        self,
        workers: int | None = None,
        *,
        set_cpu_affinity: bool = False,
        sync: bool = False,
        lease: float = 10.0,
        driver_lease: float = 60.0,
        start_s: float = START_S,
        max_chores: int = 10_000,
        max_rss: int = 0,
    ) -> None:
        numbers = (("workers", 1 if workers is None else workers), ("max_chores", max_chores))
        for label, value in numbers:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"{label} must be a whole number of at least 1, not {value!r}.")
        for label, seconds in (("lease", lease), ("driver_lease", driver_lease), ("start_s", start_s)):
            if not seconds > 0:
                raise UsageError(f"{label} must be a positive number of seconds, not {seconds!r}.")
        self._workers = workers
        self._options = {
            "affinity": set_cpu_affinity, "sync": sync, "max_chores": max_chores, "max_rss": max_rss,
            "lease_s": driver_lease, "beat_s": lease / 5,
        }  # fmt: skip
        self._lease = lease
        self._start_s = start_s
        self._closed = False
        self._waker, self._news = Waker(), Waker()
        self._poller = zmq.Poller()
        for waker in (self._waker, self._news):
            self._poller.register(waker.descriptor, zmq.POLLIN)
        try:
            self._broker: Broker = Broker(self._news.wake)
        except UsageError:
            self._waker.close()
            self._news.close()
            raise
        self._context: RunContext | None = None
        self._nodes: dict[int, Node] = {}
        self._slots: dict[int, int] = {}
        """Slots of each node."""
        self._waits_for_others = 0.0
        self._queue: deque[Task] = deque()
        self._placed: dict[Attempt, tuple[RemoteAgent, int]] = {}
        self._running: dict[int, FluxJob] = {}
        self._reserved: tuple[int, ...] = ()
        """Nodes on which no agent may be started, because the job at the head of the queue gets them."""
        self._changed = True
        """Whether cores may have become free, or nodes have come or gone; with thousands of nodes that
        is not looked for in every turn."""
        self._given_up = 0
        self._keys = 0
        self._ready: list[Report] = []
        self._failed: Failure | None = None
        self._mean_wall: float | None = None
        self._seen = 0.0
        self._looked = 0.0
        assert self._broker.first is not None
        self._take_stock(self._broker.first)
        self._told = self.capacity()

    # -- capacity

    def _take_stock(self, inventory: Inventory) -> None:
        """Put what Flux says of its nodes into the ledger."""
        states = inventory.nodes
        if not any(s.free_cores for s in states.values()) and not self._nodes:
            log.warning("all cores of this Flux instance are held by other jobs; waiting for them to end")
            # another run's agents, or a dead driver's: Flux starts ours when they have gone
            usable = {rank: s.cores for rank, s in states.items()}
        else:
            usable = {rank: self._usable(rank, s) for rank, s in states.items()}
        self._slots = placement.shares({r: n for r, n in usable.items() if n}, self._workers)
        for rank, state in states.items():
            cores = min(usable[rank], self._slots.get(rank, 0))
            node = self._nodes.setdefault(rank, Node(rank, state.host or f"rank {rank}", cores, state.gpus))
            node.cores, node.up = cores, state.up
        for rank in set(self._nodes) - set(states):
            self._nodes[rank].up = False
        others = any(usable[rank] < s.cores and s.up for rank, s in states.items())
        self._waits_for_others = time.monotonic() + _OTHERS_S if others else 0.0

    def _usable(self, rank: int, state: NodeState) -> int:
        """Cores of a node that no other job holds."""
        ours = sum(b.cores for b in self._nodes[rank].blocks) if rank in self._nodes else 0
        return min(state.cores, state.free_cores + ours) if state.up else state.cores

    def _slots_of(self, node: Node, cores: int) -> int:
        """Slots of an agent with so many of a node's cores."""
        return max(1, self._slots.get(node.rank, cores) * cores // max(node.cores, 1))

    def _usable_nodes(self) -> list[Node]:
        given_up = self._fleet.given_up if self._context is not None else {}
        return [n for n in self._nodes.values() if n.up and n.cores and n.rank not in given_up]

    def capacity(self) -> Capacity:
        """All nodes that are there and can be used; the end is that of the allocation."""
        nodes = self._usable_nodes()
        slots = [self._slots.get(n.rank, n.cores) for n in nodes]
        total = sum(slots)
        return Capacity(
            nodes=len(nodes),
            cores_per_node=max(slots, default=0),
            gpus_per_node=max((n.gpus for n in nodes), default=0),
            total_cores=total,
            total_gpus=sum(n.gpus for n in nodes),
            queue_depth=max(64, 2 * total),
            ends_at=allocation_end(self._broker.ends_at),
        )

    # -- start

    def start(self, context: RunContext) -> None:
        """Begin to start agents; returns at once.

        Raises
        ------
        MatForgeError
            If the executor was started before.
        """
        if self._context is not None:
            raise MatForgeError("An executor serves one run; make another one for another run.")
        run_dir = context.run_dir.resolve()
        home = run_dir / HOME
        config = AgentConfig(
            run_dir=str(run_dir), epoch=context.epoch, agent=0, endpoint="", identity="", token="",
            scratch="", workers=1, environment=dict(context.environment),
            sys_path=[os.path.abspath(entry) for entry in sys.path], python=sys.executable,
            **self._options,  # type: ignore[arg-type]
        )  # fmt: skip
        home.mkdir(mode=0o700, exist_ok=True)
        common = home / f"jobs-{context.epoch}.json"
        common.unlink(missing_ok=True)
        config.save(common)
        self._hub = Hub()
        for one in self._hub.sockets:
            self._poller.register(one, zmq.POLLIN)
        self._home = home
        self._jobs = FluxJobs(config, common, context.run_id, os.environ.get("MATFORGE_MPI", "pmi2"))
        self._fleet = Fleet(
            self._broker, self._hub, config, self._nodes, home, run_id=context.run_id,
            slots_of=self._slots_of, near=self._is_near, lease=self._lease, start_s=self._start_s,
        )  # fmt: skip
        if context.epoch > 1:
            self._broker.cancel_older(f"{context.run_id}:")  # of a driver that was killed
        self._context = context
        self._seen = time.monotonic()
        self._fleet.staff((), self._key)

    @staticmethod
    def _is_near(host: str) -> bool:
        return host.partition(".")[0] == socket.gethostname().partition(".")[0]

    def _key(self) -> int:
        self._keys += 1
        return self._keys

    # -- the protocol

    def submit(self, tasks: Sequence[Task]) -> None:
        """Queue tasks, and hand on what can be handed on."""
        if self._failed is not None:
            self._ready += [Lost(task.attempt, self._failed) for task in tasks]
        elif tasks:
            self._queue += tasks
            if self._context is not None:
                self._dispatch()

    def cancel(self, attempts: Iterable[Attempt]) -> None:
        """Stop attempts; see the protocol."""
        wanted = set(attempts)
        if any(task.attempt in wanted for task in self._queue):
            kept: deque[Task] = deque()
            for task in self._queue:
                if task.attempt in wanted:
                    self._end(task, FailureKind.CANCELLED, "it was cancelled before it ran.")
                else:
                    kept.append(task)
            self._queue = kept
        by_agent: dict[int, tuple[RemoteAgent, list[Attempt]]] = {}
        for attempt in wanted:
            if (found := self._placed.get(attempt)) is not None:
                by_agent.setdefault(found[0].number, (found[0], []))[1].append(attempt)
        for agent, theirs in by_agent.values():
            message = agent.link.cancel_message(theirs)
            if message is not None:
                self._hub.send(agent.identity, message)
        for key, job in self._running.items():
            if job.task.attempt in wanted and not job.cancelled:
                job.cancelled = True
                self._broker.cancel(key)

    def _end(self, task: Task, kind: FailureKind, said: str) -> None:
        failure = Failure(kind, f"{task.attempt.chore_id}: {said}")
        self._ready.append(Finished(task.attempt, Usage(), failure=failure))

    def poll(self, timeout: float | None) -> list[Report]:
        """Reports that have arrived; see the protocol."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._closed:
            now = time.monotonic()
            if self._context is not None:
                self._step(now)
            if self._ready:
                reports, self._ready = self._ready, []
                self._seen = time.monotonic()
                return reports
            left = self._lease / 5 if deadline is None else min(deadline - now, self._lease / 5)
            if left <= 0 or self._wait(left):
                break
        self._seen = time.monotonic()
        return []

    def wake(self) -> None:
        """Make a waiting :meth:`poll` return."""
        self._waker.wake()

    def now(self) -> float:
        """Unix time."""
        return time.time()

    def _wait(self, seconds: float) -> bool:
        """Wait for anything; whether :meth:`wake` was called."""
        begun = time.monotonic()
        found = dict(self._poller.poll(int(seconds * 1000) + 1))
        self._seen = time.monotonic()
        overslept = self._seen - begun - seconds
        if overslept > self._lease / 10 and self._context is not None:
            self._fleet.away(overslept)  # the whole machine, or this process, stood still
        if self._news.descriptor in found:
            self._news.clear()
            self._looked = 0.0
        if self._waker.descriptor in found:
            self._waker.clear()
            return True
        return False

    # -- one turn

    def _step(self, now: float) -> None:
        """Take in all that has happened, and start what can start."""
        if now - self._seen > self._lease / 10:
            self._fleet.away(now - self._seen)
        self._seen = now
        self._fleet.hear(now)
        for event in self._broker.events():
            self._changed = True
            if isinstance(event, JobEvent):
                self._job_event(event, now)
            elif isinstance(event, Inventory):
                self._fleet.offline(event.offline, now)
                for job in self._running.values():
                    job.node_lost |= any(node.rank in event.offline for node, _ in job.held)
                self._take_stock(event)
            elif isinstance(event, BrokerLost):
                self._give_up(Failure(FailureKind.NODE_LOST, event.reason))
                return
        if now >= self._looked:
            self._looked = now + min(0.5, self._lease / 10)
            self._fleet.look_after(now)
            if self._waits_for_others and now > self._waits_for_others:
                self._waits_for_others = 0.0
                self._broker.refresh()
        if self._fleet.reports:
            self._take_reports()
        given_up = len(self._fleet.given_up)
        if self._changed or given_up != self._given_up:
            self._changed, self._given_up = True, given_up
            self._watch_capacity()
        if self._failed is None:
            self._dispatch()
        if self._changed and self._failed is None:
            self._changed = False
            self._fleet.staff(self._reserved, self._key)

    def _take_reports(self) -> None:
        reports, self._fleet.reports = self._fleet.reports, []
        for report in reports:
            if isinstance(report, Started):
                continue
            if isinstance(report, Finished | Lost):
                agent, cores = self._placed.pop(report.attempt)
                agent.block.load -= cores
                if isinstance(report, Finished):
                    wall = report.usage.wall_s
                    mean = self._mean_wall
                    self._mean_wall = wall if mean is None else 0.9 * mean + 0.1 * wall
        self._ready += reports

    def _watch_capacity(self) -> None:
        """Tell of changes; end what can never be run any more."""
        now = self.capacity()
        if now == self._told:
            return
        self._told = now
        self._ready.append(CapacityChanged(f"{now.nodes} nodes with {now.total_cores} slots"))
        if not now.total_cores and self._fleet.given_up:
            self._give_up(next(iter(self._fleet.given_up.values())))

    def _give_up(self, failure: Failure) -> None:
        if self._failed is not None:
            return
        self._failed = failure
        self._ready.append(ExecutorFailed(failure))
        self._ready += [Lost(task.attempt, failure) for task in self._queue]
        self._ready += [Lost(attempt, failure) for attempt in self._placed]
        self._ready += [Lost(job.task.attempt, failure) for job in self._running.values()]
        self._queue.clear()
        for agent, _ in self._placed.values():
            agent.link.lose_all(failure)
        self._placed.clear()
        self._running.clear()

    # -- who runs what

    def _dispatch(self) -> None:
        """Give out chores strictly in their order, until one must wait."""
        if self._reserved and all(job.placed for job in self._running.values()):
            self._reserved = ()
            self._changed = True
        ahead_s = self._mean_wall
        short = ahead_s is not None and ahead_s <= arbitration.QUEUED_WORK_S
        heap = [(a.block.load / a.slots, a.number, a) for a in self._fleet.agents.values() if a.open]
        heapq.heapify(heap)
        batches: dict[int, tuple[RemoteAgent, list[Task]]] = {}
        while self._queue:
            task = self._queue[0]
            cores, gpus = task.resources.cores, task.resources.gpus
            if self._is_job(task):
                if not self._place_job(task):
                    break
            else:
                agent = self._choose(heap, cores, gpus, arbitration.queue_depth if short else None)
                if agent is None:
                    if not self._make_room(task):
                        break
                else:
                    agent.block.load += cores
                    self._placed[task.attempt] = (agent, cores)
                    batches.setdefault(agent.number, (agent, []))[1].append(task)
            self._queue.popleft()
        for agent, tasks in batches.values():
            self._hub.send(agent.identity, agent.link.tasks_message(tasks))

    def _choose(
        self, heap: list[tuple[float, int, RemoteAgent]], cores: int, gpus: int, depth: object
    ) -> RemoteAgent | None:
        """The agent with the least to do that can take so much; its place in the heap is corrected."""
        aside = []
        found = None
        while heap:
            _, number, agent = heapq.heappop(heap)
            ahead = arbitration.queue_depth(self._mean_wall, agent.slots) if depth else 0
            if agent.takes(cores, gpus, ahead):
                found = agent
                aside.append(((agent.block.load + cores) / agent.slots, number, agent))
                break
            aside.append((agent.block.load / agent.slots, number, agent))
            if agent.block.load >= agent.slots + ahead:
                break  # the others have even more to do
        for entry in aside:
            heapq.heappush(heap, entry)
        return found

    def _is_job(self, task: Task) -> bool:
        wants = task.resources
        return wants.mpi or (wants.num_tasks > 1 and not self._fits_a_node(task))

    def _fits_a_node(self, task: Task) -> bool:
        wants = task.resources
        return any(
            self._slots.get(n.rank, 0) >= wants.cores and n.gpus >= wants.gpus for n in self._usable_nodes()
        )

    def _make_room(self, task: Task) -> bool:
        """See to it that some agent will be large enough; whether the task is done with instead."""
        wants = task.resources
        agents = [a for a in self._fleet.agents.values() if not a.block.leaving]
        if any(a.slots >= wants.cores and a.block.gpus >= wants.gpus for a in agents):
            return False  # it only has to wait
        if not self._fits_a_node(task):
            most = max((self._slots.get(n.rank, 0) for n in self._usable_nodes()), default=0)
            if not most:
                return False  # no node is there now; one may come back
            gpus = max(n.gpus for n in self._usable_nodes())
            said = (
                f"it asks for {wants.cores} cores and {wants.gpus} GPUs of one node; "
                f"the largest has {most} and {gpus}."
            )
            self._end(task, FailureKind.DOES_NOT_FIT, said)
            return True
        nodes = self._usable_nodes()
        whole = placement.Need(1, min(wants.cores, max(n.cores for n in nodes)), wants.gpus)
        if (found := placement.plan(whole, nodes)) is not None:
            for block in found.leaving:
                block.leaving = True
            if not found.ready:  # one agent for all of it, when they have gone
                self._reserved = tuple(node.rank for node in found.nodes)
        return False

    def _place_job(self, task: Task) -> bool:
        """Make room for a job and submit it; whether that is done."""
        if any(not job.placed for job in self._running.values()):
            return False  # one at a time: where it goes is known only when Flux has placed it
        need, nodes = need_of(task), self._usable_nodes()
        if not placement.fits(need, nodes):
            if not nodes:
                return False
            total = sum(n.cores for n in nodes)
            said = (
                f"it asks for {need.tasks} tasks of {need.cores} cores and {need.gpus} GPUs each; "
                f"{len(nodes)} nodes with {total} cores in all cannot hold them."
            )
            self._end(task, FailureKind.DOES_NOT_FIT, said)
            return True
        found = placement.plan(need, nodes)
        if found is None:
            return False
        self._reserved = tuple(node.rank for node in found.nodes)
        for block in found.leaving:
            block.leaving = True
        if not found.ready:
            self._looked = 0.0
            return False
        self._submit_job(task, found)
        return True

    def _submit_job(self, task: Task, found: placement.Plan) -> None:
        need, key = need_of(task), self._key()
        try:
            order = self._jobs.order(task, self._reserved)
        except OSError as error:
            said = f"{error.filename} cannot be written: {(error.strerror or str(error)).lower()}."
            self._end(task, FailureKind.STORAGE, said)
            return
        job = FluxJob(key, task)
        missing = need.tasks
        for node in found.nodes:
            takes = min(missing, need.tasks_in(*node.free()))
            missing -= takes
            block = Block(takes * need.cores, takes * need.gpus, fixed=True)
            node.blocks.append(block)
            job.held.append((node, block))
        self._running[key] = job
        self._broker.submit(key, order)

    def _job_event(self, event: JobEvent, now: float) -> None:
        if event.key in self._fleet.agents:
            self._fleet.job_event(event.key, event, now)
            return
        job = self._running.get(event.key)
        if job is None:
            return
        if event.name == "alloc":
            job.placed = True
            for node, block in job.held:  # Flux may have spread the tasks otherwise
                block.cores = event.context.get("cores", {}).get(node.rank, block.cores)
        report = self._jobs.absorb(job, event)
        if event.name in ("clean", "refused"):
            del self._running[event.key]
            for node, block in job.held:
                node.blocks.remove(block)
        if report is not None:
            self._ready.append(report)

    # -- the end

    def close(self, *, kill: bool = False) -> None:
        """End all agents and jobs; see the protocol."""
        if self._closed:
            return
        self._closed = True
        if self._context is not None:
            if not isinstance(self._failed, Failure) or self._failed.kind is not FailureKind.NODE_LOST:
                self._end_all(kill=kill)
            self._hub.close()
            with suppress(OSError):
                for path in self._home.glob("jobs-*.json"):
                    path.unlink()
                self._home.rmdir()
        self._broker.close()
        self._waker.close()
        self._news.close()

    def _end_all(self, *, kill: bool) -> None:
        """Say goodbye, wait, and cancel what has not gone by itself."""
        for key in self._running:
            self._broker.cancel(key)
        for agent in list(self._fleet.agents.values()):
            if not agent.lost and not (agent.told_to_end and not kill):
                self._fleet.dismiss(agent, kill=kill)
        for cancel_after in (False, True):
            if cancel_after:
                for key in (*self._fleet.agents, *self._running):
                    self._broker.cancel(key)
            deadline = time.monotonic() + _CLOSE_S
            while (self._fleet.agents or self._running) and (left := deadline - time.monotonic()) > 0:
                self._poller.poll(int(1000 * min(left, 1.0)))
                self._news.clear()
                now = time.monotonic()
                self._fleet.hear(now)
                for event in self._broker.events():
                    if isinstance(event, JobEvent):
                        self._job_event(event, now)
                    elif isinstance(event, BrokerLost):
                        return
        if left := len(self._fleet.agents) + len(self._running):
            log.warning("%d jobs of this run have not ended; `flux jobs` lists them", left)
