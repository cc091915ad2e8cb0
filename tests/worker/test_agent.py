"""An agent that somebody else than the driver has started, as on another node."""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from matforge.worker.wire import FINISHED, AgentConfig, Profile, decode, encode

PATIENCE_MS = 20_000


def configure(tmp_path: Path, endpoint: str, **options: Any) -> Path:
    """A run directory and a configuration as an executor writes it."""
    run_dir = tmp_path / "run"
    (run_dir / "out" / "registry").mkdir(parents=True)
    (run_dir / "out" / "registry" / "sum").write_bytes(pickle.dumps(sum))
    scratch = tmp_path / "home" / "1"
    scratch.mkdir(parents=True)
    config = AgentConfig(
        str(run_dir), 1, 1, endpoint, "agent-1", "test-token", str(scratch), 1,
        sys_path=[p for p in sys.path if p], python=sys.executable, beat_s=0.1, **options,
    )  # fmt: skip
    path = tmp_path / "agent.json"
    config.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return path


def start(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "matforge.worker.agent", str(config)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def server() -> Iterator[zmq.Socket[bytes]]:
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
    yield socket
    socket.close()
    context.term()


def hear(server: zmq.Socket[bytes], kind: str) -> tuple[dict[str, Any], list[bytes]]:
    while True:
        _, header, *blobs = server.recv_multipart()
        message = decode(header)
        if message["t"] == kind:
            return message, blobs


def test_it_works_over_an_encrypted_channel_and_ends_when_told(
    tmp_path: Path, server: zmq.Socket[bytes]
) -> None:
    public, secret = zmq.curve_keypair()
    its_public, its_secret = zmq.curve_keypair()
    server.setsockopt(zmq.CURVE_SERVER, 1)
    server.setsockopt(zmq.CURVE_SECRETKEY, secret)
    port = server.bind_to_random_port("tcp://127.0.0.1")
    keys = {"server": public.decode(), "public": its_public.decode(), "secret": its_secret.decode()}
    with start(configure(tmp_path, f"tcp://127.0.0.1:{port}", curve=keys)) as agent:
        hello, _ = hear(server, "hello")
        assert hello["pid"] == agent.pid
        payload = pickle.dumps((([1, 2, 3],), {}))
        task = [5, 0, "chore-sum-0001", "e1a1", "sum", len(payload), None, None, None, 1]
        order = {"t": "tasks", "profiles": {"0": Profile().as_dict()}, "tasks": [task]}
        server.send_multipart([b"agent-1", encode(order), payload])
        message, blobs = hear(server, "reports")
        assert message["r"][0][:2] == [FINISHED, 5]
        assert pickle.loads(blobs[0]) == 6
        hear(server, "beat")
        server.send_multipart([b"agent-1", encode({"t": "bye", "kill": False})])
        agent.communicate(timeout=20)
        assert agent.returncode == 0
    assert not (tmp_path / "home" / "1").exists()


def test_it_ends_when_its_driver_falls_silent(tmp_path: Path, server: zmq.Socket[bytes]) -> None:
    endpoint = f"ipc://{tmp_path}/s"
    server.bind(endpoint)
    with start(configure(tmp_path, endpoint, lease_s=0.5)) as agent:
        hear(server, "hello")
        agent.communicate(timeout=20)
        assert agent.returncode == 0


def test_it_ends_when_the_pipe_of_its_driver_does(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    config = configure(tmp_path, f"ipc://{tmp_path}/s", lifeline=reader)
    with subprocess.Popen(
        [sys.executable, "-m", "matforge.worker.agent", str(config)], pass_fds=[reader]
    ) as agent:
        os.close(reader)
        os.close(writer)
        assert agent.wait(20) == 0


def test_it_imports_nothing_that_chores_need() -> None:
    program = (
        "import sys\nimport matforge.worker.agent\n"
        "bad = {'numpy', 'cloudpickle', 'jax', 'pandas', 'matforge.manager', 'matforge.executors'}\n"
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_slot_imports_nothing_heavy_before_its_first_chore() -> None:
    program = (
        "import sys\nimport matforge.worker.slot\n"
        "bad = {'numpy', 'cloudpickle', 'jax', 'pandas', 'zmq', 'matforge.manager', 'matforge.executors'}\n"
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
