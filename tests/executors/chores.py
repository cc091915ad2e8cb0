"""Functions that the contract's chores run; importable in slots, since the tests' folder is on the path.

Run as a program with a path it is the command of a chore that leaves a family of processes.
"""

from __future__ import annotations

import atexit
import ctypes
import decimal
import errno
import faulthandler
import gc
import locale
import logging
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from matforge.worker import processes
from matforge.worker.publish import Publisher
from matforge.worker.slot import Slot


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


def say_farewell(path: str) -> str:
    """Have a file written when the process ends."""
    atexit.register(Path(path).write_text, "farewell")
    return path


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


def _take_memory() -> None:
    """Much more than the limit, touched, and held."""
    _KEPT_BYTES.append(b"x" * (300 << 20))
    while True:
        signal.pause()


_KEPT_BYTES: list[bytes] = []

DETONATIONS = {
    "raise": lambda: (_ for _ in ()).throw(OSError(errno.EIO, "boom")),
    "sys.exit": lambda: sys.exit(3),
    "os._exit": lambda: os._exit(4),
    "abort": os.abort,
    "segfault": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}
ENDLESS = {
    "out of memory": _take_memory,
    "hang": signal.pause,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}
"""Ways to go off that only somebody else can end."""


def detonate(how: str) -> None:
    {**DETONATIONS, **ENDLESS}[how]()


def detonate_when(stage: str, how: str) -> int:
    """Put a mine into the slot's own code: it goes off when this chore's result is written, or reported."""
    owner, name = {"publish": (Publisher, "result"), "report": (Slot, "_send")}[stage]

    intact = getattr(owner, name)

    def mined(*arguments: Any) -> Any:
        setattr(owner, name, intact)
        detonate(how)
        return intact(*arguments)

    setattr(owner, name, mined)
    return 1


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


def _close_output() -> None:
    sys.stdout.close()
    os.close(1)


def _turn_output_elsewhere() -> None:
    for descriptor in (1, 2):
        os.dup2(os.open("elsewhere", os.O_RDWR | os.O_CREAT), descriptor)
    os.write(1, b"x")


def _start_thread() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True, name="leaked").start()


def _log_to_a_file() -> None:
    logging.basicConfig(level=logging.DEBUG, handlers=[logging.FileHandler("log")])
    logging.getLogger("a.library").setLevel(logging.DEBUG)
    logging.getLogger("of.its.own").addHandler(logging.StreamHandler())
    logging.disable(logging.CRITICAL)


def _set_numpy() -> None:
    import numpy

    numpy.seterr(all="raise")
    numpy.seterrcall(print)
    numpy.set_printoptions(precision=2, threshold=3)


def _set_warnings() -> None:
    warnings.simplefilter("error")
    warnings.showwarning = print  # type: ignore[assignment]


def _set_search_path() -> None:
    sys.path[:] = ["/nonexistent"]
    sys.meta_path.clear()
    sys.argv = ["another"]


def _count_decimals() -> None:
    decimal.getcontext().prec = 3
    decimal.getcontext().traps[decimal.Inexact] = True


def _draw() -> None:
    import numpy

    random.seed(1)
    numpy.random.seed(1)


def _limit(which: int, soft: int) -> None:
    resource.setrlimit(which, (soft, resource.getrlimit(which)[1]))


def _open_files() -> None:
    _KEPT.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(200))


_KEPT: list[int] = []

REPLACING = {
    "a thread": _start_thread,
    "a thread that is no daemon": lambda: threading.Thread(target=threading.Event().wait).start(),
    "a child": lambda: subprocess.Popen(["sleep", "1000"]),
    "a fork that returns": lambda: os.fork(),
    "open files": _open_files,
}
"""Messes for which the slot has to be replaced."""

MESSES = {
    "working directory": lambda: os.chdir("/"),
    "a removed working directory": lambda: os.rmdir(os.getcwd()),
    "files": lambda: Path("left-behind").write_text("x"),
    "environment": lambda: os.environ.update({"COLOUR": "red"}),
    "environment removed": lambda: os.environ.pop("PATH"),
    "another environment": lambda: setattr(os, "environ", {"COLOUR": "red"}),
    "umask": lambda: os.umask(0o777),
    "a signal handler": lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
    "blocked signals": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1}),
    "an alarm": lambda: signal.setitimer(signal.ITIMER_REAL, 1000),
    "a watchdog": lambda: faulthandler.dump_traceback_later(0.05, exit=True),
    "no fault handler": faulthandler.disable,
    "closed output": _close_output,
    "closed input": lambda: os.close(0),
    "output turned elsewhere": _turn_output_elsewhere,
    "another output": lambda: setattr(sys, "stdout", None),
    "logging": _log_to_a_file,
    "numpy": _set_numpy,
    "warnings": _set_warnings,
    "the search path": _set_search_path,
    "decimals": _count_decimals,
    "a locale": lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8"),
    "random state": _draw,
    "recursion": lambda: sys.setrecursionlimit(200),
    "tracing": lambda: sys.settrace(lambda *_: None),
    "no garbage collection": gc.disable,
    "a time limit of sockets": lambda: socket.setdefaulttimeout(0.001),
    "a limit of files": lambda: _limit(resource.RLIMIT_NOFILE, 30),
    "a limit of file sizes": lambda: _limit(resource.RLIMIT_FSIZE, 0),
    "a limit of memory": lambda: _limit(resource.RLIMIT_AS, 1 << 33),
    "priority": lambda: os.nice(1),
    "cores": lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    **REPLACING,
}


def make_mess(name: str) -> tuple[str, int]:
    pid = os.getpid()
    MESSES[name]()
    return name, pid


def make_mess_and_look(name: str) -> dict[str, Any]:
    MESSES[name]()
    return look_around()


def look_around() -> dict[str, Any]:
    """Everything that a mess may have changed, as this chore finds it."""
    return {**_process(), **_libraries()}


def _process() -> dict[str, Any]:
    umask = os.umask(0o022)
    try:
        children = [os.waitpid(-1, os.WNOHANG)]
    except ChildProcessError:
        children = []
    lowest = os.dup(2)
    os.close(lowest)
    return {
        "files": os.listdir(),
        "directory": os.stat(".").st_nlink > 0,
        "colour": os.environ.get("COLOUR"),
        "path": "PATH" in os.environ,
        "mapping": type(os.environ).__name__,
        "umask": umask,
        "handler": signal.getsignal(signal.SIGUSR1),
        "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "alarm": signal.getitimer(signal.ITIMER_REAL)[0],
        "fault handler": faulthandler.is_enabled(),
        "threads": threading.active_count(),
        "children": children,
        "output": sys.stdout is not None and sys.stdout.fileno() == 1 and os.fstat(1).st_size == 0,
        "few files open": 2 < lowest < 100,
        "limits": [
            resource.getrlimit(w) for w in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_AS)
        ],
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "cores": len(os.sched_getaffinity(0)),
    }


def _libraries() -> dict[str, Any]:
    import numpy

    root = logging.getLogger()
    return {
        "logging": (root.level, root.handlers, root.manager.disable),
        "loggers": [
            (logging.getLogger(n).level, logging.getLogger(n).handlers) for n in ("a.library", "of.its.own")
        ],
        "numpy": (numpy.geterr(), numpy.geterrcall(), numpy.get_printoptions()),
        "warnings": (warnings.filters[:1], warnings.showwarning.__name__),
        "found": (sys.path, len(sys.meta_path) > 2, sys.argv),
        "decimals": (decimal.getcontext().prec, decimal.getcontext().traps[decimal.Inexact]),
        "locale": locale.setlocale(locale.LC_ALL),
        "recursion": sys.getrecursionlimit(),
        "tracing": sys.gettrace(),
        "collection": gc.isenabled(),
        "sockets": socket.getdefaulttimeout(),
    }


def draw() -> tuple[float, float]:
    """From the global generators, which begin at the chore's seed."""
    import numpy

    return random.random(), float(numpy.random.random())


def draw_to_file() -> None:
    """Every rank writes what it draws."""
    Path(f"drawn-{os.environ['MATFORGE_RANK']}").write_text(repr(draw()))


def import_and_look(name: str, folder: str) -> tuple[str, int, str | None]:
    """Import a module that sets things; what NumPy and the environment then are."""
    sys.path.insert(0, folder)
    __import__(name)
    return what_modules_set()


def what_modules_set() -> tuple[str, int, str | None]:
    import numpy

    return numpy.geterr()["divide"], logging.getLogger("sets_things").level, os.environ.get("SET_BY_IMPORT")


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


def family_and_return(note: str) -> int:
    """A child and a ``setsid`` grandchild are left running."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "1000"])
        os._exit(0)
    child = subprocess.Popen(["sleep", "1000"])
    while len(pids := [p for p in processes.descendants_of(os.getpid()) if p != child.pid]) != 1:
        with suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
    Path(note).write_text(f"{child.pid} {pids[0]}")
    return child.pid


def ignore_terminations() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()


def hold(count: int, *, forks: int = 0, pause: bool = False) -> int:
    """Occupy ``count`` bytes while children share them, and give them back."""
    held = b"x" * count
    pids = []
    for _ in range(forks):
        pid = os.fork()
        if pid == 0:
            signal.pause()
        pids.append(pid)
    # long enough to be weighed a few times
    ctypes.CDLL(None).usleep(400_000)
    while pause:
        signal.pause()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return len(held)


def take_everything() -> None:
    """More than there is."""
    while True:
        _KEPT_BYTES.append(b"x" * (16 << 20))


def hold_in_children(count: int) -> None:
    """Every one of three children occupies ``count`` bytes."""
    for _ in range(3):
        if os.fork() == 0:
            held = b"x" * count
            while held:
                signal.pause()
    while True:
        signal.pause()


def keep(count: int) -> int:
    """Leave ``count`` bytes in the slot."""
    _KEPT_BYTES.append(b"x" * count)
    return os.getpid()


def vanish(folder: str) -> int:
    """Remove a folder of the run while the chore runs."""
    shutil.rmtree(folder)
    return 1


def publish_late(note: str, gate: str, folder: str) -> str:
    """The first attempt leaves a process behind that has hidden, and will overwrite what it can."""
    tag = "e1a1"
    if Path(note).exists():
        return "second"
    script = (
        "import os, pathlib, sys\n"
        "note, gate, folder, tag = sys.argv[1:]\n"
        "pathlib.Path(note).write_text(str(os.getpid()))\n"
        "open(gate, 'rb').read(1)\n"
        "for name in ('result.pickle', 'stdout', 'stderr'):\n"
        "    pathlib.Path(folder, f'{name}.{tag}').write_text('stale')\n"
    )
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve(sys.executable, [sys.executable, "-c", script, note, gate, folder, tag], {})
        os._exit(0)
    while True:
        signal.pause()


if __name__ == "__main__":
    family(sys.argv[1])
