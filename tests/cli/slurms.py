"""A Slurm of one node for tests: controller, node and authentication in a folder of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=30
SlurmctldPort={ctld}
SlurmdPort={slurmd}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no Slurm here; empty if there can."""
    absent = [name for name in ("slurmctld", "slurmd", "munged", "salloc") if shutil.which(name) is None]
    if absent:
        return f"there is no {', '.join(absent)}: install Debian's slurm-wlm and munge"
    return "" if os.geteuid() == 0 else "slurmd has to be started by root"


needs_slurm = pytest.mark.skipif(bool(missing()), reason=f"needs Slurm: {missing()}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """A running cluster; ``SLURM_CONF`` leads every command to it."""
    folder.chmod(0o755)
    ctld, slurmd = _free_ports(2)
    host = socket.gethostname().partition(".")[0]
    config = folder / "slurm.conf"
    config.write_text(_CONFIG.format(host=host, folder=folder, ctld=ctld, slurmd=slurmd, cpus=os.cpu_count()))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    daemons = [
        ["munged", "-F", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}",
         f"--log-file={folder}/munged.log", f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/seed"],
        ["slurmctld", "-D", "-f", str(config)],
        ["slurmd", "-D", "-f", str(config), "-N", host],
    ]  # fmt: skip
    started: list[subprocess.Popen[bytes]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(config))
        try:
            for daemon in daemons:
                quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                started.append(subprocess.Popen(daemon, start_new_session=True, **quiet))  # type: ignore[call-overload]
                if daemon[0] == "munged":
                    _wait_until(lambda: (folder / "munge.socket").exists())
            _wait_until(lambda: _state() == "idle")
            yield
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(30)


def _state() -> str:
    """What Slurm says of its one node."""
    done = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
    return done.stdout.strip()


def jobs() -> str:
    """What is in the queue."""
    return subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout.strip()


def _wait_until(condition: object, patience: float = 30.0) -> None:
    limit = time.monotonic() + patience
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < limit, "the cluster did not start"
        subprocess.run(["sleep", "0.1"], check=True)
