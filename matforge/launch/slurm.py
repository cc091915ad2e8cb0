"""Asking Slurm for the allocation, and what comes of it."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from matforge.launch.script import REQUEUES, Request, slurm_options, text
from matforge.model import MatForgeError, UsageError
from matforge.worker import processes

UNFINISHED = 75
SCRIPT = "launch.sh"


class RefusedError(UsageError):
    """Slurm does not give us what we ask for."""


def resume_command() -> list[str]:
    """Goes on with the run whose directory is appended, with this very MatForge."""
    return [sys.executable, "-m", "matforge", "resume"]


def prepare(request: Request, folder: Path, workdir: Path, *, batch: bool) -> Path:
    """Write the script into a fresh folder, numbered if there is one of that name.

    Raises
    ------
    MatForgeError
        If it cannot be written.
    """
    try:
        folder = _fresh(folder)
        path = folder / SCRIPT
        path.write_text(text(request, folder, workdir, resume_command(), batch=batch))
    except OSError as error:
        raise MatForgeError(f"{error.filename} cannot be written: {error.strerror}.") from error
    return path


def _fresh(folder: Path) -> Path:
    for number in itertools.count():
        numbered = folder.with_name(f"{folder.name}-{number}") if number else folder
        try:
            numbered.mkdir(parents=True)
        except FileExistsError:
            continue
        return numbered
    raise AssertionError("there is always another number")


def submit(script: Path, *, wait: bool) -> int:
    """Hand the script to ``sbatch``; with ``wait`` its exit code is that of the driver.

    Raises
    ------
    RefusedError
        If Slurm is not here, or does not take it; the sentence is Slurm's own.
    """
    _need("sbatch")
    arguments = ["sbatch", "--parsable", *(["--wait"] if wait else []), str(script)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    number = done.stdout.strip().partition(";")[0]
    if not number:
        raise RefusedError(f"Slurm does not take the job: {_last_words(done.stderr)}")
    print(f"submitted job {number}; its output goes to {script.parent / f'output.{number}'}", file=sys.stderr)
    return done.returncode if wait else 0


def allocate(request: Request, script: Path) -> int:
    """Wait for an allocation, run the script in it, and again while it asks for that; its exit code.

    Raises
    ------
    RefusedError
        If Slurm is not here, or gives no allocation.
    """
    _need("salloc")
    begun = script.parent / "allocations"
    for turn in range(1, REQUEUES + 1):
        arguments = ["salloc", *slurm_options(request), "bash", str(script)]
        with _signals_passed_on() as children:
            # whoever kills this process wants neither to wait for an allocation nor to keep one: what runs
            # in it leaves as it does when it is told to
            leave = functools.partial(processes.die_with_parent, os.getpid(), signal.SIGTERM)
            process = subprocess.Popen(arguments, preexec_fn=leave)
            children.append(process)
            code = process.wait()
        with suppress(OSError):
            if begun.read_text().count("\n") >= turn:
                # an allocation that is revoked at its end takes salloc with it, the driver's word stands
                code = _driver_code(script.parent / "code", code)
                if code != UNFINISHED or not request.requeue:
                    return code
                print("matforge: the run is not finished; the same again.", file=sys.stderr)
                continue
        raise RefusedError(f"Slurm gave no allocation (salloc ended with {code}); it has said why above.")
    return UNFINISHED


def _driver_code(path: Path, otherwise: int) -> int:
    """The exit code that the driver has left behind."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return otherwise


@contextmanager
def _signals_passed_on() -> Iterator[list[subprocess.Popen[bytes]]]:
    """SIGTERM goes to the children, and what they make of it is awaited; Ctrl-C reaches them anyway."""
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: object) -> None:
        for child in children:
            child.send_signal(number)

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda _number, _frame: None),
    }
    try:
        yield children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _need(command: str) -> None:
    if shutil.which(command) is None:
        raise RefusedError(
            f"There is no {command} on the PATH. `matforge launch` needs Slurm; inside an allocation, use "
            "`flux start COMMAND`, and without Flux run the command itself."
        )


def _last_words(stderr: str) -> str:
    lines: Sequence[str] = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else "it gave no reason."
