"""The agent: one a node; starts and reaps slots, and is the only one who talks to the driver.

It runs no user code and imports only the standard library and zmq, so nothing a chore does can
keep it from sending its heartbeat: a slot may hold the interpreter lock for a minute and is not
lost, while an agent that is silent for the length of the lease is.

Run as ``python -m matforge.worker.agent CONFIG``; see :class:`~matforge.worker.wire.AgentConfig`.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

import zmq

from matforge._version import __version__
from matforge.worker import processes, warden
from matforge.worker.pool import Pool
from matforge.worker.slotproc import SlotProcess
from matforge.worker.wire import WIRE_VERSION, AgentConfig, decode, encode

TICK_S = 0.02
GATHER_S = 0.005
"""While there is more to do, reports are sent at most this often."""
GATHER = 64
CLOSE_S = 8.0
_POLLIN = int(zmq.POLLIN)


class Agent:
    """Connects driver and slots; single-threaded.

    ``spare`` is a child of this process that is no slot, and must live as long as it does.
    """

    def __init__(self, config: AgentConfig, config_path: str, spare: int) -> None:
        self._config = config
        self._context = zmq.Context(io_threads=1)
        self._socket = self._connect()
        self._pool = Pool(config, config_path, self._forget, spare)
        self._selector = selectors.DefaultSelector()
        self._selector.register(int(self._socket.get(zmq.FD)), selectors.EVENT_READ, None)
        if config.lifeline >= 0:
            os.set_inheritable(config.lifeline, False)
            os.set_blocking(config.lifeline, False)
            self._selector.register(config.lifeline, selectors.EVENT_READ, None)
        self._children = self._watch_children()
        self._selector.register(self._children, selectors.EVENT_READ, None)
        self._watched: dict[int, SlotProcess] = {}
        now = time.monotonic()
        self._heard = self._sent = now
        self._next_tick = self._next_check = now
        self._orders: dict[str, Any] | None = None
        """The order to end, once there is one."""
        self._told = False
        """Whether the driver has said ``bye``; else it has probably ended, or is about to."""

    def _connect(self) -> zmq.Socket[bytes]:
        connection: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        connection.setsockopt(zmq.IDENTITY, self._config.identity.encode())
        connection.setsockopt(zmq.LINGER, 500)
        connection.setsockopt(zmq.SNDHWM, 0)
        connection.setsockopt(zmq.RCVHWM, 0)
        if keys := self._config.curve:
            connection.setsockopt(zmq.CURVE_SERVERKEY, keys["server"].encode())
            connection.setsockopt(zmq.CURVE_PUBLICKEY, keys["public"].encode())
            connection.setsockopt(zmq.CURVE_SECRETKEY, keys["secret"].encode())
        connection.connect(self._config.endpoint)
        return connection

    @staticmethod
    def _watch_children() -> socket.socket:
        """A socket that becomes readable when a child ends."""
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
        return reader

    def run(self) -> None:
        """Work until the driver says ``bye`` or has ended; leaves no process behind."""
        signal.signal(signal.SIGTERM, lambda _number, _frame: self._end(kill=True))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._send(
            {
                "t": "hello", "version": __version__, "wire": WIRE_VERSION, "pid": os.getpid(),
                "host": socket.gethostname(), "python": sys.version.split()[0],
            }
        )  # fmt: skip
        while self._orders is None:
            self._turn(self._timeout())
        orders: dict[str, Any] | None = None
        deadline = time.monotonic() + CLOSE_S
        while orders is None or (self._pool.slots and time.monotonic() < deadline):
            if orders != self._orders:
                orders = self._orders
                self._pool.close(kill=orders["kill"], now=time.monotonic())
            self._turn(TICK_S)
        processes.kill_children()
        self._flush()
        if self._told:
            self._send({"t": "gone"})
        shutil.rmtree(self._config.scratch, ignore_errors=True)
        parent = self._config.parent
        if parent and (
            os.getppid() != parent or (not self._told and processes.ends_within(parent, warden.DYING_S))
        ):
            # nobody else is left to remove the driver's private directory
            shutil.rmtree(os.path.dirname(self._config.scratch), ignore_errors=True)
        self._socket.close()
        self._context.term()

    def _end(self, *, kill: bool) -> None:
        if self._orders is None or kill:
            self._orders = {"kill": kill}

    def _timeout(self) -> float:
        if self._pool.reports:
            return GATHER_S
        return TICK_S if self._pool.restless else self._config.beat_s

    def _turn(self, timeout: float) -> None:
        """Wait for something to happen, and deal with all that has."""
        # zmq's descriptor only tells of changes, so what is there already must be asked for
        if int(self._socket.get(zmq.EVENTS)) & _POLLIN:
            timeout = 0.0
        events = self._selector.select(timeout)
        now = time.monotonic()
        self._hear(now)
        finished = []
        for key, _ in events:
            slot = key.data
            if slot is not None:
                if key.fd in self._watched and self._pool.receive(slot, now):
                    finished.append(slot)
            elif key.fd == self._children.fileno():
                self._drain_children(now)
            elif key.fd == self._config.lifeline:
                self._end(kill=True)
        self._pool.dispatch(now, finished)
        if now >= self._next_tick:
            self._next_tick = now + TICK_S
            if self._pool.restless:
                self._pool.tick(now)
                self._pool.dispatch(now)
        if now >= self._next_check:
            self._check(now)
        self._follow_slots()
        if self._pool.failed or (self._pool.reports and self._worth_sending(now)):
            self._flush()

    def _worth_sending(self, now: float) -> bool:
        return not self._pool.waiting or len(self._pool.reports) >= GATHER or now - self._sent >= GATHER_S

    def _drain_children(self, now: float) -> None:
        with suppress(BlockingIOError):
            while self._children.recv(4096):
                pass
        self._pool.reap(now)

    def _follow_slots(self) -> None:
        """Listen to slots that have been started, and no longer to those that have ended."""
        for slot in self._pool.places.started:
            if slot.near.fileno() < 0:  # it has ended already
                continue
            self._watched[slot.near.fileno()] = slot
            self._selector.register(slot.near, selectors.EVENT_READ, slot)
        self._pool.places.started.clear()

    def _forget(self, slot: SlotProcess) -> None:
        descriptor = slot.near.fileno()
        if self._watched.pop(descriptor, None) is not None:
            self._selector.unregister(slot.near)

    def _check(self, now: float) -> None:
        """Once a beat: say that we live, and see whether the driver does."""
        self._next_check = now + self._config.beat_s
        if now - self._sent >= 0.9 * self._config.beat_s:
            self._send({"t": "beat"})
        parent, lease = self._config.parent, self._config.lease_s
        if (parent and os.getppid() != parent) or (lease and now - self._heard > lease):
            self._end(kill=True)
        # a signal may come before its handler is in place
        self._pool.reap(now)
        self._pool.tick(now)
        self._pool.memory.look(now)

    # -- the driver

    def _hear(self, now: float) -> None:
        while int(self._socket.get(zmq.EVENTS)) & _POLLIN:
            frames = self._socket.recv_multipart(zmq.NOBLOCK)
            self._heard = now
            message = decode(frames[0])
            kind = message["t"]
            if kind == "tasks":
                self._pool.add(message["profiles"], message["tasks"], frames[1])
            elif kind == "cancel":
                self._pool.cancel(message["h"], now)
            elif kind == "withdraw":
                self._pool.withdraw()
            elif kind == "bye":
                self._told = True
                self._end(kill=message["kill"])

    def _send(self, header: dict[str, Any], blobs: bytes = b"") -> None:
        self._sent = time.monotonic()
        with suppress(zmq.Again):
            self._socket.send_multipart([encode(header), blobs], zmq.NOBLOCK)

    def _flush(self) -> None:
        pool = self._pool
        if pool.reports:
            self._send({"t": "reports", "r": pool.reports}, b"".join(pool.blobs))
            pool.reports, pool.blobs = [], []
        if pool.failed is not None:
            self._send({"t": "failed", "failure": pool.failed.as_dict()})
            pool.failed = None


def main() -> None:
    """Entry point; the one argument is the path of the configuration."""
    config_path = sys.argv[1]
    config = AgentConfig.load(config_path)
    if config.parent:
        # SIGTERM, not SIGKILL: the agent still has to end what its slots have started
        processes.die_with_parent(config.parent, signal.SIGTERM)
    guard = warden.start(config)
    processes.adopt_orphans()
    Agent(config, config_path, guard).run()
    processes.leave()


if __name__ == "__main__":
    main()
