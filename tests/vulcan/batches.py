"""Batches of vacua for tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from matforge.vulcan import StagedShard, Vulcan
from matforge.vulcan.writer import SYNCED_DIRNAME, list_pending, move_to

GEOMETRY = {"h11": 3, "h12": 2, "ks_id": 384564, "triang_id": 0}
REPO = "me/forge"


def vacua(rows: int = 4, number: int = 0, h12: int = 2, **columns: Any) -> pd.DataFrame:
    """Random vacua, other ones for another ``number``; ``columns`` are added or replaced."""
    rng = np.random.default_rng(number)
    frame = pd.DataFrame(
        {
            "flux": [row.tolist() for row in rng.integers(-9, 10, (rows, 4 * h12 + 4))],
            "moduli_re": [row.tolist() for row in rng.normal(0, 0.5, (rows, h12))],
            "moduli_im": [row.tolist() for row in 2 + rng.random((rows, h12))],
            "tau_re": rng.normal(0, 0.1, rows),
            "tau_im": 1 + rng.random(rows),
        }
    )
    return frame.assign(**{name: _column(value) for name, value in columns.items()})


def _column(value: Any) -> Any:
    """Lists of lists stay lists, one a row."""
    return pd.Series(list(value), dtype=object) if isinstance(value, list) and _nested(value) else value


def _nested(value: list[Any]) -> bool:
    return any(isinstance(entry, list | np.ndarray) for entry in value)


def forge(folder: Path, **arguments: Any) -> Vulcan:
    """A handle on a staging folder in ``folder``."""
    return Vulcan(**{"repo": REPO, "staging_dir": folder / "staging", "project": "demo", **arguments})


def published(folder: Path, batches: Iterator[tuple[dict[str, Any], pd.DataFrame]] | Any) -> Vulcan:
    """A handle with these (geometry, batch) pairs in ``synced/``."""
    handle = forge(folder)
    for geometry, frame in batches:
        handle.write(frame, geometry, tadpole_charge=12)
    publish(handle)
    return handle


def publish(handle: Vulcan) -> list[StagedShard]:
    """Move what is pending to ``synced/``, as a sync does."""
    return [move_to(shard, handle.staging_dir, SYNCED_DIRNAME) for shard in list_pending(handle.staging_dir)]


def files_below(folder: Path) -> list[str]:
    """All files below a folder, relative to it."""
    return sorted(
        str(Path(where, name).relative_to(folder)) for where, _, names in os.walk(folder) for name in names
    )
