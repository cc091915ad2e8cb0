"""``python -m matforge`` is the ``matforge`` command."""

from matforge.cli import main

main()
