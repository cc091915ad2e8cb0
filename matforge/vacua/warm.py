"""Compiles the kernels of the search on problems without work, so that a chore can do it ahead of time.

Numba compiles for types, not for sizes or values: an empty block of h needs the same code as a
full one, and the octic the same as any geometry.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from matforge.vacua import completion, cover, lattice, newton_numba
from matforge.vacua.geometry import load_geometry
from matforge.vacua.region import Region


def _tiny() -> tuple[object, Region]:
    geometry = load_geometry("octic")
    return geometry, Region.parse(geometry, "4:4.2", "2:3", 1)


def _cover() -> None:
    geometry, region = _tiny()
    lattice.union_of_h(cover.build(geometry, region, n_parts=1, leaf=0.3), region)


def _completion() -> None:
    geometry, region = _tiny()
    nowhere = cover.join(
        [
            cover.CoverPart(
                np.zeros((1, cover.row_width(1))), np.full(1, -1, np.int32), np.full(1, -1, np.int32)
            )
        ]
    )
    completion.complete_block(nowhere, geometry, region, np.zeros((0, 4), np.int32))


def _newton() -> None:
    geometry, _ = _tiny()
    fluxes = np.array([[-1, 0, 0, 1, 0, 0, -1, 0]])
    newton_numba.solve(geometry, fluxes, np.array([[2.0j]]), np.array([2.7j]))


KINDS: dict[str, Callable[[], None]] = {"cover": _cover, "completion": _completion, "newton": _newton}
"""Groups of kernels; each is compiled by one call."""
