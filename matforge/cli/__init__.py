"""The ``matforge`` command."""

from __future__ import annotations


def main() -> None:
    """Entry point of the command line."""
    from matforge.cli.app import run

    run()
