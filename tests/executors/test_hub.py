"""Agents on other nodes: who may connect, where they try, and what they say when they cannot."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from matforge.executors.hub import LOOPBACK, Hub, interface_addresses, own_addresses
from matforge.executors.placement import Block, Node
from matforge.executors.remote import RemoteAgent
from matforge.model import UsageError
from matforge.worker import remote
from matforge.worker.wire import AgentConfig


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.close()


@pytest.fixture
def connect(hub: Hub) -> Iterator[Callable[..., zmq.Socket[bytes]]]:
    """Connects as an agent would, with keys of the caller's choice."""
    context = zmq.Context()
    sockets = []

    def maker(identity: bytes, keys: dict[str, str] | None) -> zmq.Socket[bytes]:
        one = context.socket(zmq.DEALER)
        sockets.append(one)
        one.setsockopt(zmq.LINGER, 0)
        one.setsockopt(zmq.IDENTITY, identity)
        if keys is not None:
            one.setsockopt(zmq.CURVE_SERVERKEY, keys["server"].encode())
            one.setsockopt(zmq.CURVE_PUBLICKEY, keys["public"].encode())
            one.setsockopt(zmq.CURVE_SECRETKEY, keys["secret"].encode())
        one.connect(f"tcp://{LOOPBACK}:{hub.port}")
        return one

    yield maker
    for one in sockets:
        one.close()
    context.term()


def heard(hub: Hub, until: Callable[[], bool] = lambda: False) -> list[tuple[bytes, list[bytes]]]:
    """Messages that come until ``until`` holds, or the first ones."""
    poller = zmq.Poller()
    for one in hub.sockets:
        poller.register(one, zmq.POLLIN)
    limit = time.monotonic() + 10
    found: list[tuple[bytes, list[bytes]]] = []
    while not found and not until():
        assert time.monotonic() < limit, "nothing came"
        poller.poll(100)
        found += hub.receive()
    return found


def test_an_agent_with_its_key_is_heard_and_answered(
    hub: Hub, connect: Callable[..., zmq.Socket[bytes]]
) -> None:
    agent = connect(b"agent-1", hub.admit(b"agent-1"))
    agent.send(b"hello")
    assert heard(hub) == [(b"agent-1", [b"hello"])]
    hub.send(b"agent-1", [b"task"])
    assert agent.recv() == b"task"
    assert hub.refused == 0


def test_a_key_that_is_not_on_the_list_is_refused(
    hub: Hub, connect: Callable[..., zmq.Socket[bytes]]
) -> None:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    stranger = connect(b"agent-1", {**hub.admit(b"agent-1"), "public": public, "secret": secret})
    stranger.send(b"run this for me")
    assert heard(hub, lambda: hub.refused > 0) == []


def test_a_connection_without_a_key_is_not_heard(hub: Hub, connect: Callable[..., zmq.Socket[bytes]]) -> None:
    plain = connect(b"agent-1", None)
    plain.send(b"run this for me")
    agent = connect(b"agent-2", hub.admit(b"agent-2"))
    agent.send(b"hello")
    assert heard(hub) == [(b"agent-2", [b"hello"])]


def test_a_key_opens_the_door_under_its_own_name_only(
    hub: Hub, connect: Callable[..., zmq.Socket[bytes]]
) -> None:
    keys = hub.admit(b"agent-1")
    hub.admit(b"agent-2")
    impostor = connect(b"agent-2", keys)
    impostor.send(b"a result")
    assert heard(hub, lambda: hub.refused > 0) == []


def test_an_agent_that_was_given_up_cannot_come_back(
    hub: Hub, connect: Callable[..., zmq.Socket[bytes]]
) -> None:
    keys = hub.admit(b"agent-1")
    hub.dismiss(b"agent-1")
    late = connect(b"agent-1", keys)
    late.send(b"a result")
    assert heard(hub, lambda: hub.refused > 0) == []


# -- where


def test_loopback_is_for_the_same_node_only(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.endpoints(near=True) == [f"tcp://{LOOPBACK}:{hub.port}"]
    monkeypatch.setattr(hub, "_addresses", ["10.1.2.3", "192.168.0.4"])
    assert hub.endpoints(near=False) == [f"tcp://10.1.2.3:{hub.port}", f"tcp://192.168.0.4:{hub.port}"]


def test_fast_networks_come_first_and_those_of_this_machine_alone_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = {
        "lo": "127.0.0.1",
        "eth0": "192.168.0.4",
        "docker0": "172.17.0.1",
        "hsn1": "10.0.0.2",
        "ib0": "10.9.0.2",
    }
    monkeypatch.setattr("matforge.executors.hub.interface_addresses", lambda: there)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: (_ for _ in ()).throw(OSError("no such name")))
    assert own_addresses() == ["10.0.0.2", "10.9.0.2", "192.168.0.4"]
    assert own_addresses("eth0") == ["192.168.0.4"]
    assert own_addresses("login.example.org") == ["login.example.org"]
    with pytest.raises(UsageError, match=r"no interface 'eth9'.*docker0, eth0"):
        own_addresses("eth9")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells the addresses of interfaces")
def test_this_machine_has_a_loopback_interface() -> None:
    assert interface_addresses()["lo"] == LOOPBACK


def test_addresses_are_tried_in_order() -> None:
    with socket.create_server((LOOPBACK, 0)) as there:
        good = f"tcp://{LOOPBACK}:{there.getsockname()[1]}"
        bad = ["tcp://no-such-host.invalid:1", f"tcp://{LOOPBACK}:1"]
        assert remote.reachable([*bad, good]) == good
        assert remote.reachable(bad) is None


# -- the agent's side


def agent_of(tmp_path: Path, hub: Hub, endpoints: list[str] | None = None) -> tuple[RemoteAgent, list[str]]:
    agent = RemoteAgent(1, Node(0, "here", 2), Block(2), 2, tmp_path)
    config = AgentConfig(
        run_dir=str(tmp_path), epoch=1, agent=0, endpoint="", identity="", token="", scratch="", workers=1,
        sys_path=sys.path, python=sys.executable,
    )  # fmt: skip
    return agent, agent.configure(hub, config, near=True)


def test_keys_are_in_a_file_of_the_owner_alone_and_not_in_the_arguments(tmp_path: Path, hub: Hub) -> None:
    agent, argv = agent_of(tmp_path, hub)
    keys = json.loads(agent.config_path.read_text())["curve"]
    assert stat.S_IMODE(agent.config_path.stat().st_mode) == 0o600
    assert len(keys) == 3
    assert not any(key in word for key in keys.values() for word in argv)


def test_an_agent_that_cannot_reach_the_driver_says_where_it_tried(tmp_path: Path) -> None:
    hub = Hub()
    agent, argv = agent_of(tmp_path, hub)
    port = hub.port
    hub.close()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == remote.UNREACHABLE
    assert f"tcp://{LOOPBACK}:{port}" in done.stderr
    assert "MATFORGE_ADDRESS" in done.stderr
    assert "Traceback" not in done.stderr
    agent.forget()
    assert list(tmp_path.iterdir()) == []


def test_what_leads_into_the_enclosing_instance_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLUX_URI", "FLUX_JOB_ID", "PMI_FD", "SLURM_JOB_ID", "FLUXES"):
        monkeypatch.setenv(name, "x")
    remote.leave_scheduler()
    assert [n for n in ("FLUX_URI", "FLUX_JOB_ID", "PMI_FD", "SLURM_JOB_ID") if n in os.environ] == []
    assert os.environ["FLUXES"] == "x"


@pytest.mark.parametrize(
    ("said", "gpus"), [("", []), ("-1", []), ("0", ["0"]), ("1,GPU-abc", ["1", "GPU-abc"])]
)
def test_gpus_are_those_that_the_process_was_given(
    monkeypatch: pytest.MonkeyPatch, said: str, gpus: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert remote.visible_gpus() == gpus
