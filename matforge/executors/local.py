"""This machine as an executor: one agent, a child of the driver, and its slots.

Driver and agent talk over a socket file in a private directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq

from matforge._version import __version__
from matforge.executors.agentproc import AgentProcess, gpu_names, private_directory, sweep_abandoned
from matforge.executors.channel import node_lost
from matforge.executors.polling import Polling
from matforge.executors.protocol import (
    Capacity,
    ExecutorFailed,
    Finished,
    Lost,
    Report,
    RunContext,
    Task,
    Withdrawn,
)
from matforge.executors.restarts import RESTARTS, Restarts
from matforge.executors.walltime import allocation_end
from matforge.model import Attempt, Failure, FailureKind, MatForgeError, Usage, UsageError
from matforge.worker import processes
from matforge.worker.wire import AgentConfig, decode, encode

_POLLIN = int(zmq.POLLIN)
_CLOSE_S = 10.0
_START_S = 60.0
"""Seconds until an agent must have said hello: Python and zmq may come from a slow file system."""


class LocalExecutor(Polling):
    """Runs chores on this machine.

    Parameters
    ----------
    workers : int, optional
        Cores' worth of chores that run at a time; may exceed the cores there are. Default: the
        cores that this process may use.
    gpus : int
        GPUs that chores may ask for.
    set_cpu_affinity : bool
        Whether each slot is pinned to its cores.
    sync : bool
        Whether every result is put on the disk before it counts (``durability="power"``).
    lease : float
        Seconds of an agent's silence after which it is lost.
    max_chores, max_rss : int
        A slot is replaced after so many chores, or when it occupies more bytes than this (0: its
        share of the memory there is).
    python : str, optional
        The interpreter of the workers; default: the driver's.

    Raises
    ------
    UsageError
        If a number is out of range.
    """

    name = "local"

    def __init__(
        self,
        workers: int | None = None,
        gpus: int = 0,
        *,
        set_cpu_affinity: bool = False,
        sync: bool = False,
        lease: float = 10.0,
        max_chores: int = 10_000,
        max_rss: int = 0,
        python: str | None = None,
    ) -> None:
        if not hasattr(os, "waitid"):
            raise UsageError("The local executor needs Linux, or macOS with Python 3.13.")
        self._cores = processes.usable_cores()
        self._workers = len(self._cores) if workers is None else workers
        numbers = (("workers", self._workers, 1), ("gpus", gpus, 0), ("max_chores", max_chores, 1))
        for label, value, least in numbers:
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UsageError(f"{label} must be a whole number of at least {least}, not {value!r}.")
        if not lease > 0:
            raise UsageError(f"lease must be a positive number of seconds, not {lease!r}.")
        self._gpus = gpu_names(gpus)
        self._affinity = set_cpu_affinity
        self._sync = sync
        super().__init__(lease)
        self._max_chores = max_chores
        self._max_rss = max_rss or processes.fair_share(self._workers)
        self._python = python or sys.executable
        self._context: RunContext | None = None
        self._agent: AgentProcess | None = None
        self._home: Path | None = None
        self._home_lock = -1
        self._count = 0
        self._restarts = Restarts()
        self._backlog: list[Task] = []
        self._failed: Failure | None = None
        self._heard = self._beat = 0.0
        self._look = 0.0

    # -- start

    def start(self, context: RunContext) -> None:
        """Start the agent; returns at once.

        Raises
        ------
        MatForgeError
            If the executor was started before.
        """
        if self._context is not None:
            raise MatForgeError("An executor serves one run; make another one for another run.")
        self._context = context
        self._zmq = zmq.Context(io_threads=1)
        self._socket: zmq.Socket[bytes] = self._zmq.socket(zmq.ROUTER)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            self._socket.setsockopt(option, 0)
        self._poller.register(self._socket, zmq.POLLIN)
        try:
            sweep_abandoned()
            self._home, self._home_lock = private_directory()
            self._endpoint = f"ipc://{self._home}/driver"
            self._socket.bind(self._endpoint)
            self._start_agent()
        except (OSError, zmq.ZMQError) as error:
            self._fail(f"The temporary directory {tempfile.gettempdir()} cannot be used: {error}.", "")

    def _start_agent(self) -> None:
        assert self._home is not None
        self._count += 1
        try:
            self._agent = AgentProcess(
                self._count, self._home / str(self._count), self._config(), self._home_lock
            )
        except OSError as error:
            self._fail(f"{error.filename or self._python} cannot be started: {error.strerror or error}.", "")
            return
        self._poller.register(self._agent.read_end, zmq.POLLIN)
        self._heard = self._seen = self._beat = time.monotonic()

    def _config(self) -> AgentConfig:
        """What every agent of this executor is told."""
        assert self._context is not None
        return AgentConfig(
            run_dir=str(self._context.run_dir.resolve()),
            epoch=self._context.epoch,
            agent=0,
            endpoint=self._endpoint,
            identity="",
            token="",
            scratch="",
            workers=self._workers,
            cores=self._cores,
            gpus=self._gpus,
            affinity=self._affinity,
            sync=self._sync,
            environment=dict(self._context.environment),
            sys_path=[os.path.abspath(entry) for entry in sys.path],
            python=self._python,
            beat_s=min(1.0, self._lease / 5),
            max_chores=self._max_chores,
            max_rss=self._max_rss,
        )

    # -- the protocol

    def capacity(self) -> Capacity:
        """One node with as many cores as there are workers; its end is that of the Slurm job it is in."""
        gpus = len(self._gpus)
        return Capacity(
            1, self._workers, gpus, self._workers, gpus,
            queue_depth=max(64, 2 * self._workers),
            ends_at=allocation_end(),
            memory_per_node=processes.memory_limit(),
        )  # fmt: skip

    def submit(self, tasks: Sequence[Task]) -> None:
        """Hand tasks to the agent, or keep them until it has started."""
        if not tasks:
            return
        if self._failed is not None:
            self._ready += [Lost(task.attempt, self._failed) for task in tasks]
        elif self._agent is not None and self._agent.connected and not self._agent.link.lost:
            self._send(self._agent, self._agent.link.tasks_message(tasks))
        else:
            self._backlog += tasks

    def cancel(self, attempts: Iterable[Attempt]) -> None:
        """Stop attempts; see the protocol."""
        wanted = set(attempts)
        if self._backlog:
            kept = []
            for task in self._backlog:
                if task.attempt in wanted:
                    failure = Failure(
                        FailureKind.CANCELLED, f"{task.attempt.chore_id}: it was cancelled before it ran."
                    )
                    self._ready.append(Finished(task.attempt, Usage(), failure=failure))
                else:
                    kept.append(task)
            self._backlog = kept
        if self._agent is not None:
            message = self._agent.link.cancel_message(wanted)
            if message is not None:
                self._send(self._agent, message)

    def withdraw(self) -> None:
        """Take back what has not begun; see the protocol."""
        self._ready += [Withdrawn(task.attempt) for task in self._backlog]
        self._backlog.clear()
        if self._agent is not None and self._agent.connected:
            self._send(self._agent, self._agent.link.withdraw_message())

    def _turn(self, now: float) -> None:
        if self._context is not None:
            self._hear(now)
            self._look_after_agent(now)

    def _away(self, seconds: float) -> None:
        self._heard += seconds

    def _woken_by(self, ready: Mapping[Any, int]) -> None:
        if self._agent is not None and self._agent.read_end in ready:
            self._look = 0.0

    @property
    def agent_pid(self) -> int | None:
        """Process id of the agent, if there is one now."""
        return self._agent.process.pid if self._agent is not None else None

    # -- the agent

    def _send(self, agent: AgentProcess, frames: list[bytes]) -> None:
        self._beat = time.monotonic()
        with suppress(zmq.ZMQError):  # an agent that has just ended: that is noticed elsewhere
            self._socket.send_multipart([agent.identity, *frames], zmq.NOBLOCK)

    def _hear(self, now: float) -> None:
        """Read all messages that are there."""
        while int(self._socket.get(zmq.EVENTS)) & _POLLIN:
            identity, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            agent = self._agent
            if agent is None or identity != agent.identity:
                continue  # the last words of an agent that was given up
            self._heard = now
            message = decode(frames[0])
            kind = message["t"]
            if kind == "reports":
                reports = agent.link.reports(message, frames, now)
                self._ready += reports
                if any(isinstance(r, Finished) for r in reports):
                    self._restarts.works()
            elif kind == "hello":
                self._welcome(agent, message)
            elif kind == "failed":
                self._give_up(Failure.from_dict(message["failure"]))

    def _welcome(self, agent: AgentProcess, message: dict[str, str]) -> None:
        if message["version"] != __version__:
            self._give_up(
                Failure(
                    FailureKind.START_FAILED,
                    f"The agent on {message['host']} is MatForge {message['version']}, "
                    f"and the driver is {__version__}.",
                )
            )
            return
        agent.link.host = message["host"]
        agent.connected = True
        backlog, self._backlog = self._backlog, []
        if backlog:
            self._send(agent, agent.link.tasks_message(backlog))

    def _look_after_agent(self, now: float) -> None:
        agent = self._agent
        if agent is None or now < self._look:
            return
        self._look = now + self._lease / 10
        if agent.process.poll() is not None:
            self._lose_agent(f"its agent ended with exit code {agent.process.returncode}", now)
        elif now - self._heard > (patience := self._lease if agent.connected else _START_S):
            self._lose_agent(f"its agent was silent for {patience:g} seconds", now)
        elif agent.connected and now - self._beat > 1.0:
            self._send(agent, [encode({"t": "beat"})])

    def _lose_agent(self, reason: str, now: float) -> None:
        """Everything in flight is lost; start another agent, unless that has happened too often."""
        agent, self._agent = self._agent, None
        assert agent is not None
        self._poller.unregister(agent.read_end)
        stderr = agent.end()
        self._ready += agent.link.lose_all(node_lost(f"The node was lost: {reason}.", stderr))
        if self._restarts.count(now, agent.link.lost):
            self._fail(f"The agent on this machine has ended {RESTARTS} times: {reason}.", stderr)
        else:
            self._start_agent()

    def _fail(self, message: str, stderr: str) -> None:
        last = next((line for line in reversed(stderr.splitlines()) if line.strip()), "")
        said = f" It said: {last.strip()[:300]}" if last else ""
        self._give_up(Failure(FailureKind.START_FAILED, message + said, stderr=stderr))

    def _give_up(self, failure: Failure) -> None:
        self._failed = failure
        self._ready.append(ExecutorFailed(failure))
        lost: list[Report] = [Lost(task.attempt, failure) for task in self._backlog]
        if self._agent is not None:
            lost += self._agent.link.lose_all(failure)
        self._backlog.clear()
        self._ready += lost

    def close(self, *, kill: bool = False) -> None:
        """End the agent and all its slots; see the protocol."""
        if self._closed:
            return
        self._closed = True
        if self._agent is not None:
            agent, self._agent = self._agent, None
            self._send(agent, [encode({"t": "bye", "kill": kill})])
            if not agent.connected:
                # it has not begun to listen, and has no slots
                agent.process.terminate()
            # it closes the pipe when it ends; Popen.wait would look only every twentieth of a second
            if processes.readable_within(agent.read_end, _CLOSE_S):
                with suppress(subprocess.TimeoutExpired):
                    agent.process.wait(1.0)
            agent.end()
        if self._context is not None:
            self._socket.close()
            self._zmq.term()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
        if self._home_lock >= 0:
            os.close(self._home_lock)
        self._waker.close()
