"""An agent that is a child of the driver: its process, its two pipes, and the place it lives in."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from matforge.executors.channel import AgentLink
from matforge.worker import processes
from matforge.worker.wire import AgentConfig, python_arguments

_PREFIX = "mf-"
_LOCK = "lock"
_SOCKET_PATH_LIMIT = 100
"""Longest path of a socket file, a little below what systems allow."""


class AgentProcess:
    """The agent's process and the driver's ends of its two pipes.

    Each end of file tells the other side at once that this one has ended.

    Parameters
    ----------
    number : int
        Number of the agent within the run's epoch.
    home : Path
        A directory for it, inside a private one; made here.
    config : AgentConfig
        What it is told; its own name, place and pipes are filled in here.
    lock : int
        Descriptor of the private directory's lock, which it holds, too; -1 if there is none.

    Raises
    ------
    OSError
        If it cannot be started.
    """

    def __init__(self, number: int, home: Path, config: AgentConfig, lock: int = -1) -> None:
        self.home = home
        self.token = secrets.token_hex(8)
        self.identity = f"agent-{number}".encode()
        self.link = AgentLink()
        self.connected = False
        home.mkdir(mode=0o700)
        self.read_end, its_write_end = os.pipe()
        its_read_end, self.write_end = os.pipe()
        path = home / "agent.json"
        try:
            replace(
                config, agent=number, identity=self.identity.decode(), token=self.token,
                scratch=str(home), lifeline=its_read_end, parent=os.getpid(),
            ).save(path)  # fmt: skip
            with (home / "agent.err").open("wb") as err:
                self.process = subprocess.Popen(
                    python_arguments(config.python, "agent", str(path)),
                    stdin=subprocess.DEVNULL, stdout=err, stderr=err, cwd=home,
                    env={**os.environ, processes.TOKEN: self.token},
                    pass_fds=[fd for fd in (its_read_end, its_write_end, lock) if fd >= 0],
                    start_new_session=True,
                )  # fmt: skip
        except OSError:
            os.close(self.read_end)
            os.close(self.write_end)
            raise
        finally:
            os.close(its_read_end)
            os.close(its_write_end)

    def end(self) -> str:
        """Make sure that nothing of it is left; the tail of what it wrote to standard error."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        processes.sweep(self.token)
        for descriptor in (self.write_end, self.read_end):
            os.close(descriptor)
        stderr = processes.tail(self.home / "agent.err")
        shutil.rmtree(self.home, ignore_errors=True)
        return stderr


def gpu_names(count: int) -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` calls the first ``count`` GPUs that the driver itself may see."""
    visible = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    return visible[:count] if len(visible) >= count else [str(i) for i in range(count)]


def private_directory() -> tuple[Path, int]:
    """A fresh directory for this user only, with a path short enough for sockets, and its lock.

    The lock is held as long as its descriptor is open in the driver or an agent, so a directory
    whose lock can be had belongs to nobody any more; -1 where it cannot be locked.
    """
    path = tempfile.mkdtemp(prefix=_PREFIX)
    if len(path) + 16 > _SOCKET_PATH_LIMIT:
        os.rmdir(path)
        path = tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp")
    home = Path(path)
    descriptor = os.open(home / "lock.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(home / "lock.new", home / _LOCK)
    except OSError:
        os.close(descriptor)
        return home, -1
    return home, descriptor


def sweep_abandoned() -> int:
    """End what is left of drivers of this user that were killed together with agent and warden.

    Returns
    -------
    int
        How many private directories have been removed.
    """
    return sum(
        _sweep_if_abandoned(home)
        for folder in {tempfile.gettempdir(), "/tmp"}
        for home in Path(folder).glob(f"{_PREFIX}*")
    )


def _sweep_if_abandoned(home: Path) -> bool:
    try:
        if home.stat().st_uid != os.getuid():
            return False
        descriptor = os.open(home / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for config in home.glob("*/agent.json"):
            processes.sweep(AgentConfig.load(str(config)).token)
        shutil.rmtree(home, ignore_errors=True)
        return True
    except (OSError, ValueError):  # somebody holds it
        return False
    finally:
        os.close(descriptor)
