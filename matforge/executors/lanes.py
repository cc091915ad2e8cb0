"""Who runs what in an allocation: chores go to agents or become jobs, strictly in their order.

The rules about cores are in :mod:`~matforge.executors.placement`; here they are followed.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from matforge.engine import arbitration
from matforge.executors import placement
from matforge.executors.fleet import Fleet, Jobs
from matforge.executors.fluxjobs import FluxJob, FluxJobs, need_of
from matforge.executors.hub import Hub
from matforge.executors.instance import JobEvent
from matforge.executors.placement import Block
from matforge.executors.protocol import Finished, Lost, Report, Task, Withdrawn
from matforge.executors.remote import RemoteAgent
from matforge.executors.stock import Stock
from matforge.model import Attempt, Failure, FailureKind, Usage

DOUBT_S = 3.0
"""A job that Flux has ended is over some tenths of a second before Flux tells that it has lost a node."""
_Heap = list[tuple[float, int, RemoteAgent]]
"""``(load per slot, number, agent)``."""


class Lanes:
    """The queue, and what has been taken from it.

    Parameters
    ----------
    stock, fleet, hub, broker :
        Nodes, agents, where agents are spoken to, and where jobs are started.
    jobs : FluxJobs
        Makes orders and reports of jobs.
    key : callable
        A fresh key for a job.
    """

    def __init__(
        self, stock: Stock, fleet: Fleet, hub: Hub, broker: Jobs, jobs: FluxJobs, key: Callable[[], int]
    ) -> None:
        self.reports: list[Report] = []
        self.running: dict[int, FluxJob] = {}
        """Jobs, by key."""
        self._doubtful: dict[int, tuple[FluxJob, float]] = {}
        """Jobs that are over, and when they were: it has still to be told whether a node was lost."""
        self.reserved: tuple[int, ...] = ()
        """Nodes on which no agent may be started, because the head of the queue needs them."""
        self.changed = True
        """Whether cores may have become free; with thousands of nodes nobody looks in every turn."""
        self._queue: deque[Task] = deque()
        self._placed: dict[Attempt, tuple[RemoteAgent, int]] = {}
        self._agents: _Heap = []
        """Every agent that takes chores, by how much it has to do for its size. Entries of agents that have
        another load by now, or take nothing any more, are stale and skipped when popped: with thousands of
        nodes nobody goes through all of them for each chore that ends."""
        self._cut: set[str] = set()
        """Chores that still ran when their agent's time was over: they get an agent with all of its time
        before it, so that it is seen whether that is enough."""
        self._mean_wall: float | None = None
        self._stock = stock
        self._fleet = fleet
        self._hub = hub
        self._broker = broker
        self._jobs = jobs
        self._key = key

    # -- in and out

    def submit(self, tasks: Sequence[Task], now: float) -> None:
        """Queue tasks, and hand on what can be handed on."""
        self._queue += tasks
        self.dispatch(now)

    def cancel(self, wanted: set[Attempt]) -> None:
        """Drop what waits, and stop what runs."""
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
        for key, job in self.running.items():
            if job.task.attempt in wanted and not job.cancelled:
                job.cancelled = True
                self._broker.cancel(key)
        for job, _ in self._doubtful.values():
            job.cancelled |= job.task.attempt in wanted

    def withdraw(self) -> None:
        """Take back what has not begun."""
        self.reports += [Withdrawn(task.attempt) for task in self._queue]
        self._queue.clear()
        for agent in {agent.number: agent for agent, _ in self._placed.values()}.values():
            self._hub.send(agent.identity, agent.link.withdraw_message())

    def account(self, reports: Iterable[Report]) -> None:
        """Take back what chores that have ended held of their agents."""
        for report in reports:
            if isinstance(report, Finished | Lost | Withdrawn):
                agent, cores = self._placed.pop(report.attempt)
                agent.block.load -= cores
                if agent.alone == report.attempt:
                    agent.alone, agent.block.alone = None, False
                    self.changed = True
                self._list(agent)
                if isinstance(report, Lost) and report.failure.kind is FailureKind.WALLTIME:
                    self._cut.add(report.attempt.chore_id)
                if isinstance(report, Finished):
                    self._cut.discard(report.attempt.chore_id)
                    wall = report.usage.wall_s
                    mean = self._mean_wall
                    self._mean_wall = wall if mean is None else 0.9 * mean + 0.1 * wall

    def lose_all(self, failure: Failure) -> list[Report]:
        """Reports that say that nothing of all this will ever be run."""
        attempts = [task.attempt for task in self._queue]
        attempts += [*self._placed, *(job.task.attempt for job in self.running.values())]
        attempts += [job.task.attempt for job, _ in self._doubtful.values()]
        for agent, _ in self._placed.values():
            agent.link.lose_all(failure)
        for key in self.running:
            self._broker.cancel(key)
        for everything in (self._queue, self._placed, self.running, self._doubtful):
            everything.clear()
        return [Lost(attempt, failure) for attempt in attempts]

    def _end(self, task: Task, kind: FailureKind, said: str) -> None:
        failure = Failure(kind, f"{task.attempt.chore_id}: {said}")
        self.reports.append(Finished(task.attempt, Usage(), failure=failure))

    # -- the head of the queue

    def dispatch(self, now: float) -> None:
        """Give out chores until one must wait."""
        if self.reserved and all(job.placed for job in self.running.values()):
            self.reserved = ()
            self.changed = True
        if not self._queue:
            return
        for agent in self._fleet.take_welcomed():
            self._list(agent)
        batches: dict[int, tuple[RemoteAgent, list[Task]]] = {}
        while self._queue:
            task = self._queue[0]
            if self._is_job(task):
                if not self._place_job(task):
                    break
            elif (found := self._choose(task, now)) is not None:
                batches.setdefault(found.number, (found, []))[1].append(task)
                self._placed[task.attempt] = (found, task.resources.cores)
                if task.alone:
                    found.alone, found.block.alone = task.attempt, True
            elif not self._make_room(task, now):
                break
            self._queue.popleft()
        for agent, tasks in batches.values():
            self._hub.send(agent.identity, agent.link.tasks_message(tasks))
            for task in tasks:
                if task.attempt.chore_id in self._cut:
                    agent.link.begin(task.attempt, now)

    def _ahead(self, agent: RemoteAgent) -> int:
        """Cores' worth of chores that an agent may hold beyond what runs; none if they are long."""
        if self._mean_wall is None or self._mean_wall > arbitration.QUEUED_WORK_S:
            return 0
        return arbitration.queue_depth(self._mean_wall, agent.slots)

    def _list(self, agent: RemoteAgent) -> None:
        """Note what an agent has to do now."""
        heapq.heappush(self._agents, (agent.block.load / agent.slots, agent.number, agent))
        if len(self._agents) > 4 * len(self._fleet.agents) + 64:  # mostly stale
            self._agents = [
                (a.block.load / a.slots, a.number, a) for a in self._fleet.agents.values() if a.open
            ]
            heapq.heapify(self._agents)

    def _suits(self, agent: RemoteAgent, task: Task, now: float) -> bool:
        """Whether an agent is one for such a task, however much it has to do."""
        wants = task.resources
        if agent.slots < wants.cores or agent.block.gpus < wants.gpus:
            return False
        if task.alone and not agent.node.only(agent.block):
            return False
        return task.attempt.chore_id not in self._cut or agent.fresh(now)

    def _takes(self, agent: RemoteAgent, task: Task, ahead: int, now: float) -> bool:
        """Whether an agent may be given a task now."""
        load, cores = agent.block.load, task.resources.cores
        if not self._suits(agent, task, now) or (task.alone and load):
            return False
        if task.attempt.chore_id in self._cut:  # it is to begin at once
            return load + cores <= agent.slots
        return load < agent.slots + ahead

    def _choose(self, task: Task, now: float) -> RemoteAgent | None:
        """The agent with the least to do that can take so much; its load is corrected."""
        aside: _Heap = []
        found = None
        while self._agents and found is None:
            entry = heapq.heappop(self._agents)
            load, _, agent = entry
            if not agent.open or load != agent.block.load / agent.slots:
                continue
            ahead = self._ahead(agent)
            if self._takes(agent, task, ahead, now):
                found = agent
                agent.block.load += task.resources.cores
                if not task.alone:  # it is given nothing else
                    self._list(agent)
                continue
            aside.append(entry)
            if agent.block.load >= agent.slots + ahead:
                break  # the others have even more to do
        for entry in aside:
            heapq.heappush(self._agents, entry)
        return found

    def _is_job(self, task: Task) -> bool:
        wants = task.resources
        several = wants.num_tasks > 1 and not self._stock.fits_a_node(wants, self._fleet.given_up)
        return wants.mpi or several

    def _make_room(self, task: Task, now: float) -> bool:
        """See to it that there will be an agent for it; whether the task is done with instead."""
        wants = task.resources
        if any(self._suits(a, task, now) and not a.block.leaving for a in self._fleet.agents.values()):
            return False  # it only has to wait
        nodes = self._stock.usable(self._fleet.given_up)
        if not nodes:
            return False  # one may come back
        if not self._stock.fits_a_node(wants, self._fleet.given_up):
            most, gpus = max(self._stock.slots(n) for n in nodes), max(n.gpus for n in nodes)
            said = (
                f"it asks for {wants.cores} cores and {wants.gpus} GPUs of one node; "
                f"the largest has {most} and {gpus}."
            )
            self._end(task, FailureKind.DOES_NOT_FIT, said)
            return True
        need = placement.Need(1, min(wants.cores, max(n.cores for n in nodes)), wants.gpus)
        if (found := self._plan(need, alone=task.alone)) is not None and found.ready:
            self.reserved, self.changed = (), True  # they have gone: one agent gets all of it now
        return False

    def _plan(self, need: placement.Need, *, alone: bool) -> placement.Plan | None:
        """Choose a place, and tell the agents there to leave."""
        found = placement.plan(need, self._stock.usable(self._fleet.given_up), alone=alone)
        if found is not None:
            self.reserved = tuple(node.rank for node in found.nodes)
            for block in found.leaving:
                block.leaving = True
            if found.leaving:
                self._fleet.dismiss_idle()
        return found

    # -- jobs

    def _place_job(self, task: Task) -> bool:
        """Make room for a job and submit it; whether that is done."""
        if any(not job.placed for job in self.running.values()):
            return False  # one at a time: where it goes is known only when Flux has placed it
        need, nodes = need_of(task), self._stock.usable(self._fleet.given_up)
        if not nodes:
            return False
        if not placement.fits(need, nodes):
            said = (
                f"it asks for {need.tasks} tasks of {need.cores} cores and {need.gpus} GPUs each; "
                f"{len(nodes)} nodes with {sum(n.cores for n in nodes)} cores in all cannot hold them."
            )
            self._end(task, FailureKind.DOES_NOT_FIT, said)
            return True
        found = self._plan(need, alone=task.alone)
        if found is None or not found.ready:
            return False
        self._submit_job(task, need, found)
        return True

    def _submit_job(self, task: Task, need: placement.Need, found: placement.Plan) -> None:
        try:
            order = self._jobs.order(task, self.reserved)
        except OSError as error:
            said = f"{error.filename} cannot be written: {(error.strerror or str(error)).lower()}."
            self._end(task, FailureKind.STORAGE, said)
            return
        job = FluxJob(self._key(), task)
        missing = need.tasks
        for node in found.nodes:
            takes = min(missing, need.tasks_in(*node.free()))
            missing -= takes
            block = Block(takes * need.cores, takes * need.gpus, fixed=True, alone=task.alone)
            node.blocks.append(block)
            job.held.append((node, block))
        self.running[job.key] = job
        self._broker.submit(job.key, order)

    def job_event(self, event: JobEvent, now: float) -> None:
        """Follow a job."""
        job = self.running.get(event.key)
        if job is None:
            return
        if event.name == "alloc":
            job.placed = True
            for node, block in job.held:  # Flux may have spread the tasks otherwise
                block.cores = event.context.get("cores", {}).get(node.rank, block.cores)
        if not job.torn:
            job.alone = all(node.only(block) for node, block in job.held)
        report = self._jobs.absorb(job, event)
        if event.name in ("clean", "refused"):
            del self.running[event.key]
            for node, block in job.held:
                node.blocks.remove(block)
            if report is None:
                self._doubtful[event.key] = (job, now)
        if report is not None:
            self.reports.append(report)

    def offline(self, ranks: frozenset[int]) -> None:
        """Note which jobs have lost a node."""
        for job in (*self.running.values(), *(job for job, _ in self._doubtful.values())):
            job.node_lost |= any(node.rank in ranks for node, _ in job.held)

    def settle(self, now: float) -> None:
        """Report the jobs of which it is clear by now whether they have lost a node."""
        for key, (job, over) in list(self._doubtful.items()):
            if job.node_lost or job.cancelled or now - over > DOUBT_S:
                del self._doubtful[key]
                self.reports.append(self._jobs.end(job))
