"""Real vacua for the tests of the vault: published ones of the mirror octic, solved to the last digit."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from matforge.vacua.geometry import Geometry, load_geometry

PUBLISHED = Path(__file__).parents[1] / "vacua" / "data" / "octic_published.json"
"""arXiv:2310.06040; the map to our basis stands in the file."""


def octic() -> Geometry:
    return load_geometry("octic")


@lru_cache(maxsize=1)
def _solved() -> pd.DataFrame:
    from matforge.vacua import newton

    rows = [row for row in json.loads(PUBLISHED.read_text())["rows"] if row["t"][1] > 2.1]
    basis = np.array([[-1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])
    basis = basis @ np.array([[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]])
    flux = np.array([[*(basis @ row["F"]), *(basis @ row["H"])] for row in rows])
    z = np.array([[complex(*row["t"])] for row in rows])
    tau = np.array([complex(row["c"], row["s"]) for row in rows])
    found = newton.solve(octic(), flux, z, tau)
    good = found.converged & (flux != 0).any(axis=1)
    _, first = np.unique(flux[good], axis=0, return_index=True)
    keep = np.flatnonzero(good)[np.sort(first)]
    return pd.DataFrame(
        {
            "flux": flux[keep].tolist(),
            "moduli_re": found.moduli[keep].real.tolist(),
            "moduli_im": found.moduli[keep].imag.tolist(),
            "tau_re": found.tau[keep].real,
            "tau_im": found.tau[keep].imag,
        }
    )


def octic_vacua(n: int = 6, first: int = 0) -> pd.DataFrame:
    """Some of them."""
    return _solved().iloc[first : first + n].reset_index(drop=True).copy(deep=True)
