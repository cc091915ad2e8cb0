"""Functions that the contract's chores run; importable in slots, since the tests' folder is on the path.

Run as a program with a path it is the command of a chore that leaves a family of processes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def brief() -> int:
    return 1


def failing() -> None:
    raise ValueError("as asked")


def endless() -> None:
    signal.pause()


def add(a: int, b: int) -> int:
    return a + b


def echo(value: Any) -> Any:
    return value


def length(value: Any) -> int:
    return len(value)


def many_bytes(count: int) -> bytes:
    return b"x" * count


def table() -> dict[str, Any]:
    return {"name": "table", "rows": list(range(10))}


def with_report(report: dict[str, Any]) -> Any:
    from matforge.model import WithReport

    return WithReport("result", report)


def say(text: str) -> str:
    print(text)
    return text


def complain_and_raise() -> None:
    print("a complaint", file=sys.stderr)
    raise ValueError("not today")


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def raise_unprintable() -> None:
    raise _Unprintable


def raise_memory_error() -> None:
    raise MemoryError("no more")


def interrupt_self() -> None:
    signal.raise_signal(signal.SIGINT)


def return_generator() -> Iterator[int]:
    return (i for i in range(3))


# -- crashes

DETONATIONS = {
    "raise": lambda: (_ for _ in ()).throw(ValueError("boom")),
    "sys.exit": lambda: sys.exit(3),
    "os._exit": lambda: os._exit(4),
    "abort": os.abort,
    "segfault": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def detonate(how: str) -> None:
    DETONATIONS[how]()


class Bomb:
    """Goes off when it is unpickled."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self) -> None: ...

    def __reduce__(self) -> Any:
        return detonate, (self.how,)


class _LateBomb:
    """Goes off when it is pickled."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        detonate(self.how)
        return _LateBomb, (self.how,)


def make_bomb(how: str) -> _LateBomb:
    return _LateBomb(how)


def print_and_abort() -> None:
    print("last words")
    os.abort()


def print_everywhere() -> None:
    print("python")
    os.write(1, b"descriptor\n")
    ctypes.CDLL(None).puts(b"c")
    subprocess.run(["echo", "child"], check=True)
    print("error", file=sys.stderr)


# -- surroundings and messes


def surroundings() -> dict[str, Any]:
    return {"cwd": os.getcwd(), "env": dict(os.environ)}


def _fork_and_return() -> None:
    os.fork()


def _close_output() -> None:
    sys.stdout.close()
    os.close(1)


def _start_thread() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True, name="leaked").start()


def _start_child() -> None:
    subprocess.Popen(["sleep", "1000"])


MESSES = {
    "working directory": lambda: os.chdir("/"),
    "a removed working directory": lambda: os.rmdir(os.getcwd()),
    "files": lambda: Path("left-behind").write_text("x"),
    "environment": lambda: os.environ.update({"COLOUR": "red"}),
    "environment removed": lambda: os.environ.pop("PATH"),
    "umask": lambda: os.umask(0o777),
    "a signal handler": lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
    "an alarm": lambda: signal.setitimer(signal.ITIMER_REAL, 1000),
    "a thread": _start_thread,
    "a child": _start_child,
    "a fork that returns": _fork_and_return,
    "closed output": _close_output,
    "another output": lambda: setattr(sys, "stdout", None),
}


def make_mess(name: str) -> str:
    MESSES[name]()
    return name


CLEAN = {
    "files": [],
    "colour": None,
    "path": True,
    "umask": 0o022,
    "handler": signal.SIG_DFL,
    "alarm": 0.0,
    "threads": 1,
    "children": [],
    "output": True,
}


def look_around() -> dict[str, Any]:
    umask = os.umask(0o022)
    try:
        children = [os.waitpid(-1, os.WNOHANG)]
    except ChildProcessError:
        children = []
    return {
        "files": os.listdir(),
        "colour": os.environ.get("COLOUR"),
        "path": "PATH" in os.environ,
        "umask": umask,
        "handler": signal.getsignal(signal.SIGUSR1),
        "alarm": signal.getitimer(signal.ITIMER_REAL)[0],
        "threads": threading.active_count(),
        "children": children,
        "output": sys.stdout is not None and sys.stdout.fileno() == 1 and os.fstat(1).st_size == 0,
    }


def jax_settings(change: str, folder: str) -> tuple[int, bool, bool]:
    import jax

    if change:
        jax.config.update(change, True)
    if folder:
        sys.path.insert(0, folder)
        __import__("sets_nans")
        sys.path.remove(folder)
    return os.getpid(), jax.config.jax_enable_x64, jax.config.jax_debug_nans


def show_progress() -> tuple[int, int]:
    from tqdm import tqdm

    sum(tqdm(range(3)))
    return os.getpid(), threading.active_count()


def rank(bad: int) -> tuple[int, int]:
    number = int(os.environ["MATFORGE_RANK"])
    if number == bad:
        raise RuntimeError(f"rank {number} fails")
    return number, int(os.environ["MATFORGE_SIZE"])


# -- waiting, and families


def wait_at(gate: str) -> None:
    with open(gate, "rb", buffering=0) as pipe:
        pipe.read(1)


def note_pid_and_wait(note: str, gate: str) -> None:
    beside = Path(f"{note}.new")
    beside.write_text(str(os.getpid()))
    beside.rename(note)
    wait_at(gate)


def hold_the_lock(seconds: float) -> str:
    """Keep the interpreter's lock for so long."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    return "done"


def family(note: str) -> None:
    """A child, and a grandchild that has left session and parent; never ends."""
    child = subprocess.Popen(["sleep", "1000"])
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        grandchild = os.fork()
        if grandchild == 0:
            os.execvp("sleep", ["sleep", "1000"])
        os.write(writer, str(grandchild).encode())
        os._exit(0)
    os.wait4(-1, 0)
    beside = Path(f"{note}.new")
    beside.write_text(f"{os.getpid()} {child.pid} {os.read(reader, 20).decode()}")
    beside.rename(note)
    signal.pause()


if __name__ == "__main__":
    family(sys.argv[1])
