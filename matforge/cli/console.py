"""How the commands speak: results to standard output, everything else to standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, NoReturn, TextIO

from matforge.model import MatForgeError, UsageError

PIPE_WIDTH = 500
INTERRUPTED = "interrupted; `matforge resume RUN` goes on with a run that had begun."


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FAILED = 1
    """Chores failed, or a check or merge is incomplete."""
    USAGE = 2
    """Wrong use, or a request that can never fit; told before work starts."""
    REFUSED = 3
    """A remote refuses us: credentials, missing repository."""
    UNFINISHED = 75
    """Ended before its end, and can be resumed."""
    INTERRUPTED = 130
    """Ctrl-C."""


def complain(sentence: str) -> None:
    """One sentence on standard error."""
    try:
        print(f"matforge: {sentence}", file=sys.stderr, flush=True)
    except OSError:  # the exit code says it, too
        say_no_more(sys.stderr)


def say_no_more(stream: TextIO) -> None:
    """Forget what a stream still holds: it cannot be written, nor when Python ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def leave(code: Exit, sentence: str = "") -> NoReturn:
    """End the command."""
    if sentence:
        complain(sentence)
    raise SystemExit(int(code))


@contextmanager
def sentences() -> Iterator[None]:
    """Turn the errors that a user can cause into one sentence and the right exit code."""
    try:
        yield
    except UsageError as error:
        leave(Exit.USAGE, str(error))
    except MatForgeError as error:
        leave(*_judge(error))


def _judge(error: MatForgeError) -> tuple[Exit, str]:
    from matforge.engine.store import StorageError
    from matforge.lease import HeldError
    from matforge.session import InterruptedRunError
    from matforge.vulcan.errors import RefusedError

    if isinstance(error, HeldError | StorageError | InterruptedRunError):
        return Exit.UNFINISHED, str(error)
    return Exit.REFUSED if isinstance(error, RefusedError) else Exit.FAILED, str(error)


def log_to_stderr() -> None:
    """Print what the log of a run gets (``--verbose``)."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("matforge").addHandler(handler)


def no_bars_in_logs() -> None:
    """Let the Hub's client draw progress bars for a person only, not into the log of a cron job.

    To be called before it is imported, because that is when it looks.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def out(*objects: Any, **options: Any) -> None:
    """Print through rich: tables and colours on a terminal, plain text in a pipe."""
    from rich.console import Console

    # whoever reads a pipe wants a row on one line, however long
    console = Console() if sys.stdout.isatty() else Console(soft_wrap=True, width=PIPE_WIDTH)
    console.print(*objects, **options)
