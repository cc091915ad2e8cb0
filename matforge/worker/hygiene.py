"""What a chore must not leave behind in a warm slot.

Put back after every chore, before its result is published: environment, umask, signal handlers and
mask, timers, limits of resources, and the settings of :mod:`matforge.worker.settings`; the slot
sees to directory and streams. Python's and NumPy's global generators begin at the chore's own seed.
What cannot be put back makes the slot unfit for another chore, and it is replaced: threads that go
on, children that had to be killed, many files left open, a limit that may not be raised again.

Imported modules and compiled kernels stay: that is what a warm slot is for. So does what a module
sets while it is *imported*, because the import will not happen again; what a function sets is
undone. Objects of modules that a function changes in place (its own globals, say) stay changed.
Chores that must have a precision of their own ask for it with ``env={"JAX_ENABLE_X64": "1"}``, and
get slots of their own.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import faulthandler
import os
import resource
import signal
import sys
import sysconfig
import threading
from types import FrameType

from matforge.worker import processes
from matforge.worker.seeds import Generators
from matforge.worker.settings import TABLE, ImportWatch, JaxWatch, Settings

_WATCHED_SIGNALS = [
    int(getattr(signal, name))
    for name in (
        "SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGQUIT",
        "SIGCONT", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGVTALRM", "SIGPROF", "SIGXCPU", "SIGXFSZ",
    )
    if hasattr(signal, name)
]  # fmt: skip
_OF_A_LIBRARY = "_matforge_of_a_library"
"""Mark of a thread that an installed library has started for itself, as fsspec and tqdm do; such
threads last as long as the process, and replacing the slot would only bring them back."""


_WATCHED_LIMITS = [
    int(getattr(resource, f"RLIMIT_{name}"))
    for name in ("AS", "CORE", "CPU", "DATA", "FSIZE", "NOFILE", "NPROC", "STACK")
    if hasattr(resource, f"RLIMIT_{name}")
]
FILES_ALLOWED = 64
"""Descriptors that chores may leave open: libraries keep some, for good reason."""


class Baseline:
    """The state of the process between chores."""

    def __init__(self) -> None:
        self._mapping = os.environ
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        # _signal, because signal.getsignal spends most of its time on making enumeration members
        self._handlers = {number: _signal.getsignal(number) for number in _WATCHED_SIGNALS}
        self._mask = _signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._limits = {which: resource.getrlimit(which) for which in _WATCHED_LIMITS}
        self._priority = os.getpriority(os.PRIO_PROCESS, 0)
        self._affinity = _affinity()
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._files = self._lowest_free_descriptor()
        self._threads = set(threading.enumerate())
        self._generators = Generators()
        _note_who_starts_threads()
        self._jax = JaxWatch()
        self._imports = ImportWatch(self._before_import, self._after_import)
        self._settings = Settings(TABLE)  # the last, so that it knows the watch itself
        self._jax.hook(lambda: self._imports.inside)

    def begin(self, variables: dict[str, str], seed: int) -> None:
        """Set the variables of one chore, which stay until the next one's replace them, and its seed."""
        for name, value in variables.items():
            os.environ[name] = value
        self._settings.keep("os")
        self._generators.begin(seed)

    def _before_import(self) -> None:
        self._had_files = self._lowest_free_descriptor()
        self._settings.before_import()

    def _after_import(self) -> None:
        self._settings.after_import()
        self._files += max(0, self._lowest_free_descriptor() - self._had_files)
        self._jax.hook(lambda: self._imports.inside)
        self._generators.after_import()

    def restore(self) -> str:
        """Undo what a chore changed.

        Returns
        -------
        str
            Why the slot must be replaced; empty if it is clean.
        """
        faulthandler.cancel_dump_traceback_later()
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        for number, handler in self._handlers.items():
            if _signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        _signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if not faulthandler.is_enabled():
            faulthandler.enable()
        os.environ = self._mapping  # noqa: B003 - a chore may have put something else there
        os.umask(self._umask)
        self._settings.restore()
        self._jax.restore()
        return (
            self._changed_limits()
            or self._leaked_children()
            or self._leaked_threads()
            or self._leaked_files()
        )

    def _changed_limits(self) -> str:
        """Undo what a chore may do to its process, as far as the system lets it be undone."""
        try:
            for which, limits in self._limits.items():
                if resource.getrlimit(which) != limits:
                    resource.setrlimit(which, limits)
            if os.getpriority(os.PRIO_PROCESS, 0) != self._priority:
                os.setpriority(os.PRIO_PROCESS, 0, self._priority)
            if _affinity() != self._affinity:
                os.sched_setaffinity(0, self._affinity)
        except (OSError, ValueError) as error:
            return f"a chore changed a limit of its process that cannot be put back ({error})"
        return ""

    def _lowest_free_descriptor(self) -> int:
        """Two short system calls, where to count the open ones takes a look through a directory."""
        try:
            try:
                lowest = os.dup(self._null)
            except OSError:  # the chore has closed it, or left no descriptor free
                self._null = lowest = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return sys.maxsize
        if lowest not in (0, self._null):  # 0: it has closed its standard input, and this is a new one
            os.close(lowest)
        return lowest

    def _leaked_files(self) -> str:
        left = self._lowest_free_descriptor() - self._files
        return f"a chore left {left} files open" if left > FILES_ALLOWED else ""

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


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


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
