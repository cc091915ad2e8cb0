"""Polyhedral cones given by walls: which walls are needed, and whether the cone is simplicial.

The Kähler cone is ``{y : W y >= 0}`` with one integer row of ``W`` a wall; the rows generate the dual (Mori)
cone. A wall is redundant if it is a non-negative combination of the others. Everything here is small (tens of
rows), so one non-negative least-squares solve a row decides it; no linear-programming library is needed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["has_interior", "in_cone", "irredundant", "nonnegative_least_squares"]

_ROUNDING = 1e-9
"""Relative size of what counts as zero: rows hold small integers, and anything real is far above it."""


def nonnegative_least_squares(
    generators: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Coefficients ``c >= 0`` that minimise ``|generators^T c - target|``.

    The active-set method of Lawson and Hanson, "Solving Least Squares Problems" (1974), chapter 23.

    Parameters
    ----------
    generators
        Rows that span the cone, shape (n, h).
    target
        The vector to approximate, shape (h,).

    Returns
    -------
    ndarray
        The coefficients, shape (n,).
    """
    columns = generators.T
    solution = np.zeros(len(generators))
    passive = np.zeros(len(generators), dtype=bool)
    for _ in range(10 * len(generators)):  # the method ends by itself; the bound is against rounding
        gradient = generators @ (target - columns @ solution)
        candidates = ~passive & (gradient > _ROUNDING * (1 + np.abs(target).max(initial=0)))
        if not candidates.any():
            break
        passive[np.argmax(np.where(candidates, gradient, -np.inf))] = True
        while True:
            trial = np.zeros_like(solution)
            trial[passive] = np.linalg.lstsq(columns[:, passive], target, rcond=None)[0]
            blocked = passive & (trial <= 0)
            if not blocked.any():
                break
            steps = solution[blocked] / (solution[blocked] - trial[blocked])
            solution = solution + steps.min() * (trial - solution)
            passive &= solution > _ROUNDING
            solution[~passive] = 0.0
            if not passive.any():
                trial = solution
                break
        solution = trial
    return solution


def in_cone(generators: NDArray[np.float64], vector: NDArray[np.float64]) -> bool:
    """Whether ``vector`` (h,) is a non-negative combination of the rows of ``generators`` (n, h)."""
    if len(generators) == 0:
        return not np.any(vector)
    rest = vector - generators.T @ nonnegative_least_squares(generators, vector)
    return bool(np.abs(rest).max(initial=0) <= 1e-7 * (1 + np.abs(vector).max(initial=0)))


def has_interior(walls: NDArray[np.int64]) -> bool:
    """Whether ``{y : walls y >= 0}`` has an interior: no wall opposes the others."""
    rows = walls.astype(np.float64)
    return not any(in_cone(rows, -row) for row in rows)


def irredundant(walls: NDArray[np.int64]) -> NDArray[np.int64]:
    """The walls that are needed, each divided by the greatest common divisor of its entries, in their order.

    Parameters
    ----------
    walls
        Integer rows, none of them zero, of a cone with an interior, shape (n, h).

    Returns
    -------
    ndarray
        The rows that bound the cone, shape (at most n, h).
    """
    rows = [row // np.gcd.reduce(row) for row in walls]
    kept = list(range(len(rows)))
    for k in range(len(rows) - 1, -1, -1):  # from the end, so that of two equal walls the first one stays
        others = [rows[j] for j in kept if j != k]
        if others and in_cone(np.array(others, dtype=np.float64), rows[k].astype(np.float64)):
            kept.remove(k)
    return np.array([rows[k] for k in kept], dtype=np.int64)
