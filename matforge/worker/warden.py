"""A process that outlives its agent by a moment: it ends what an agent that was killed leaves behind.

An agent that ends in any other way does that itself, and slots end with their agent (parent-death
signal). But what a chore has started, and what has left its session, hears of neither, and the
driver, which would look for it, may have been killed at the same time.
"""

from __future__ import annotations

import os
import shutil
import signal

from matforge.worker import processes
from matforge.worker.wire import AgentConfig

DYING_S = 2.0
"""Seconds that a driver which was killed together with its agent may take to be gone."""


def start(config: AgentConfig) -> int:
    """Fork the warden of the calling process, which must not have any threads yet.

    Returns
    -------
    int
        Its process id; it ends when it is killed, or soon after the caller has ended.
    """
    reader, _writer = os.pipe()
    pid = os.fork()
    if pid > 0:
        os.close(reader)  # the other end stays open as long as the caller lives
        return pid
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.dup2(reader, 0)
        os.closerange(1, os.sysconf("SC_OPEN_MAX"))
        os.read(0, 1)
        _clean_up(config)
    finally:
        os._exit(0)


def _clean_up(config: AgentConfig) -> None:
    processes.sweep(config.token)
    shutil.rmtree(config.scratch, ignore_errors=True)
    if config.parent and processes.ends_within(config.parent, DYING_S):
        # nobody else is left to remove the driver's private directory; the agent may still be removing
        # its own part of it, which must not end this
        shutil.rmtree(os.path.dirname(config.scratch), ignore_errors=True)
