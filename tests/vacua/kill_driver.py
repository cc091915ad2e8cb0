"""Starts or resumes a search whose driver kills itself, with SIGKILL, right after journal record k.

python kill_driver.py start K BASE   /   python kill_driver.py resume K RUN
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from matforge.engine.journal import Journal
from matforge.opening import reopen
from matforge.vacua import load_geometry
from matforge.vacua.campaign import Tuning, start
from matforge.vacua.region import Region

TUNING = Tuning(block=2048)


def small_region() -> Region:
    """N_flux <= 6 of Dataset B's region: 134 vacua modulo sign."""
    return Region.parse(load_geometry("p11169"), "2:5", ":10", 6)


def main(what: str, last: int, where: str) -> None:
    """Arm the journal, then run."""
    original = Journal.append

    def append(self: Journal, record: dict[str, Any]) -> None:
        original(self, record)
        if self.sequence > last:
            self.flush(0.0)
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.append = append  # type: ignore[method-assign]
    if what == "start":
        session = start(load_geometry("p11169"), small_region(), tuning=TUNING, basedir=where, workers=2)
    else:
        session = reopen(Path(where), quiet=True)
    session.wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
