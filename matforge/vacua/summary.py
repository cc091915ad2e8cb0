"""``summary.json``: what a search found and what it cost, in one small document."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from matforge._version import __version__
from matforge.vacua.geometry import Geometry
from matforge.vacua.region import Region

FORMAT_VERSION = 1


def document(
    geometry: Geometry,
    region: Region,
    vacua: pa.Table,
    counts: Mapping[str, Any],
    n_shards: int,
    run_dir: Path,
) -> dict[str, Any]:
    """The summary of a finished search.

    Parameters
    ----------
    counts : mapping
        Sums over all chores: boxes, h, enumerated f, starts, ..., ``cpu_s``.
    run_dir : Path
        Its ``status.json`` says when the run began.
    """
    n_flux = vacua["n_flux"].to_numpy()
    by_n = np.bincount(n_flux, minlength=region.n_max + 1)[1:] if len(n_flux) else np.zeros(region.n_max, int)
    smallest = pc.min(vacua["W0_abs"]).as_py()
    stages = {
        name: value for name, value in counts.items() if name not in ("cpu_s", "block", "group", "batch")
    }
    return {
        "format_version": FORMAT_VERSION,
        "count_mod_sign": vacua.num_rows,
        "count_both_signs": 2 * vacua.num_rows,
        "by_n_flux": {str(n + 1): int(count) for n, count in enumerate(by_n)},
        "min_W0_abs": smallest,
        "max_residual": pc.max(vacua["residual"]).as_py(),
        "distinct_fluxes": _distinct(vacua),
        "wall_s": round(_wall(run_dir), 3),
        "core_s": round(float(counts.get("cpu_s", 0.0)), 3),
        "stages": {**stages, "shards": n_shards, "vacua": vacua.num_rows},
        "geometry": geometry.name,
        "geometry_hash": geometry.hash,
        "region": region.as_dict(),
        "versions": _versions(),
    }


def _distinct(vacua: pa.Table) -> int:
    """Flux vectors among the vacua: some have two vacua in the region."""
    flux = vacua["flux"].combine_chunks()
    if len(flux) == 0:
        return 0
    rows = flux.flatten().to_numpy().reshape(len(flux), -1)
    return len(np.unique(rows, axis=0))


def _wall(run_dir: Path) -> float:
    """Seconds since the run's first driver started, interruptions included."""
    try:
        began = json.loads((run_dir / "status.json").read_text())["workflow"]["started_at"]
        return time.time() - datetime.fromisoformat(began).timestamp()
    except (OSError, ValueError, KeyError):
        return 0.0


def _versions() -> dict[str, str]:
    out = {"matforge": __version__, "python": platform.python_version()}
    for name in ("numpy", "numba", "pyarrow"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "unknown"
    return out


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file at once."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(beside, path)
