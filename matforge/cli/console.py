"""How the commands speak: results to standard output, everything else to standard error."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from matforge.model import MatForgeError, UsageError, why_unwritable

if TYPE_CHECKING:
    from pandas import DataFrame

PIPE_WIDTH = 500
INTERRUPTED = "interrupted; `matforge resume RUN` goes on with a run that had begun."
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Where writing may well succeed later."""


STDOUT = "standard output"


class Output(io.TextIOWrapper):
    """Standard output whose errors say that they are its own, and not those of some file or socket."""

    @classmethod
    def around(cls, stream: io.TextIOWrapper) -> Output:
        """The same stream."""
        return cls(
            stream.buffer,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def write(self, text: str) -> int:
        with _named(STDOUT):
            return super().write(text)

    def flush(self) -> None:
        with _named(STDOUT):
            super().flush()

    def close(self) -> None:
        """Only write out: the other one stands for the same stream."""
        self.flush()


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = name
        raise


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


def tell_files(error: OSError) -> NoReturn:
    """End the command because of a file, a folder or a disk that somebody should put right."""
    if error.filename == STDOUT:
        say_no_more(sys.stdout)
        if error.errno == errno.EPIPE:  # whoever read it has gone
            raise SystemExit(int(Exit.FAILED))
    full = error.errno in FULL
    said = f"{error}."
    if full or error.filename:
        verb = "written" if full or error.filename == STDOUT else "used"
        said = f"{error.filename or 'Something'} cannot be {verb}: {why_unwritable(error)}."
    leave(Exit.UNFINISHED if full else Exit.USAGE, said)


def save(frame: DataFrame, path: Path) -> None:
    """Write a table to a parquet file, whole or not at all.

    Raises
    ------
    UsageError, StorageError
        If it cannot be written there, or only now not.
    """
    from matforge.engine.store import StorageError
    from matforge.vulcan import layout

    # a pipe or a device is written to, never replaced
    beside = path if path.exists() and not path.is_file() else layout.beside(path)
    try:
        with beside.open("wb") as file:
            frame.to_parquet(file)
        if beside != path:
            os.replace(beside, path)
    except OSError as error:
        kind = StorageError if error.errno in FULL else UsageError
        raise kind(f"{path} cannot be written: {why_unwritable(error, 'give another file')}.") from error
    finally:
        if beside != path:
            with suppress(OSError):
                beside.unlink()


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
