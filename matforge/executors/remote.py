"""An agent on another node as the driver sees it: its block, its configuration, its tasks."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from matforge.executors.channel import AgentLink
from matforge.executors.hub import Hub
from matforge.executors.placement import Block, Node
from matforge.model import Attempt
from matforge.worker import processes
from matforge.worker.wire import AgentConfig, python_arguments

EARLY = 0.05
"""The part of an agent's time, from its beginning, that what needs all of it can do without."""
EARLY_S = 2.0
"""The same in seconds, at least: a slot has to be started, too."""


class RemoteAgent:
    """One agent from the order to start it until it has gone.

    Parameters
    ----------
    number : int
        Number within the run's epoch.
    node, block :
        Where it is, and what it holds there.
    slots : int
        Cores' worth of chores that it runs at a time.
    home : Path
        A 0700 directory that all nodes see.
    epoch : int
        Number of the driver within the run.
    """

    def __init__(self, number: int, node: Node, block: Block, slots: int, home: Path, epoch: int = 1) -> None:
        self.number = number
        self.node = node
        self.block = block
        self.slots = slots
        self.identity = f"agent-{number}".encode()
        self.token = secrets.token_hex(8)
        self.link = AgentLink()
        self.config_path = home / f"agent-{epoch}-{number}.json"
        self.stderr_path = home / f"agent-{epoch}-{number}.err"
        self.connected = False
        self.lost = False
        self.told_to_end = False
        self.alone: Attempt | None = None
        """What it was given that must have it for itself, until that has ended."""
        self.heard = 0.0
        self.launched: float | None = None
        """When its process was started (monotonic), as far as the resource manager has told."""
        self.limit_s: float | None = None
        """What the resource manager has given it, if that has an end."""
        self.welcomed = 0.0
        """When it said hello (monotonic)."""
        self.gone = False
        """Whether it has said that it ends, and that all its slots have ended."""

    def configure(self, hub: Hub, config: AgentConfig, *, near: bool) -> list[str]:
        """Write its configuration and put its key on the list; the command line that starts it.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        replace(
            config, agent=self.number, identity=self.identity.decode(), token=self.token,
            workers=self.slots, curve=hub.admit(self.identity), endpoints=hub.endpoints(near=near),
        ).save(self.config_path)  # fmt: skip
        return python_arguments(config.python, "remote", str(self.config_path))

    def early(self, limit_s: float) -> float:
        """What begins until then (monotonic) has all of its time, if that is so long."""
        return self.welcomed + max(EARLY_S, EARLY * limit_s)

    def fresh(self, now: float) -> bool:
        """Whether what begins now may have as long as any agent lives."""
        return self.limit_s is None or not self.connected or now <= self.early(self.limit_s)

    @property
    def open(self) -> bool:
        """Whether it takes chores at all."""
        ends = self.lost or self.told_to_end or self.link.lost
        return self.connected and not (ends or self.block.leaving or self.alone)

    def stderr(self) -> str:
        """The tail of what it wrote to standard error."""
        return processes.tail(self.stderr_path)

    def forget(self) -> None:
        """Remove its files; what it complained about stays."""
        self.config_path.unlink(missing_ok=True)
        with suppress(OSError):
            if not self.stderr_path.stat().st_size:
                self.stderr_path.unlink()
