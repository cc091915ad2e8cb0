"""An allocation run by Flux as an executor: one agent a node, and jobs for what is no matter of one node.

Chores on one node go to an agent, those of the job lane too: their slots are processes of their
own there. Only MPI programs, and chores of several tasks that no node can hold, become Flux jobs.
Who gets which cores is said in :mod:`~matforge.executors.placement`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import zmq

from matforge.executors.fleet import START_S, Fleet
from matforge.executors.flux import Broker
from matforge.executors.fluxjobs import FluxJobs
from matforge.executors.hub import Hub
from matforge.executors.instance import BrokerLost, Inventory, JobEvent
from matforge.executors.lanes import Lanes
from matforge.executors.polling import Polling
from matforge.executors.protocol import (
    Capacity,
    CapacityChanged,
    ExecutorFailed,
    Lost,
    RunContext,
    Task,
)
from matforge.executors.stock import Stock, is_here
from matforge.executors.waker import Waker
from matforge.model import Attempt, Failure, FailureKind, MatForgeError, UsageError
from matforge.worker.wire import AgentConfig

log = logging.getLogger("matforge")

HOME = "agents"
"""Folder of the run directory for what agents are told, and their complaints."""
_CLOSE_S = 10.0
_REAP_S = 2.0
"""Once all agents have said that they are gone, Flux has so long from one job's end to the next."""
_FREEING = ("clean", "refused")
"""Events after which the cores of a job are free."""
_OTHERS_S = 5.0
"""While other jobs hold cores, Flux is asked this often whether they have ended."""


class FluxExecutor(Polling):
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
        self._options = {
            "affinity": set_cpu_affinity, "sync": sync, "max_chores": max_chores, "max_rss": max_rss,
            "lease_s": driver_lease, "beat_s": lease / 5,
        }  # fmt: skip
        super().__init__(lease)
        self._start_s = start_s
        self._news = Waker()
        """What Flux has told."""
        self._poller.register(self._news.descriptor, zmq.POLLIN)
        try:
            self._broker: Broker = Broker(self._news.wake)
        except UsageError:
            self._waker.close()
            self._news.close()
            raise
        self._context: RunContext | None = None
        assert self._broker.first is not None
        self._stock = Stock(self._broker.first, workers)
        self._waits_for_others = 0.0
        self._known_given_up = 0
        self._keys = 0
        self._failed: Failure | None = None
        self._broker_lost = ""
        self._looked = 0.0
        self._look_for_others()
        self._told = self.capacity()

    # -- capacity

    def capacity(self) -> Capacity:
        """All nodes that are there and can be used; the end is that of the allocation."""
        return self._stock.capacity(self._given_up(), self._broker.ends_at)

    def _given_up(self) -> Mapping[int, Failure]:
        return self._fleet.given_up if self._context is not None else {}

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
        jobs = FluxJobs(config, common, context.run_id, os.environ.get("MATFORGE_MPI", "pmi2"))
        self._fleet = Fleet(
            self._broker, self._hub, config, self._stock.nodes, home, run_id=context.run_id,
            slots_of=self._stock.slots_of, near=is_here, lease=self._lease, start_s=self._start_s,
        )  # fmt: skip
        self._lanes = Lanes(self._stock, self._fleet, self._hub, self._broker, jobs, self._key)
        if context.epoch > 1:
            self._broker.cancel_older(f"{context.run_id}:")  # of a driver that was killed
        self._context = context
        self._seen = time.monotonic()
        self._fleet.staff((), self._key)

    def _look_for_others(self) -> None:
        self._waits_for_others = time.monotonic() + _OTHERS_S if self._stock.others else 0.0

    def _key(self) -> int:
        self._keys += 1
        return self._keys

    # -- the protocol

    def submit(self, tasks: Sequence[Task]) -> None:
        """Queue tasks, and hand on what can be handed on."""
        if self._failed is not None:
            self._ready += [Lost(task.attempt, self._failed) for task in tasks]
        elif tasks:
            self._lanes.submit(tasks, time.monotonic())

    def cancel(self, attempts: Iterable[Attempt]) -> None:
        """Stop attempts; see the protocol."""
        self._lanes.cancel(set(attempts))

    def withdraw(self) -> None:
        """Take back what has not begun; see the protocol."""
        if self._context is not None:
            self._lanes.withdraw()

    def _away(self, seconds: float) -> None:
        if self._context is not None:
            self._fleet.away(seconds)

    def _woken_by(self, ready: Mapping[Any, int]) -> None:
        if self._news.descriptor in ready:
            self._news.clear()
            self._looked = 0.0

    # -- one turn

    def _turn(self, now: float) -> None:
        """Take in all that has happened, and start what can start."""
        if self._context is None:
            return
        self._fleet.hear(now)
        self._hear_broker(now)
        if now >= self._looked:
            self._looked = now + min(0.5, self._lease / 10)
            self._fleet.look_after(now)
            self._lanes.changed |= self._fleet.rested(now)
            if self._waits_for_others and now > self._waits_for_others:
                self._waits_for_others = 0.0
                self._broker.refresh()
        self._lanes.settle(now)
        reports, self._fleet.reports = self._fleet.reports, []
        self._lanes.account(reports)
        self._ready += reports
        if self._broker_lost:
            self._give_up(Failure(FailureKind.NODE_LOST, self._broker_lost))
        elif self._lanes.changed or len(self._fleet.given_up) != self._known_given_up:
            self._known_given_up = len(self._fleet.given_up)
            self._lanes.changed = True
            self._watch_capacity()
        if self._failed is None:
            self._lanes.dispatch(now)
        if self._lanes.changed and self._failed is None:
            self._lanes.changed = False
            self._fleet.staff(self._lanes.reserved, self._key)
        self._ready += self._lanes.reports
        self._lanes.reports.clear()

    def _hear_broker(self, now: float) -> None:
        """Take in what Flux has told."""
        for event in self._broker.events():
            if isinstance(event, JobEvent):
                self._job_event(event, now)
            elif isinstance(event, Inventory):
                self._lanes.changed = True
                self._fleet.offline(event.offline, now)
                self._lanes.offline(event.offline)
                self._stock.take(event)
                self._fleet.leave(node for node in self._stock.nodes.values() if not node.up)
                self._look_for_others()
            elif isinstance(event, BrokerLost):
                self._broker_lost = event.reason

    def _watch_capacity(self) -> None:
        """Tell of changes; with the last node the executor has failed."""
        now = self.capacity()
        if now == self._told:
            return
        self._told = now
        self._ready.append(CapacityChanged(f"{now.nodes} nodes with {now.total_cores} slots"))
        if not now.total_cores and self._fleet.given_up:
            self._give_up(next(iter(self._fleet.given_up.values())))

    def _give_up(self, failure: Failure) -> None:
        if self._failed is None:
            self._failed = failure
            self._ready += [ExecutorFailed(failure), *self._lanes.lose_all(failure)]

    def _job_event(self, event: JobEvent, now: float) -> None:
        if event.key in self._fleet.agents:
            self._fleet.job_event(event.key, event, now)
            # the others change nothing that may be held; there are ten for each of thousands of agents
            self._lanes.changed |= event.name in _FREEING
        else:
            self._lanes.job_event(event, now)
            self._lanes.changed = True

    # -- the end

    def close(self, *, kill: bool = False) -> None:
        """End all agents and jobs; see the protocol."""
        if self._closed:
            return
        self._closed = True
        if self._context is not None:
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
        for key in self._lanes.running:
            self._broker.cancel(key)
        for agent in list(self._fleet.agents.values()):
            if not agent.lost and not (agent.told_to_end and not kill):
                self._fleet.dismiss(agent, kill=kill or bool(self._broker_lost))
        self._await_ends()
        if self._broker_lost:
            return  # nobody is left who could tell of ends; agents have been told to end
        for key in (*self._fleet.agents, *self._lanes.running):
            self._broker.cancel(key)
        self._await_ends()
        if left := len(self._fleet.agents) + len(self._lanes.running):
            log.warning("%d jobs of this run have not ended; `flux jobs` lists them", left)

    def _await_ends(self) -> None:
        """Wait for the ends of jobs, as long as they may still come."""
        now = time.monotonic()
        deadline, changed, before = now + _CLOSE_S, now, None
        while (self._fleet.agents or self._lanes.running) and now < deadline and not self._broker_lost:
            known = [*self._lanes.running, *((key, a.gone) for key, a in self._fleet.agents.items())]
            if known != before:
                before, changed = known, now
            over = not self._lanes.running and all(a.gone for a in self._fleet.agents.values())
            if over and now - changed > _REAP_S:
                return  # nothing of ours is left but jobs that Flux cannot end: their broker stands still
            self._poller.poll(int(1000 * min(deadline - now, 0.2)))
            self._news.clear()
            now = time.monotonic()
            self._fleet.hear(now)
            for event in self._broker.events():
                if isinstance(event, JobEvent):
                    self._job_event(event, now)
                elif isinstance(event, BrokerLost):
                    self._broker_lost = event.reason
