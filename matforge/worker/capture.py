"""What a chore prints, from Python or from C, goes to files.

Descriptors 1 and 2 of a slot always lie on two scratch files in the agent's private directory. In
the full layout they are turned to the chore's own files while it runs. In the packed layout the
scratch files are emptied after every chore, and copied to ``out/<chore_id>/`` only if anything
was printed.
"""

from __future__ import annotations

import ctypes
import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_FILE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
STDERR_TAIL = 4096


class Streams:
    """The standard output and error of a slot.

    Must be made while descriptors 1 and 2 lie on the scratch files, which are in ``scratch``.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch_folder = scratch
        self._scratch = (os.dup(1), os.dup(2))
        self._current = self._scratch
        self._folder: Path | None = None
        self._open: tuple[int, ...] = ()
        self._empty = False
        """Whether nothing was found to be printed."""
        try:
            self._flush_c: Any = ctypes.CDLL(None).fflush
        except (OSError, AttributeError):
            self._flush_c = None
        self._python = _new_writers()

    def begin(self, folder: Path | None, tag: str) -> None:
        """Turn to ``folder/stdout.<tag>`` and ``stderr.<tag>``, or to the scratch files.

        Raises
        ------
        OSError
            If the files cannot be made.
        """
        self._folder, self._empty = folder, False
        if folder is not None:
            out = os.open(folder / f"stdout.{tag}", _FILE_FLAGS | os.O_TRUNC, 0o666)
            try:
                self._open = (out, os.open(folder / f"stderr.{tag}", _FILE_FLAGS | os.O_TRUNC, 0o666))
            except OSError:
                os.close(out)
                raise
            self._current = (self._open[0], self._open[1])
            self._point()  # in the packed layout they lie where the last chore's end has put them

    def _point(self) -> None:
        os.dup2(self._current[0], 1)
        os.dup2(self._current[1], 2)

    def flush(self) -> OSError | None:
        """Empty the buffers of Python and C; the error, if the files could not take it all."""
        trouble: OSError | None = None
        self._point()  # a chore may have turned the descriptors elsewhere, or closed them
        writers = {id(w): w for w in (sys.stdout, sys.stderr, *self._python) if w is not None}
        for writer in writers.values():
            try:
                writer.flush()
            except OSError as error:
                trouble = error
            except Exception:
                # closed or replaced by the chore with something of its own
                continue
        sys.stdout, sys.stderr = self._python
        if trouble is not None or any(w.closed for w in self._python):
            self._python = _new_writers()
        if self._flush_c is not None:
            self._flush_c(None)
        return trouble

    @property
    def folder(self) -> Path:
        """Where the files lie that take what is printed now."""
        return self._folder or self._scratch_folder

    def printed(self) -> bool:
        """Whether anything has been printed since :meth:`begin`; call after :meth:`flush`."""
        self._empty = not any(os.fstat(f).st_size for f in self._current)
        return not self._empty

    def tail(self, limit: int = STDERR_TAIL) -> str:
        """The end of what was written to standard error."""
        size = os.fstat(self._current[1]).st_size
        return os.pread(self._current[1], limit, max(0, size - limit)).decode(errors="replace")

    def copy_to(self, folder: Path, tag: str) -> None:
        """Keep what is in the scratch files as ``folder/stdout.<tag>`` and ``stderr.<tag>``.

        Raises
        ------
        OSError
            If that cannot be written.
        """
        folder.mkdir(exist_ok=True)
        for name, descriptor in zip(("stdout", "stderr"), self._scratch, strict=True):
            copy_stream(descriptor, folder / f"{name}.{tag}")

    def end(self) -> None:
        """Turn back to the scratch files, and empty them."""
        if self._open:
            for descriptor in self._open:
                with suppress(OSError):
                    os.close(descriptor)
            self._open = ()
            self._current = self._scratch
            self._point()
        elif self._empty:
            return
        for descriptor in self._scratch:
            if os.fstat(descriptor).st_size:
                os.ftruncate(descriptor, 0)


def copy_stream(descriptor: int, path: Path) -> None:
    """Copy an open file, from its beginning, to ``path``."""
    with path.open("wb") as file:
        offset = 0
        while piece := os.pread(descriptor, 1 << 20, offset):
            file.write(piece)
            offset += len(piece)


def _new_writers() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """Text streams on descriptors 1 and 2, which survive a crash line by line."""
    writers = []
    for descriptor in (1, 2):
        raw = io.BufferedWriter(io.FileIO(descriptor, "wb", closefd=False))
        writers.append(
            io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        )
    sys.stdout, sys.stderr = writers
    sys.__stdout__, sys.__stderr__ = writers  # type: ignore[misc]
    return writers[0], writers[1]
