"""A slot as its agent sees it: starting the process, talking to it, and reading how it ended."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matforge.model import Failure
from matforge.worker import processes
from matforge.worker.wire import (
    PACKET_BUFFER,
    PACKET_LIMIT,
    AgentConfig,
    Profile,
    TaskField,
    pack,
    python_arguments,
    unpack,
)

_KEPT_WITHOUT_INHERITANCE = (
    "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ",
    "USER",
)  # fmt: skip
"""What a process needs to start at all; a chore with ``inherit_env=False`` sees only these of ours."""
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip
_STREAMS = ("stdout", "stderr")
# packets keep their boundaries; where the system lacks them, local datagrams do the same
_PACKETS = socket.SOCK_SEQPACKET if processes.LINUX else socket.SOCK_DGRAM


@dataclass(slots=True)
class AgentTask:
    """A task while the agent has it."""

    handle: int
    profile: int
    wire: list[Any]
    blob: bytes
    slot: SlotProcess | None = None
    cancelled: bool = False
    started: bool = False
    """Whether the driver has been told that it runs."""
    timeout_s: float | None = None
    memory: int | None = None
    weighed_at: float = 0.0
    """When its memory was looked at last (monotonic)."""
    peak: int = 0
    """Most memory it was seen to occupy (bytes)."""

    @classmethod
    def from_wire(cls, wire: list[Any], blob: bytes) -> AgentTask:
        """From the list that came from the driver."""
        task = cls(wire[TaskField.HANDLE], wire[TaskField.PROFILE], wire, blob)
        if len(wire) > TaskField.MEMORY:
            task.timeout_s, task.memory = wire[TaskField.TIMEOUT], wire[TaskField.MEMORY]
        return task


@dataclass(slots=True)
class SlotProcess:
    """One slot process and what it has been given."""

    number: int
    profile_number: int
    profile: Profile
    process: subprocess.Popen[bytes]
    near: socket.socket
    far: socket.socket
    """The slot's own end, kept to take back what it has not begun."""
    scratch: Path
    since: float
    """When the process was started, or its present task was begun (monotonic)."""
    gpus: tuple[str, ...] = ()
    pin: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    """Core numbers it occupies while it has work."""
    assigned: deque[AgentTask] = field(default_factory=deque)
    ready: bool = False
    doomed: bool = False
    """It will end, or has been told to: gets nothing more."""
    ending: int = -1
    """Handle of the running task that the agent has told to end."""
    verdict: Failure | None = None
    """Why it has."""
    base_memory: int = 0
    """What it held (bytes) before its present task, if that has a limit."""
    stood_at: float = 0.0
    """When somebody last looked whether it stands still (monotonic)."""
    stopped_since: float = 0.0
    kill_at: float = 0.0
    pace: float = 1.0
    """Seconds a task, smoothed; short ones are worth giving ahead."""

    @property
    def pid(self) -> int:
        """Process id, also of its session and group."""
        return self.process.pid

    @property
    def launches(self) -> bool:
        """Whether it starts programs instead of calling functions."""
        return self.profile.command or self.profile.num_tasks > 1 or self.profile.mpi

    def give(self, task: AgentTask) -> bool:
        """Send a task; False if its channel is full."""
        packet = pack(task.wire, task.blob)
        if len(packet) > PACKET_LIMIT:
            path = self.scratch / f"task-{task.handle}"
            try:
                path.write_bytes(packet)
            except OSError:
                path.unlink(missing_ok=True)  # the half of it would fill the disk for all who follow
                raise
            packet = pack({"spill": str(path)})
        try:
            self.near.send(packet)
        except BlockingIOError:
            return False
        except OSError:  # it has just ended; its end will be noticed, and the task taken back
            pass
        task.slot = self
        self.assigned.append(task)
        return True

    def take_back(self) -> list[AgentTask]:
        """Recover the tasks it has not begun, in their order.

        Known by their packets, not by their number: the slot reads from the same end, and may take
        a later task between two of ours. What tells one that has just been started what it is goes back.
        """
        handles: set[int] = set()
        welcome = []
        with suppress(OSError):
            while packet := self.far.recv(PACKET_BUFFER, socket.MSG_DONTWAIT):
                handle = _handle_in(packet)
                if handle < 0:
                    welcome.append(packet)
                else:
                    handles.add(handle)
        with suppress(OSError):  # it has been told to end
            for packet in welcome:
                self.near.send(packet)
        recovered = [task for task in self.assigned if task.handle in handles]
        self.assigned = deque(task for task in self.assigned if task.handle not in handles)
        for task in recovered:
            task.slot = None
        return recovered

    def stderr_path(self, run_dir: Path, task: AgentTask | None) -> Path:
        """Where the standard error of its present task goes."""
        if task is not None and (task.wire[TaskField.DIRECTORY] or self.launches):
            folder = task.wire[TaskField.DIRECTORY] or f"out/{task.wire[TaskField.CHORE_ID]}"
            path = run_dir / folder / f"stderr.{task.wire[TaskField.TAG]}"
            if path.exists():
                return path
        return self.scratch / "stderr"

    def keep_streams(self, run_dir: Path, task: AgentTask) -> bool:
        """After its end: keep what ``task`` had printed, and remove the half of a result.

        Returns
        -------
        bool
            Whether anything had been printed.
        """
        tag, directory = task.wire[TaskField.TAG], task.wire[TaskField.DIRECTORY]
        folder = run_dir / (directory or f"out/{task.wire[TaskField.CHORE_ID]}")
        with suppress(OSError):
            if directory or self.launches:
                (folder / f"result.pickle.{tag}.new").unlink(missing_ok=True)
                return any((folder / f"{name}.{tag}").stat().st_size for name in _STREAMS)
            if any((self.scratch / name).stat().st_size for name in _STREAMS):
                folder.mkdir(exist_ok=True)
                for name in _STREAMS:
                    shutil.copyfile(self.scratch / name, folder / f"{name}.{tag}")
                return True
        return False

    def discard(self) -> None:
        """Close the channel and remove the scratch directory of an ended slot."""
        self.near.close()
        self.far.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _handle_in(packet: bytes) -> int:
    """Handle of the task that a packet carries, or whose file it names; -1 if it is about the slot itself."""
    head, _ = unpack(packet)
    if isinstance(head, dict):
        return int(head["spill"].rpartition("task-")[2]) if "spill" in head else -1
    return int(head[TaskField.HANDLE])


def slot_environment(config: AgentConfig, profile: Profile, gpus: Sequence[str]) -> dict[str, str]:
    """The whole environment of a slot's process."""
    if profile.inherit_env:
        env = dict(os.environ)
    else:
        env = {k: os.environ[k] for k in _KEPT_WITHOUT_INHERITANCE if k in os.environ}
    # a slot has its cores and no more, whatever the login shell says of threads
    env.update({name: str(profile.cores_per_task) for name in _THREAD_VARIABLES})
    env.setdefault("PYTHONHASHSEED", "0")  # results that hold sets are the same on every slot
    if gpus:
        env.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    env.update(config.environment)
    env.update(profile.env)
    env[processes.TOKEN] = config.token
    return env


def start_slot(
    config: AgentConfig, config_path: str, number: int, profile_number: int, profile: Profile,
    gpus: tuple[str, ...], pin: tuple[int, ...], now: float,
) -> SlotProcess:  # fmt: skip
    """Start a slot's process; it says ``HELLO`` when it is ready.

    Raises
    ------
    OSError
        If the process cannot be started.
    """
    scratch = Path(config.scratch) / f"slot-{number}"
    scratch.mkdir(mode=0o700)
    near, far = socket.socketpair(socket.AF_UNIX, _PACKETS)
    try:
        for end in (near, far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        with (scratch / "stdout").open("a+b") as out, (scratch / "stderr").open("a+b") as err:
            arguments = [config_path, str(far.fileno()), str(number), str(os.getpid())]
            process = subprocess.Popen(
                python_arguments(config.python, "slot", *arguments),
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=scratch,
                env=slot_environment(config, profile, gpus), pass_fds=(far.fileno(),),
                start_new_session=True,
            )  # fmt: skip
        near.setblocking(False)
        slot = SlotProcess(
            number, profile_number, profile, process, near, far, scratch, now, gpus, pin
        )  # fmt: skip
        welcome = {"profile": profile.as_dict(), "scratch": str(scratch), "pin": list(pin)}
        near.send(pack(welcome))
        return slot
    except OSError:
        near.close()
        far.close()
        shutil.rmtree(scratch, ignore_errors=True)
        raise
