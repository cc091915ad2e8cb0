"""One publisher a staging folder, as long as it lives."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from matforge.lease import RENEW_S, HeldError, Lease
from matforge.vulcan import layout
from matforge.vulcan.errors import BusyError


class StagingLease(Lease):
    """The lock of a staging folder; a context manager that renews it beside the work.

    Raises
    ------
    BusyError
        On entering, if another process publishes from the folder.
    """

    error = BusyError

    def __init__(self, staging_dir: Path) -> None:
        super().__init__(Path(staging_dir) / layout.LOCK_NAME)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="vulcan-lease", daemon=True)

    def busy_sentence(self, who: str) -> str:
        """What a person is told when ``who`` publishes."""
        return f"{self.path.parent} is being published by {who}; wait for it, or end it first."

    def lost_sentence(self) -> str:
        """What a person is told when another publisher took over."""
        return f"{self.path.parent} was taken over by another publisher; this one stops."

    def __enter__(self) -> StagingLease:
        self.acquire(time.time())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.release()

    def _keep(self) -> None:
        # an upload may take minutes, in which nothing else could renew
        while not self._end.wait(RENEW_S):
            try:
                self.renew(time.time())
            except (HeldError, OSError):
                return  # the publisher finds out before it freezes anything


class BriefLease(Lease):
    """The lock of one file that is changed in a moment; on entering, others are waited for.

    Parameters
    ----------
    path : Path
        The file; the lock lies beside it.
    patience_s : float
        After this, whoever still holds it is reported.
    """

    def __init__(self, path: Path, patience_s: float = 30.0) -> None:
        super().__init__(path.with_name(f"{path.name}.lock"))
        self._patience_s = patience_s

    def __enter__(self) -> BriefLease:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                self.acquire(time.time())
                return self
            except HeldError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self.release()
