"""The table of vacua: its columns, its canonical order, and its files.

One row per vacuum modulo the overall sign of (f, h). The bytes of ``vacua.parquet`` depend on the
geometry and the region only: not on workers, blocks, executors, strategies, time or place.

================  ==============  ===========================================================
column            type            content
================  ==============  ===========================================================
``flux``          list<int32>     [f | h], 4 h12 + 4 integers, the first non-zero one positive
``moduli_re``     list<double>    Re z^i, in (-1/2, 1/2]
``moduli_im``     list<double>    Im z^i
``tau_re``        double          Re tau, in (-1/2, 1/2]
``tau_im``        double          Im tau = s
``n_flux``        int32           f^T Sigma h
``W0_abs``        double          sqrt(2/pi) exp(K/2) |W|
``residual``      double          sqrt(2/pi) exp(K/2) sum_I |D_I W|, I over z^i and tau
``n_iterations``  int32           Newton steps of the last pass
================  ==============  ===========================================================
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from matforge._version import __version__
from matforge.vacua import domain
from matforge.vacua.geometry import Geometry
from matforge.vacua.region import Region

FORMAT_VERSION = 1
DIGITS = 8
"""Decimal digits kept before the last Newton pass, so that it starts from the same numbers everywhere."""
RESIDUAL_LIMIT = 1e-12
"""Every vacuum of the final table solves its equations to this."""
POLISH_SHAPE = 1024
"""Rows of a batch of the last pass, the last one padded: one fixed shape, whatever the table."""

Columns = tuple[NDArray[np.int32], NDArray[np.complex128], NDArray[np.complex128]]

_BASE = [
    ("flux", pa.list_(pa.int32())),
    ("moduli_re", pa.list_(pa.float64())),
    ("moduli_im", pa.list_(pa.float64())),
    ("tau_re", pa.float64()),
    ("tau_im", pa.float64()),
    ("n_flux", pa.int32()),
]
SHARD_SCHEMA = pa.schema(_BASE)
SCHEMA = pa.schema(
    [*_BASE, ("W0_abs", pa.float64()), ("residual", pa.float64()), ("n_iterations", pa.int32())]
)


def tadpole(fluxes: NDArray[Any]) -> NDArray[np.int32]:
    """N_flux = f^T Sigma h of rows [f | h], exact, (B,) int32."""
    n = fluxes.shape[1] // 2
    f, h = fluxes[:, :n].astype(np.int64), fluxes[:, n:].astype(np.int64)
    half = n // 2
    value = (f[:, :half] * h[:, half:]).sum(axis=1) - (f[:, half:] * h[:, :half]).sum(axis=1)
    return value.astype(np.int32)


def unpolished(fluxes: Any, moduli: Any, tau: Any) -> pa.Table:
    """A shard: what was found, before the canonical pass."""
    return pa.table(
        {
            "flux": _lists(fluxes.astype(np.int32)),
            "moduli_re": _lists(moduli.real),
            "moduli_im": _lists(moduli.imag),
            "tau_re": np.ascontiguousarray(tau.real),
            "tau_im": np.ascontiguousarray(tau.imag),
            "n_flux": tadpole(fluxes),
        },
        schema=SHARD_SCHEMA,
    )


def canonical(geometry: Geometry, region: Region, fluxes: Any, moduli: Any, tau: Any) -> pa.Table:
    """The one answer: deduplicated, ordered, and solved once more from rounded values.

    Every column comes from that last pass, in canonical order and one fixed batch shape, so the
    bytes do not depend on how the vacua were found.

    Raises
    ------
    RuntimeError
        If a vacuum fails the last pass.
    """
    from matforge.vacua import newton

    keep = domain.deduplicate(fluxes, moduli, tau)
    fluxes, moduli, tau = fluxes[keep], moduli[keep], tau[keep]
    order = domain.canonical_order(fluxes, moduli)
    fluxes, moduli, tau = fluxes[order], moduli[order], tau[order]
    parts = []
    for begin in range(0, len(fluxes), POLISH_SHAPE):
        rows = np.arange(begin, begin + POLISH_SHAPE).clip(max=len(fluxes) - 1)
        # to the last digit first: where the equations are nearly degenerate, "converged" leaves room
        # for values that round differently
        sharp = newton.solve(geometry, fluxes[rows], moduli[rows], tau[rows], tolerance=0.0)
        solved = newton.solve(
            geometry, fluxes[rows], _rounded(sharp.moduli), _rounded(sharp.tau), tolerance=0.0
        )
        parts.append([column[: len(fluxes) - begin] for column in solved])
    if not parts:
        return SCHEMA.with_metadata(_metadata(geometry, region)).empty_table()
    z, t, residual, iterations, converged, w0 = (np.concatenate(c) for c in zip(*parts, strict=True))
    wrong = ~converged | (residual > RESIDUAL_LIMIT) | (tadpole(fluxes) > region.n_max)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise RuntimeError(
            f"The vacuum with fluxes {fluxes[row].tolist()} fails the last Newton pass "
            f"(residual {residual[row]:.2e}); this is a defect of MatForge, please report it."
        )
    base = unpolished(fluxes, z, t)
    columns = [*base.columns, w0, residual, iterations.astype(np.int32)]
    return pa.table(
        dict(zip(SCHEMA.names, columns, strict=True)),
        schema=SCHEMA.with_metadata(_metadata(geometry, region)),
    )


def _rounded(values: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """To :data:`DIGITS` digits, without negative zeros: -0.0 would lead to other last bits than 0.0."""
    return (np.round(values.real, DIGITS) + 0.0) + 1j * (np.round(values.imag, DIGITS) + 0.0)


def _metadata(geometry: Geometry, region: Region) -> dict[str, str]:
    """Provenance, without anything that differs between two runs of the same search."""
    return {
        "matforge.format": str(FORMAT_VERSION),
        "matforge.version": __version__,
        "matforge.geometry": json.dumps(geometry.to_dict(), sort_keys=True),
        "matforge.geometry_hash": geometry.hash,
        "matforge.region": json.dumps(region.as_dict(), sort_keys=True),
        "matforge.conventions": (
            "flux = [f | h], periods (F_0, F_i, X^0, X^i), W = (f - tau h)^T Sigma Pi; "
            "one row per vacuum modulo (f, h) -> -(f, h)"
        ),
    }


def _lists(values: NDArray[Any]) -> pa.ListArray:
    """Rows of a matrix as a list array, without copying row by row."""
    rows, width = values.shape
    offsets = (
        np.arange(0, (rows + 1) * width, width, dtype=np.int32) if width else np.zeros(rows + 1, np.int32)
    )
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(values).ravel()))


def arrays(content: pa.Table) -> Columns:
    """(fluxes (B, 4 h12 + 4), moduli (B, h12), tau (B,)) of a table."""
    content = content.combine_chunks()

    def matrix(name: str) -> NDArray[Any]:
        column = content[name].combine_chunks()
        rows = len(column)
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(rows, -1) if rows else flat.reshape(0, 0)

    moduli = matrix("moduli_re") + 1j * matrix("moduli_im")
    tau = content["tau_re"].to_numpy() + 1j * content["tau_im"].to_numpy()
    return matrix("flux").astype(np.int32), moduli, tau


def write(path: Path, content: pa.Table) -> None:
    """Write parquet beside ``path`` and rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(content, beside, compression="zstd")
    os.replace(beside, path)


def read(path: Path) -> pa.Table:
    """Read one of our parquet files."""
    return pq.read_table(path)
