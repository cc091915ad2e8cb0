"""What shall go wrong, and when."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

COMMIT = r"^POST /api/datasets/.*/commit/"
"""Matches the requests that count as commits."""


@dataclass
class Fault:
    """One way to answer a request that matches ``pattern`` (searched in ``METHOD path?query``)."""

    pattern: str
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "out of order"
    times: int = 1
    """How many requests it spoils; negative: all."""
    after: bool = False
    """Do what was asked first, then fail: the answer is lost, the deed is done."""
    drop: bool = False
    """Close the connection without an answer."""
    hook: Callable[[], Any] | None = None
    """Called when the fault strikes, before anything else: a test can wait, or act meanwhile."""

    def body(self) -> bytes:
        return json.dumps({"error": self.message}).encode()


class FaultQueue:
    """Faults in order; the first that matches a request and is not used up strikes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._chance: tuple[random.Random, float, list[Fault]] | None = None

    def add(self, pattern: str = COMMIT, status: int = 503, **options: Any) -> Fault:
        """Queue a fault; the arguments are those of :class:`Fault`."""
        fault = Fault(pattern, status, **options)
        with self._lock:
            self._faults.append(fault)
        return fault

    def at_random(self, rate: float, faults: list[Fault], seed: int) -> None:
        """Let a share of all requests fail in one of these ways."""
        with self._lock:
            self._chance = (random.Random(seed), rate, faults)

    def clear(self) -> None:
        """From now on everything works."""
        with self._lock:
            self._faults.clear()
            self._chance = None

    def strike(self, request: str) -> Fault | None:
        """The fault for this request, if any; it counts as used."""
        with self._lock:
            for fault in self._faults:
                if fault.times and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
            if self._chance is not None:
                dice, rate, faults = self._chance
                fitting = [f for f in faults if re.search(f.pattern, request)]
                if fitting and dice.random() < rate:
                    return dice.choice(fitting)
        return None
