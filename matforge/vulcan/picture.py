"""The picture on the data-set card: tau, moduli and N_flux of what this folder published."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from matforge.vulcan import layout

PICTURE_NAME = "figures/vacua.png"
POINTS = 20_000
"""Vacua drawn; of more, every so-manieth."""
_COLUMNS = ["tau_re", "tau_im", "moduli_re", "moduli_im", "tadpole_charge"]


def draw(files: Iterable[Path]) -> bytes | None:
    """A PNG of the vacua in these files; None without matplotlib or without vacua."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    table = _sample(list(files))
    if table is None:
        return None
    figure = Figure(figsize=(11, 3.6), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    small = {"s": 3, "alpha": 0.5, "linewidths": 0}
    left.scatter(table["tau_re"], table["tau_im"], **small)
    left.set(xlabel=r"Re $\tau$", ylabel=r"Im $\tau$", title="axio-dilaton")
    middle.scatter(_first(table["moduli_re"]), _first(table["moduli_im"]), **small)
    middle.set(xlabel=r"Re $z^1$", ylabel=r"Im $z^1$", title="first modulus")
    charges, counts = np.unique(table["tadpole_charge"].to_numpy(), return_counts=True)
    right.bar(charges, counts)
    right.set(xlabel=r"$N_\mathrm{flux}$", title=f"{table.num_rows:,} vacua drawn")
    sink = io.BytesIO()
    figure.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()


def published_files(staging_dir: Path) -> list[Path]:
    """Files that were published from this folder and are kept for readers."""
    return sorted((staging_dir / layout.PARTS_DIRNAME).glob(f"*{layout.SUFFIX}"))


def _sample(files: Sequence[Path]) -> pa.Table | None:
    sizes = []
    for path in files:
        with suppress(pa.ArrowException, OSError):  # kept for readers; deleted at any time
            sizes.append((path, pq.read_metadata(path).num_rows))
    step = max(1, -(-sum(rows for _, rows in sizes) // POINTS))
    parts = []
    for path, _ in sizes:
        with suppress(pa.ArrowException, OSError, KeyError):
            table = pq.read_table(path, columns=_COLUMNS, partitioning=None)
            parts.append(table.take(pa.array(np.arange(0, table.num_rows, step))))
    return pa.concat_tables(parts) if any(part.num_rows for part in parts) else None


def _first(lists: Any) -> Any:
    return np.array([row[0] for row in lists.to_pylist()])
