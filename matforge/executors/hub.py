"""Where agents on other nodes connect back: TCP with CURVE and an allow-list of keys.

Many users share a network, and whoever may speak here may have a slot unpickle something. So every
agent has a key pair of its own, made for it and kept in its 0600 configuration; connections
with any other key are refused before a message is read (a CURVE server without such a list
accepts every stranger).
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

import zmq
from zmq.utils import z85

from matforge.model import UsageError

_POLLIN = int(zmq.POLLIN)
_ZAP = "inproc://zeromq.zap.01"
_SIOCGIFADDR = 0x8915
_FAST = re.compile(r"^(hsn|ib|mlx|opa|bond|cxi)")
"""Interfaces of the networks that compute nodes share, by the names that vendors give them."""
_INNER = re.compile(r"^(lo|docker|virbr|veth|br-|cni|flannel|tun|tap)")
"""Interfaces that lead nowhere but into this machine."""
LINGER_MS = 500
LOOPBACK = "127.0.0.1"


def interface_addresses() -> dict[str, str]:
    """IPv4 address of each interface that has one (Linux)."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has none
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                found[name] = socket.inet_ntoa(answer[20:24])
    return found


def own_addresses(wanted: str = "") -> list[str]:
    """Addresses at which another node may reach this one, the most promising first.

    Parameters
    ----------
    wanted : str
        An interface or an address that is to be used instead (``MATFORGE_ADDRESS``).

    Raises
    ------
    UsageError
        If ``wanted`` looks like an interface and there is none of that name.
    """
    there = interface_addresses()
    if wanted:
        if wanted in there:
            return [there[wanted]]
        if not re.search(r"[.:]", wanted):
            known = ", ".join(sorted(there)) or "none"
            raise UsageError(f"MATFORGE_ADDRESS: there is no interface {wanted!r} here; there are: {known}.")
        return [wanted]
    named: list[str] = []
    with suppress(OSError):
        named = [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    outer = {name: address for name, address in there.items() if not _INNER.match(name)}
    fast = [address for name, address in sorted(outer.items()) if _FAST.match(name)]
    ordered = [*fast, *(a for a in named if a in outer.values()), *outer.values()]
    return list(dict.fromkeys(a for a in ordered if not a.startswith("127.")))


class Hub:
    """A socket for all agents of one executor.

    Raises
    ------
    zmq.ZMQError
        If no port can be had.
    """

    def __init__(self) -> None:
        self._context = zmq.Context(io_threads=1)
        self._public, self._secret = zmq.curve_keypair()
        self._allowed: dict[bytes, bytes] = {}
        """Identity of the agent that each public key was made for."""
        self.refused = 0
        """Connections with a key that is not on the list, and messages under another's name."""
        self._gate: zmq.Socket[bytes] = self._context.socket(zmq.REP)
        self._gate.setsockopt(zmq.LINGER, 0)
        self._gate.bind(_ZAP)
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            self._socket.setsockopt(option, 0)
        self._socket.setsockopt(zmq.CURVE_SERVER, 1)
        self._socket.setsockopt(zmq.CURVE_SECRETKEY, self._secret)
        self._socket.setsockopt(zmq.ZAP_DOMAIN, b"matforge")
        self.port = self._socket.bind_to_random_port("tcp://*")
        self._addresses = own_addresses(os.environ.get("MATFORGE_ADDRESS", ""))

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """What to poll for."""
        return self._socket, self._gate

    def endpoints(self, *, near: bool) -> list[str]:
        """Where an agent may connect; ``near``: it runs on this node."""
        # elsewhere the loopback address would lead to a process of somebody else
        addresses = [LOOPBACK] if near or not self._addresses else self._addresses
        return [f"tcp://{address}:{self.port}" for address in addresses]

    def admit(self, identity: bytes) -> dict[str, str]:
        """Make a key pair for an agent and put it on the list; its side of the connection."""
        public, secret = zmq.curve_keypair()
        self._allowed[public] = identity
        return {"server": self._public.decode(), "public": public.decode(), "secret": secret.decode()}

    def dismiss(self, identity: bytes) -> None:
        """Take an agent off the list, so that it cannot come back."""
        self._allowed = {key: name for key, name in self._allowed.items() if name != identity}

    def receive(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """Messages that are there, each with its sender."""
        self._answer_gate()
        while int(self._socket.get(zmq.EVENTS)) & _POLLIN:
            identity, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            name = identity.bytes
            # a key is good for the name that it was made for, and for no other
            if frames and frames[0].get("User-Id") == name.decode(errors="replace"):
                yield name, [frame.bytes for frame in frames]
            else:
                self.refused += 1

    def _answer_gate(self) -> None:
        """Say who may connect (ZeroMQ's RFC 27)."""
        while int(self._gate.get(zmq.EVENTS)) & _POLLIN:
            version, request, _, _, _, mechanism, *credentials = self._gate.recv_multipart()
            known = mechanism == b"CURVE" and len(credentials) == 1
            owner = self._allowed.get(z85.encode(credentials[0])) if known else None
            if owner is None:
                self.refused += 1
                answer = [b"400", b"not on the list", b"", b""]
            else:
                answer = [b"200", b"OK", owner, b""]
            self._gate.send_multipart([version, request, *answer])

    def send(self, identity: bytes, frames: list[bytes]) -> None:
        """Send to one agent; one that has gone is noticed elsewhere."""
        with suppress(zmq.ZMQError):
            self._socket.send_multipart([identity, *frames], zmq.NOBLOCK)

    def close(self) -> None:
        """Close everything; the last words to agents get a moment to leave."""
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.close()
        self._gate.close()
        self._context.term()
