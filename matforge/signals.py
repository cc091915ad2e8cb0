"""Ctrl-C, SIGTERM and SIGHUP: they end the runs of this process cleanly, so that they can be resumed.

SIGHUP is what the driver gets when its terminal is closed, and when a Flux instance is told to end:
a broker that is sent SIGTERM, by Slurm at the end of the time limit, passes it on as that.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol


class Live(Protocol):
    """A run that a thread of this process drives."""

    @property
    def run_dir(self) -> Path:
        """Its directory."""

    @property
    def over(self) -> bool:
        """Whether it has ended."""

    def interrupt(self, reason: str) -> None:
        """End it soon, resumable."""

    def drain(self, reason: str, within: float | None = None) -> None:
        """Start nothing more and let what runs end, for so many seconds."""

    def join(self, timeout: float) -> None:
        """Wait for its thread."""

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for its end."""

    def outcome(self) -> Any:
        """What came of it; raises if it did not complete."""


TERM_S = 20.0
"""Seconds that chores have to end after SIGTERM; Slurm and others kill after 30."""

ONCE_S = 1.0
"""Seconds in which the same signal twice counts as once: ``timeout``, and some batch systems, send
theirs to the process and then to its group."""

_told: tuple[int, float] | None = None
"""By which signal the runs of this process were told to end, and when (monotonic)."""
_LIVE: weakref.WeakSet[Live] = weakref.WeakSet()
"""Sessions of this process that a signal has to end."""


def live() -> list[Live]:
    """Sessions of this process, ended or not."""
    return list(_LIVE)


def catch(session: Live) -> None:
    """Signals end the runs of this process cleanly, unless it handles them itself.

    Ctrl-C stops them at once. SIGTERM and SIGHUP let what runs end for :data:`TERM_S` seconds, SIGUSR1
    for as long as the allocation lasts; a second signal stops at once. The process leaves with 130 or 75.
    """
    _LIVE.add(session)
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP, and it stays ignored
            signal.signal(number, _on_end)


def _open() -> list[Live]:
    return [session for session in _LIVE if not session.over]


def _stop(reason: str) -> None:
    sessions = _open()
    for one in sessions:
        one.interrupt(reason)
    for one in sessions:
        one.join(10)


def _on_interrupt(signum: int, frame: Any) -> None:
    _stop("Ctrl-C")
    if not threading.main_thread().is_alive():
        _leave(130)
    raise KeyboardInterrupt


def _on_end(signum: int, frame: Any) -> None:
    global _told
    name = signal.Signals(signum).name
    sessions = _open()
    if not sessions:  # none of our business: do what would have been done without us
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
        return
    if _told is not None:
        first, when = _told
        if signum == signal.SIGHUP:
            return  # Slurm has sent SIGTERM to all, and Flux passes on what its broker was sent
        if signum == first and time.monotonic() - when < ONCE_S:
            return
        _stop(f"a second {name}")
    else:
        _told = signum, time.monotonic()
        for one in sessions:
            one.drain(name, None if signum == signal.SIGUSR1 else TERM_S)
        for one in sessions:
            while not one.over:
                one.join(1.0)
    _told = None
    _tell(sessions)
    _leave(75)


def _tell(sessions: list[Live]) -> None:
    """Say what came of runs that a signal has ended: nobody else does, because the script ends here."""
    for one in sessions:
        try:
            one.outcome()
        except Exception as error:  # what it says is for people
            # not through sys.stderr, in the middle of whose work the signal may have come
            with suppress(OSError):
                os.write(2, f"matforge: {error}\n".encode())


def _leave(code: int) -> None:
    """End the process; a script that has come to its end, and only waits for its runs, hears no exception."""
    if threading.main_thread().is_alive():
        raise SystemExit(code)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)
