"""What driver, agent and slot say to each other. Standard library only.

Driver and agent exchange zmq messages: a JSON header and binary frames. Nothing that unpickles
is ever read from a socket. Both ways many items share a message.

========  =======================================================================================
driver    ``{"t": "tasks", "profiles": {number: profile}, "tasks": [task, ...]}`` + payloads
          ``{"t": "cancel", "h": [handle, ...]}``, ``{"t": "beat"}``, ``{"t": "bye", "kill": bool}``
agent     ``{"t": "hello", ...}``, ``{"t": "reports", "r": [report, ...]}`` + inline results,
          ``{"t": "beat"}``, ``{"t": "failed", "failure": {...}}``, ``{"t": "gone"}``: all its slots are
========  =======================================================================================

A *task* is a list whose places are named by :class:`TaskField`. A *profile* says what a slot must
be to run it. The driver gives each attempt a *handle*, a small integer, so that nobody else has to
look at attempts. Reports are lists whose first place is one of :data:`STARTED`, :data:`FINISHED`,
:data:`LOST`, :data:`WITHDRAWN`.

Agent and slot use a pair of packet sockets: one packet is JSON, a zero byte, and an optional blob.
Packets keep their boundaries, so the agent can take back, atomically, what a slot has not begun.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

WIRE_VERSION = 1
INLINE_LIMIT = 32 * 1024
"""As ``executors.protocol.INLINE_LIMIT``; workers import nothing of the executors."""
STARTED, FINISHED, LOST, WITHDRAWN, HELLO = "S", "F", "L", "W", "H"
PACKET_LIMIT = 128 * 1024
"""Bytes: longer packets to a slot go through a file in the agent's private directory."""
PACKET_BUFFER = 512 * 1024


class TaskField(IntEnum):
    """Places in a task on the wire."""

    HANDLE = 0
    PROFILE = 1
    CHORE_ID = 2
    TAG = 3
    FUNCTION = 4
    PAYLOAD = 5
    """Its length (the payloads follow each other in the second frame), or a location as a list."""
    COMMAND = 6
    INPUTS = 7
    DIRECTORY = 8
    SEED = 9
    TIMEOUT = 10
    """Seconds, or None; this place and the next are left out where both are None."""
    MEMORY = 11
    """Bytes, or None."""


class ReportField(IntEnum):
    """Places in a ``FINISHED`` report.

    The others are ``[STARTED, handle, slot]`` , ``[LOST, handle, failure]`` and
    ``[WITHDRAWN, handle]``.
    """

    KIND = 0
    HANDLE = 1
    USAGE = 2
    """``[slot, started_at, wall_s, cpu_s, max_rss]``."""
    RESULT = 3
    INLINE = 4
    """Length of the pickled result in the second frame, 0 if it is too long to travel."""
    REPORT = 5
    FAILURE = 6
    PRINTED = 7


@dataclass(frozen=True, slots=True)
class Profile:
    """What a slot must be: part of a task's resources, and whether it serves only once."""

    num_tasks: int = 1
    cores_per_task: int = 1
    gpus_per_task: int = 0
    mpi: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    inherit_env: bool = True
    once: bool = False
    command: bool = False
    """Whether it only launches programs; such a slot runs no function of a user."""

    @property
    def cores(self) -> int:
        """Cores of all tasks together."""
        return self.num_tasks * self.cores_per_task

    @property
    def gpus(self) -> int:
        """GPUs of all tasks together."""
        return self.num_tasks * self.gpus_per_task

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "env": dict(self.env)}


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """All that an agent is told, in a 0600 file whose path is its one argument.

    Never in its arguments, which every user of the node can read.
    """

    run_dir: str
    epoch: int
    agent: int
    """Number of the agent within the epoch; in the names of segments."""
    endpoint: str
    identity: str
    token: str
    scratch: str
    """Private directory (0700) on this node, removed with the agent."""
    workers: int
    cores: list[int] = field(default_factory=list)
    gpus: list[str] = field(default_factory=list)
    affinity: bool = False
    sync: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    sys_path: list[str] = field(default_factory=list)
    python: str = ""
    parent: int = 0
    """Process that must stay the agent's parent; 0 for an agent started by someone else."""
    lifeline: int = -1
    """Descriptor whose end of file means that the driver has ended."""
    beat_s: float = 1.0
    lease_s: float = 0.0
    """Seconds of silence after which the driver counts as dead; 0: never (it is the parent)."""
    max_chores: int = 10_000
    max_rss: int = 0
    start_timeout_s: float = 120.0
    curve: dict[str, str] = field(default_factory=dict)
    """``server``, ``public``, ``secret`` keys of a CURVE connection; empty on the same host."""
    endpoints: list[str] = field(default_factory=list)
    """Where the driver may be reached from another node, to be tried in order; ``endpoint`` is empty then."""
    version: int = WIRE_VERSION

    def save(self, path: Path) -> None:
        """Write it so that only its owner can read it."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(self), file)

    @classmethod
    def load(cls, path: str) -> AgentConfig:
        """Inverse of :meth:`save`; keys of later versions are ignored."""
        with open(path) as file:
            data = json.load(file)
        return cls(**{k: v for k, v in data.items() if k in cls.__slots__})


BOOT = (
    "import json,sys;c=json.load(open(sys.argv[1]));sys.path[:]=c['sys_path'];"
    "from matforge.worker.{module} import main;main()"
)
"""Program of agents and slots: it imports from exactly where the driver does."""


def python_arguments(python: str, module: str, *arguments: str) -> list[str]:
    """Command line that runs ``main`` of ``matforge.worker.<module>``; the config's path comes first."""
    return [python, "-P", "-c", BOOT.format(module=module), *arguments]


_dumps = json.JSONEncoder(separators=(",", ":")).encode
_loads = json.JSONDecoder().decode


def pack(header: Any, blob: bytes = b"") -> bytes:
    """One packet between agent and slot."""
    return _dumps(header).encode() + b"\0" + blob


def unpack(packet: bytes) -> tuple[Any, bytes]:
    """Inverse of :func:`pack`."""
    head, _, blob = packet.partition(b"\0")
    return _loads(head.decode()), blob


def encode(header: Any) -> bytes:
    """JSON header of a zmq message."""
    return _dumps(header).encode()


def decode(header: bytes) -> Any:
    """Inverse of :func:`encode`."""
    return _loads(header.decode())
