"""What the tests of publishing stage, and a clock that they move."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from matforge.vulcan import Vulcan
from matforge.vulcan.report import SyncReport
from tests.vulcan.hub import LoopbackHub

REPO = "me/forge"
NOW = 1.7e9


@dataclass
class Clock:
    """Time that passes only when somebody sleeps."""

    now: float = NOW
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def vacua(n: int = 4, seed: int = 0, h12: int = 2) -> pd.DataFrame:
    """Some rows that look like vacua."""
    dice = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "flux": dice.integers(-9, 10, size=(n, 4 * h12 + 4)).tolist(),
            "moduli_re": dice.uniform(-0.5, 0.5, (n, h12)).tolist(),
            "moduli_im": dice.uniform(1.0, 3.0, (n, h12)).tolist(),
            "tau_re": dice.uniform(-0.5, 0.5, n),
            "tau_im": dice.uniform(1.0, 5.0, n),
        }
    )


def forge(folder: Path, repo: str = REPO, **options: Any) -> Vulcan:
    """A handle on a folder of the test's."""
    return Vulcan(repo=repo, staging_dir=folder, token="hf_test", **options)


def stage(handle: Vulcan, n: int, first: int = 0, rows: int = 4) -> list[str]:
    """Stage ``n`` shards, each of a geometry of its own; their run ids."""
    return [
        handle.write(
            vacua(rows, seed=k), {"h11": 3, "h12": 2, "ks_id": k, "triang_id": 0}, tadpole_charge=12
        ).run_id
        for k in range(first, first + n)
    ]


def publish(handle: Vulcan, hub: LoopbackHub, clock: Clock | None = None, **options: Any) -> SyncReport:
    """Sync with the loopback Hub, without waiting for real."""
    clock = clock or Clock()
    given = {"pictures": False, **options}  # drawing takes longer than everything else
    report = handle.sync(endpoint=hub.endpoint, clock=clock, sleep=clock.sleep, **given)
    assert isinstance(report, SyncReport)
    return report


def names(handle: Vulcan, state: str) -> list[str]:
    """Names of the parquet files in one of the folders."""
    return sorted(path.name for path in (handle.staging_dir / state).glob("*.parquet"))


def counts(handle: Vulcan) -> tuple[int, ...]:
    """Shards pending, synced, failed, in review."""
    return tuple(len(names(handle, state)) for state in ("pending", "synced", "failed", "in_review"))


def run_ids(hub: LoopbackHub, repo: str = REPO) -> list[str]:
    """The run id of every row on the Hub, sorted."""
    return sorted(row["run_id"] for row in hub.repositories[repo].rows())


def once_each(runs: list[str], rows: int = 4) -> list[str]:
    """What :func:`run_ids` gives if every row is there exactly once."""
    return sorted(run for run in runs for _ in range(rows))
