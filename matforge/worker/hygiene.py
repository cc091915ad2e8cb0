"""What a chore must not leave behind in a warm slot.

Put back after every chore: working directory, environment, umask, signal handlers, timers, and
``jax.config``. What cannot be put back (threads that go on, children that had to be killed) makes
the slot unfit for another chore, and it is replaced.

Imported modules and compiled kernels stay: that is what a warm slot is for. So does what a module
sets in ``jax.config`` while it is *imported*, because the import will not happen again; what a
function sets is undone. Chores that must have a precision of their own ask for it with
``env={"JAX_ENABLE_X64": "1"}``, and get slots of their own.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import importlib.util
import os
import signal
import sys
import sysconfig
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType
from typing import Any

from matforge.worker import processes

_WATCHED_SIGNALS = [
    int(getattr(signal, name))
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGPIPE")
    if hasattr(signal, name)
]
_OF_A_LIBRARY = "_matforge_of_a_library"
"""Mark of a thread that an installed library has started for itself, as fsspec and tqdm do; such
threads last as long as the process, and replacing the slot would only bring them back."""


class Baseline:
    """The state of the process between chores."""

    def __init__(self) -> None:
        self._mapping = os.environ
        # the mapping beneath os.environ: to copy and compare the decoded one costs twenty times as much
        self._live: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]
        self._environ = self._live.copy()
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        # _signal, because signal.getsignal spends most of its time on making enumeration members
        self._handlers = {number: _signal.getsignal(number) for number in _WATCHED_SIGNALS}
        self._recursion = sys.getrecursionlimit()
        self._threads = set(threading.enumerate())
        _note_who_starts_threads()
        self._jax = JaxWatch()

    def restore(self) -> str:
        """Undo what a chore changed.

        Returns
        -------
        str
            Why the slot must be replaced; empty if it is clean.
        """
        os.environ = self._mapping  # noqa: B003 - a chore may have put something else there
        if self._live != self._environ:
            self._restore_environment()
        os.umask(self._umask)
        for number, handler in self._handlers.items():
            if _signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        with suppress(AttributeError):
            signal.setitimer(signal.ITIMER_REAL, 0)
        if sys.getrecursionlimit() != self._recursion:
            sys.setrecursionlimit(self._recursion)
        self._jax.restore()
        return self._leaked_children() or self._leaked_threads()

    def set_environment(self, values: dict[str, str]) -> None:
        """Set the variables of one chore; they stay until the next one's replace them."""
        for name, value in values.items():
            os.environ[name] = value
        self._environ = self._live.copy()

    def _restore_environment(self) -> None:
        for name in self._live.keys() - self._environ.keys():
            del os.environ[os.fsdecode(name)]
        for name, value in self._environ.items():
            if self._live.get(name) != value:
                os.environ[os.fsdecode(name)] = os.fsdecode(value)

    def _leaked_threads(self) -> str:
        if threading.active_count() <= len(self._threads):
            return ""
        extra = [t for t in threading.enumerate() if t not in self._threads]
        for thread in extra:
            if not getattr(thread, _OF_A_LIBRARY, False):
                return f"a chore left the thread {thread.name!r} running"
        self._threads.update(extra)
        return ""

    @staticmethod
    def _leaked_children() -> str:
        """Kill what a chore started and did not wait for."""
        if not processes.has_children():
            return ""
        helper = _resource_tracker()
        killed = processes.kill_children(spare=helper)
        return f"a chore left {killed} child process(es)" if killed else ""


def _resource_tracker() -> list[int]:
    """The helper that ``multiprocessing`` keeps for shared memory; killing it only makes noise."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    pid = getattr(getattr(module, "_resource_tracker", None), "_pid", None)
    return [pid] if isinstance(pid, int) else []


def _note_who_starts_threads() -> None:
    """Mark the threads that installed libraries start."""
    start = threading.Thread.start
    libraries = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    standard = (sysconfig.get_path("stdlib"), "<frozen")

    def marked_start(thread: threading.Thread) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(libraries):
                setattr(thread, _OF_A_LIBRARY, thread.daemon)
                break
            if not file.startswith(standard):
                break
            frame = frame.f_back
        start(thread)

    threading.Thread.start = marked_start  # type: ignore[method-assign, assignment]


class JaxWatch(MetaPathFinder):
    """Notices what is changed in ``jax.config`` outside imports, so that it can be undone.

    JAX is not imported for it: the watch hooks on when a chore first imports JAX.
    """

    def __init__(self) -> None:
        self._config: Any = None
        self._update: Callable[[str, Any], None] | None = None
        self._before: dict[str, Any] = {}
        if "jax" in sys.modules:
            self._hook(sys.modules["jax"])
        else:
            sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Let the others find ``jax``, and be told when it has been imported."""
        if fullname != "jax":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_and_hook(module: ModuleType) -> None:
                execute(module)
                self._hook(module)

            with suppress(AttributeError):  # a loader that cannot be given a method is left alone
                spec.loader.exec_module = exec_and_hook  # type: ignore[method-assign]
        return spec

    def _hook(self, module: ModuleType) -> None:
        self._config = getattr(module, "config", None)
        update = getattr(self._config, "update", None)
        if update is None or not hasattr(self._config, "values"):
            return
        self._update = update

        def watched(name: str, value: Any) -> None:
            before = self._config.values.get(name)
            update(name, value)
            if _importing():
                self._before.pop(name, None)
            else:
                self._before.setdefault(name, before)

        with suppress(AttributeError):
            self._config.update = watched

    def restore(self) -> None:
        """Put back what functions have changed."""
        if self._before and self._update is not None:
            for name, value in self._before.items():
                self._update(name, value)
            self._before.clear()


def _importing() -> bool:
    """Whether the caller runs because some module is being imported."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib._bootstrap"):
            return True
        if frame.f_code.co_name == "call_chore":
            return False
        frame = frame.f_back
    return False
