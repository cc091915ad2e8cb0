"""Waiting for reports, as executors do that hear from agents and must know how long those are silent."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import zmq

from matforge.executors.protocol import Report
from matforge.executors.waker import Waker


class Polling(ABC):
    """The waiting half of an executor; subclasses say what is done in a turn.

    Parameters
    ----------
    lease : float
        Seconds of an agent's silence after which it is lost. A fifth of it is the longest wait, so
        that somebody looks; and whoever sleeps a tenth of it longer than asked for has stood still.
    """

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._ready: list[Report] = []
        self._closed = False
        self._seen = time.monotonic()
        """When this process was last known to run."""
        self._waker = Waker()
        self._poller = zmq.Poller()
        self._poller.register(self._waker.descriptor, zmq.POLLIN)

    @abstractmethod
    def _turn(self, now: float) -> None:
        """Take in all that has happened, and put what there is to report into ``_ready``."""

    @abstractmethod
    def _away(self, seconds: float) -> None:
        """The driver was elsewhere for so long, or stood still: that is not the agents' silence."""

    @abstractmethod
    def _woken_by(self, ready: Mapping[Any, int]) -> None:
        """Look at the descriptors that have become readable."""

    def poll(self, timeout: float | None) -> list[Report]:
        """Reports that have arrived; see the protocol."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._closed:
            now = time.monotonic()
            if now - self._seen > self._lease / 10:
                self._away(now - self._seen)
            self._seen = now
            self._turn(now)
            if self._ready:
                reports, self._ready = self._ready, []
                self._seen = time.monotonic()
                return reports
            left = self._lease / 5 if deadline is None else min(deadline - now, self._lease / 5)
            if left <= 0 or self._wait(left):
                break
        self._seen = time.monotonic()
        return []

    def _wait(self, seconds: float) -> bool:
        """Wait for anything; whether :meth:`wake` was called."""
        begun = time.monotonic()
        ready = dict(self._poller.poll(int(seconds * 1000) + 1))
        self._seen = time.monotonic()
        overslept = self._seen - begun - seconds
        if overslept > self._lease / 10:  # the whole machine, or this process, stood still
            self._away(overslept)
        self._woken_by(ready)
        if self._waker.descriptor not in ready:
            return False
        self._waker.clear()
        return True

    def wake(self) -> None:
        """Make a waiting :meth:`poll` return."""
        self._waker.wake()

    def now(self) -> float:
        """Unix time."""
        return time.time()
