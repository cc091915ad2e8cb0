"""What the agent knows of a slot, when both reach for the same packets."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from matforge.worker.slotproc import AgentTask, SlotProcess
from matforge.worker.wire import PACKET_LIMIT, Profile


class Greedy:
    """The slot's end of the channel, where the slot takes a packet between any two of the agent's."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.taken = 0

    def recv(self, size: int, flags: int) -> bytes:
        packet = self._end.recv(size, flags)
        try:
            self.taken += bool(self._end.recv(size, flags))
        except BlockingIOError:
            pass
        return packet

    def close(self) -> None:
        self._end.close()


@pytest.mark.parametrize("length", [10, PACKET_LIMIT + 1], ids=["in the packet", "in a file"])
def test_what_is_taken_back_is_what_the_slot_did_not_take(tmp_path: Path, length: int) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    greedy = Greedy(far)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        slot = SlotProcess(1, 0, Profile(), process, near, greedy, tmp_path, 0.0)  # type: ignore[arg-type]
        tasks = [AgentTask(n, 0, [n, 0, f"chore-{n}"], b"x" * length) for n in range(4)]
        for task in tasks:
            assert slot.give(task)
        recovered = slot.take_back()
    assert [task.handle for task in recovered] == [0, 2]
    assert [task.handle for task in slot.assigned] == [1, 3]
    assert greedy.taken == 2
    assert all(task.slot is None for task in recovered)
    near.close()
    far.close()
