"""The ``matforge`` command."""

from __future__ import annotations


def main() -> None:
    """Entry point of the command line."""
    try:
        from matforge.cli.app import run

        run()
    except KeyboardInterrupt:  # before a command had begun, or once more while its end was told
        from matforge.cli.console import INTERRUPTED, Exit, leave

        leave(Exit.INTERRUPTED, INTERRUPTED)
