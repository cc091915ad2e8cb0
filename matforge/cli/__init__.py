"""The ``matforge`` command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of the command line."""
    _open_streams()
    try:
        from matforge.cli.app import run

        run()
    except KeyboardInterrupt:  # before a command had begun, or once more while its end was told
        from matforge.cli.console import INTERRUPTED, Exit, leave

        leave(Exit.INTERRUPTED, INTERRUPTED)


def _open_streams() -> None:
    """Let none of the first three numbers, where a stream was closed, be that of some file of ours."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
