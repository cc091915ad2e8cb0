"""Writers and publishers that are killed at random, against a Hub that fails at random.

Run by ``test_chaos.py``; as a script it is one writer or one publisher.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.vulcan.hub import Fault, LoopbackHub
from tests.vulcan.hub.faults import COMMIT

ROOT = Path(__file__).parents[2]
REPO = "me/forge"
ROWS = 3
ANY = r"^(POST|GET|HEAD|PUT) "
FAULTS = [
    Fault(COMMIT, 429, {"Retry-After": "0"}, "slow down"),
    Fault(COMMIT, 503),
    Fault(COMMIT, 504, after=True),
    Fault(COMMIT, drop=True),
    Fault(COMMIT, drop=True, after=True),
    Fault(ANY, 503, {"Retry-After": "0"}),
]


def write(folder: str, journal: str, seed: int) -> None:
    """Stage shards for ever; each is noted in the journal before and after."""
    from matforge.vulcan import Vulcan
    from tests.vulcan.staging import vacua

    handle = Vulcan(repo=REPO, staging_dir=folder)
    with open(journal, "a", buffering=1) as file:
        for n in range(10**9):
            geometry = {"h11": 3, "h12": 2, "ks_id": (seed * 7 + n) % 40}
            run = f"w{seed}-{os.getpid()}-{n}"
            file.write(f"begin {run}\n")
            handle.write(vacua(ROWS, seed=seed * 10_000 + n), geometry, tadpole_charge=5, run_id=run)
            file.write(f"end {run}\n")
            time.sleep(0.02)


def publish(folder: str, endpoint: str, budget: int) -> None:
    """Sync for ever; another publisher at work is waited for."""
    from matforge.vulcan import Vulcan
    from matforge.vulcan.errors import BusyError

    handle = Vulcan(repo=REPO, staging_dir=folder, token="x", budget=budget)
    while True:
        with suppress(BusyError):
            handle.sync(
                max_batch=20, endpoint=endpoint, pictures=False, sleep=lambda s: time.sleep(min(s, 0.05))
            )
        time.sleep(0.05)


def _briefly(seconds: float) -> None:
    time.sleep(min(seconds, 0.05))


@dataclass
class Chaos:
    """One run of it."""

    folder: Path
    hub: LoopbackHub
    budget: int
    dice: random.Random
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    kills: int = 0

    @property
    def staging(self) -> Path:
        return self.folder / "staging"

    def start(self, name: str) -> None:
        """Start a writer ``w3`` or a publisher ``p1``."""
        role, number = name[0], int(name[1:])
        given = [str(self.staging), str(self.folder / f"{name}.journal"), str(number)]
        if role == "p":
            given = [str(self.staging), self.hub.endpoint, str(self.budget)]
        command = [sys.executable, "-W", "ignore", str(Path(__file__)), role, *given]
        log = (self.folder / f"{name}.log").open("ab")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": self.hub.endpoint}
        with log:
            self.processes[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def run(self, seconds: float, writers: int, publishers: int) -> None:
        """Let it happen: once all are at work, somebody is killed every now and then, and comes back."""
        everybody = [f"w{n}" for n in range(writers)] + [f"p{n}" for n in range(publishers)]
        try:
            for name in everybody:
                self.start(name)
            deadline = time.monotonic() + 60
            while not self.hub.log and time.monotonic() < deadline:
                time.sleep(0.05)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(self.dice.uniform(0.4, 1.6))
                name = self.dice.choice(everybody)
                self.processes[name].kill()
                self.processes[name].wait()
                self.kills += 1
                self.start(name)
        finally:
            for process in self.processes.values():
                process.kill()
                process.wait()

    def staged(self) -> tuple[set[str], set[str]]:
        """Run ids whose writing was begun, and those whose writing was finished."""
        lines = [
            line.split() for path in self.folder.glob("w*.journal") for line in path.read_text().splitlines()
        ]
        whole = [line for line in lines if len(line) == 2]
        return {run for what, run in whole if what == "begin"}, {run for what, run in whole if what == "end"}

    def on_the_hub(self) -> Counter[str]:
        """How often each run's rows are on the Hub."""
        return Counter(row["run_id"] for row in self.hub.repositories[REPO].rows())


if __name__ == "__main__":
    if sys.argv[1] == "w":
        write(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        publish(sys.argv[2], sys.argv[3], int(sys.argv[4]))
