"""Cores, GPUs and slot processes of one agent: where a task can run, and what is started for it.

A slot occupies cores while it has work; idle ones of another profile stay warm as long as there is
room for them. A slot holds its GPUs until it ends, because its memory on them does.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress

from matforge.worker.slotproc import SlotProcess, start_slot
from matforge.worker.wire import AgentConfig, Profile

RETIRE_S = 2.0
"""Seconds that an idle slot has to end by itself."""


class Places:
    """The slots there are, and what is free.

    Parameters
    ----------
    refused : callable
        Told the profile's number and the reason if a slot cannot be started.
    """

    def __init__(
        self, config: AgentConfig, config_path: str, refused: Callable[[int, str, float], None]
    ) -> None:
        self.slots: dict[int, SlotProcess] = {}
        """By process id."""
        self.started: list[SlotProcess] = []
        """Slots that the agent does not listen to yet."""
        self.idle: list[SlotProcess] = []
        self.retiring = False
        """Whether a slot has been told to end, so that somebody must see to it that it does."""
        self._config = config
        self._config_path = config_path
        self._refused = refused
        self._free_cores = list(range(config.workers - 1, -1, -1))
        self._free_gpus = list(config.gpus)
        self._most = config.workers + max(2, config.workers // 2)
        self._count = 0

    def place(self, number: int, profile: Profile, now: float) -> SlotProcess | None:
        """A slot of profile ``number`` with its cores taken, or None if the task must wait."""
        if len(self._free_cores) < profile.cores:
            return None
        for index in range(len(self.idle) - 1, -1, -1):  # the one used last has the warmest caches
            slot = self.idle[index]
            if slot.profile_number == number and self._take_cores(slot):
                del self.idle[index]
                slot.since = now
                return slot
        return self._start(number, profile, now)

    def _take_cores(self, slot: SlotProcess) -> bool:
        if slot.pin:
            if not set(slot.pin) <= set(self._free_cores):
                return False
            slot.held = slot.pin
            self._free_cores = [c for c in self._free_cores if c not in slot.pin]
        else:
            slot.held = tuple(self._free_cores.pop() for _ in range(slot.profile.cores))
        return True

    def _start(self, number: int, profile: Profile, now: float) -> SlotProcess | None:
        if len(self._free_gpus) < profile.gpus:
            self._retire_holder_of_gpus()
            return None
        if len(self.slots) >= self._most and self.idle:
            self.retire(self.idle.pop(0))
        gpus = tuple(self._free_gpus[: profile.gpus])
        cores = tuple(self._free_cores[-profile.cores :])
        known = self._config.cores
        pin = tuple(known[c % len(known)] for c in cores) if self._config.affinity and known else ()
        self._count += 1
        try:
            slot = start_slot(self._config, self._config_path, self._count, number, profile, gpus, pin, now)
        except OSError as error:
            what = error.filename or self._config.python
            self._refused(number, f"{what}: {(error.strerror or str(error)).lower()}", now)
            return None
        slot.pin = cores if pin else ()
        del self._free_gpus[: profile.gpus]
        self._take_cores(slot)
        self.slots[slot.pid] = slot
        self.started.append(slot)
        return slot

    def _retire_holder_of_gpus(self) -> None:
        for slot in self.idle:
            if slot.gpus:
                self.idle.remove(slot)
                self.retire(slot)
                return

    def retire(self, slot: SlotProcess) -> None:
        """Let an idle slot end by itself; it is killed if it does not."""
        slot.doomed = True
        slot.kill_at = time.monotonic() + RETIRE_S
        self.retiring = True
        with suppress(OSError):
            slot.near.shutdown(socket.SHUT_WR)

    def release(self, slot: SlotProcess) -> None:
        """It has no work any more: its cores are free, and it may get other work."""
        self._free_cores.extend(slot.held)
        slot.held = ()
        if not slot.doomed:
            self.idle.append(slot)

    def remove(self, slot: SlotProcess) -> None:
        """Its process has ended."""
        del self.slots[slot.pid]
        if slot in self.idle:
            self.idle.remove(slot)
        self._free_cores.extend(slot.held)
        slot.held = ()
        self._free_gpus.extend(slot.gpus)
