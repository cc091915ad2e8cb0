"""A pipe that makes a poll return, from any thread."""

from __future__ import annotations

import os
import threading
from contextlib import suppress


class Waker:
    """Something to poll for (:attr:`descriptor`), and :meth:`wake`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.descriptor, self._write = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._write, False)
        self._closed = False

    def wake(self) -> None:
        """Make the descriptor readable."""
        with self._lock:  # a closed descriptor may be another file's by now
            if not self._closed:
                with suppress(BlockingIOError):
                    os.write(self._write, b"w")

    def clear(self) -> None:
        """Read what was written."""
        with suppress(BlockingIOError):
            while os.read(self.descriptor, 4096):
                pass

    def close(self) -> None:
        """Idempotent; later wakes do nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.descriptor)
                os.close(self._write)
