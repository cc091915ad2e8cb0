"""What a Flux instance is told and what it tells, as plain data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class NodeState:
    """What Flux says of one broker's node."""

    rank: int
    host: str
    cores: int
    gpus: int
    free_cores: int
    free_gpus: int
    up: bool
    """Whether jobs may be started there: it is there, and nobody has drained it."""


@dataclass(frozen=True, slots=True)
class JobOrder:
    """A job to submit."""

    name: str
    argv: tuple[str, ...]
    ranks: tuple[int, ...]
    """Brokers on which it may be placed."""
    tasks: int = 1
    cores: int = 1
    """Of each task, as is ``gpus``."""
    gpus: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    stdout: str = os.devnull
    stderr: str = os.devnull
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the job shell, ``{"mpi": "pmi2"}`` for example."""


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something has happened to a job of ours; ``name`` and ``context`` as in Flux's RFC 21.

    Two names are our own: ``submitted`` (the context has the id) and ``refused``. The context of ``alloc``
    has the cores of each rank as ``cores``, and how long the job may live as ``seconds`` if that has an end.
    """

    key: int
    name: str
    context: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Inventory:
    """All nodes, by rank; sent anew whenever one of them has changed."""

    nodes: Mapping[int, NodeState]
    offline: frozenset[int] = frozenset()
    """Brokers that have been lost since the last one."""


@dataclass(frozen=True, slots=True)
class BrokerLost:
    """The connection to Flux has ended; nothing more will come."""

    reason: str


Event = JobEvent | Inventory | BrokerLost
