"""Ctrl-C, SIGTERM and SIGHUP: they end the runs of this process cleanly, so that they can be resumed.

SIGHUP is what the driver gets when its terminal is closed, and when a Flux instance is told to end:
a broker that is sent SIGTERM, by Slurm at the end of the time limit, passes it on as that.
"""

from __future__ import annotations

import os
import signal
import threading
import weakref
from typing import Any, Protocol


class Live(Protocol):
    """A run that a thread of this process drives."""

    @property
    def over(self) -> bool:
        """Whether it has ended."""

    def interrupt(self, reason: str) -> None:
        """End it soon, resumable."""

    def join(self, timeout: float) -> None:
        """Wait for its thread."""

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for its end."""

    def outcome(self) -> Any:
        """What came of it; raises if it did not complete."""


_LIVE: weakref.WeakSet[Live] = weakref.WeakSet()
"""Sessions of this process that a signal has to end."""


def live() -> list[Live]:
    """Sessions of this process, ended or not."""
    return list(_LIVE)


def catch(session: Live) -> None:
    """These signals end the runs of this process cleanly, unless it handles them itself."""
    _LIVE.add(session)
    if threading.current_thread() is not threading.main_thread():
        return

    def end_all(reason: str) -> bool:
        live = [s for s in _LIVE if not s.over]
        for one in live:
            one.interrupt(reason)
        for one in live:
            one.join(10)
        return bool(live)

    def on_interrupt(signum: int, frame: Any) -> None:
        end_all("Ctrl-C")
        raise KeyboardInterrupt

    def on_terminate(signum: int, frame: Any) -> None:
        if not end_all(signal.Signals(signum).name):
            # none of our business: do what would have been done without us
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        raise SystemExit(75)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, on_interrupt)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP, and then it stays ignored
            signal.signal(number, on_terminate)
