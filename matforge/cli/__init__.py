"""The ``matforge`` command."""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    """Entry point of the command line."""
    try:
        _open_streams()
        from matforge.cli.app import run

        run()
    except KeyboardInterrupt:  # before a command had begun, or once more while its end was told
        from matforge.cli.console import INTERRUPTED, Exit, leave

        leave(Exit.INTERRUPTED, INTERRUPTED)


def _open_streams() -> None:
    """Let none of the first three numbers, where a stream was closed, be that of some file of ours."""
    from matforge.cli.console import Output

    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            stream = os.fdopen(number, "w", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = Output.around(sys.stdout)
