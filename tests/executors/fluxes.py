"""A Flux instance for tests: started beside them, and found through ``FLUX_URI`` as a driver inside it is."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from matforge.worker import processes


@functools.cache
def missing() -> str:
    """Why Flux cannot be tested here; empty if it can."""
    if shutil.which("flux") is None:
        return "there is no `flux` on the PATH: install flux-core and the Python package flux-python"
    code = "from matforge.executors import flux; print(flux.trouble())"
    env = {**os.environ, "FLUX_URI": "somewhere"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)
    return done.stdout.strip() or done.stderr.strip()


needs_flux = pytest.mark.skipif(bool(missing()), reason=f"needs Flux: {missing()}")


class Instance:
    """A running instance.

    Parameters
    ----------
    size : int
        Brokers; all on this machine.
    options : sequence of str
        Further options of ``flux start``.
    """

    def __init__(self, size: int = 1, options: Sequence[str] = ()) -> None:
        several = [f"--test-size={size}", "--test-exit-mode=leader"] if size > 1 else []
        self.process = subprocess.Popen(
            ["flux", "start", *several, *options, "sh", "-c", "echo $FLUX_URI; exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.uri = self.process.stdout.readline().strip()
        assert self.uri, "flux start came to nothing"

    def run(self, *arguments: str) -> str:
        """Output of a ``flux`` command in the instance."""
        done = subprocess.run(
            ["flux", *arguments], env={**os.environ, "FLUX_URI": self.uri},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    def broker_pid(self, rank: int) -> int:
        """Process id of one broker."""
        return int(self.run("exec", "-r", str(rank), "flux", "getattr", "broker.pid"))

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@contextmanager
def instance(size: int = 1, options: Sequence[str] = ()) -> Iterator[Instance]:
    """An instance, and ``FLUX_URI`` for what this process does."""
    made = Instance(size, options)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FLUX_URI", made.uri)
            yield made
    finally:
        made.close()


def broker_above(pid: int) -> int:
    """Process id of the broker that has started a process."""
    while True:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if "broker" in Path(f"/proc/{pid}/comm").read_text():
            return pid


def processes_of(run_dir: Path) -> dict[int, str]:
    """Command lines of living processes that name a run directory, by process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            words = entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # not a process, or ended just now
            continue
        if str(run_dir.resolve()) in words:
            found[int(entry.name)] = words
    return found


def agents_of(run_dir: Path) -> list[int]:
    """Process ids of the agents of a run."""
    found = processes_of(run_dir / "agents")
    pids = [pid for pid, words in found.items() if "worker.remote" in words]
    wardens = {child for pid in pids for child in processes.children_of(pid)}
    return [pid for pid in pids if pid not in wardens]
