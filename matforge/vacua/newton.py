"""Newton's method on ``D_I W = 0``: one interface to the compiled and the JAX solver."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from matforge.vacua.geometry import Geometry
from matforge.vacua.inputs import InputError, nearest

__all__ = ["BACKENDS", "NewtonResult", "solve"]

BACKENDS = {"numba": "matforge.vacua.newton_numba", "jax": "matforge.vacua.newton_jax"}
"""Where each backend lives; imported when it is asked for."""


class NewtonResult(NamedTuple):
    """Where ``B`` solves ended; rows keep the order of the starts."""

    moduli: NDArray[np.complex128]
    """z at the best iterate, (B, h); not finite where a solve broke down."""
    tau: NDArray[np.complex128]
    """tau at the best iterate, (B,)."""
    residual: NDArray[np.float64]
    """``sqrt(2/pi) exp(K/2) sum_I |D_I W|`` over (z, tau) with the total K, at the best iterate, (B,)."""
    n_iterations: NDArray[np.int32]
    """Newton steps taken, (B,)."""
    converged: NDArray[np.bool_]
    """Whether the residual is at rounding level and the point lies in the cone with Im tau > 0, (B,)."""
    w0_abs: NDArray[np.float64]
    """``|W_0| = sqrt(2/pi) exp(K/2) |W|`` there, (B,)."""


def solve(
    geometry: Geometry,
    fluxes: ArrayLike,
    moduli: ArrayLike,
    tau: ArrayLike,
    *,
    max_iterations: int = 30,
    tolerance: float = 1e-13,
    backend: str = "numba",
) -> NewtonResult:
    """Solve ``D_I W = 0`` for given flux quanta from given starts.

    The unknowns (z, tau) are changed by full Newton steps on the 2(h+1) real equations
    ``(D_i W, (f - tau h)^T Sigma conj(Pi)) = 0`` with analytic derivatives, the steps capped. A solve ends
    when its residual falls below ``tolerance``, or, near a solution, when a step no longer reduces it; one
    that leaves the Kähler cone or the upper half plane, or stops being finite, is not converged. It never
    raises.

    Parameters
    ----------
    geometry
        The geometry, ``h = h12``.
    fluxes
        Integer rows ``[f | h]``, (B, 4h+4).
    moduli
        Starts for z, (B, h) complex.
    tau
        Starts for tau, (B,) complex.
    max_iterations
        Most Newton steps.
    tolerance
        Residual at which a solve ends.
    backend
        ``"numba"`` (fast on a CPU) or ``"jax"`` (for GPUs, and the reference).

    Returns
    -------
    NewtonResult
        One row a start.

    Raises
    ------
    InputError
        If the backend is unknown or the shapes do not fit together.
    """
    if backend not in BACKENDS:
        raise InputError(f"there is no Newton backend {backend!r}: {nearest(backend, BACKENDS)}")
    f, z, t = checked_starts(geometry, fluxes, moduli, tau)
    module: Any = import_module(BACKENDS[backend])
    result: NewtonResult = module.solve(geometry, f, z, t, max_iterations=max_iterations, tolerance=tolerance)
    return result


def checked_starts(
    geometry: Geometry, fluxes: ArrayLike, moduli: ArrayLike, tau: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.complex128], NDArray[np.complex128]]:
    """The starts as contiguous int64 (B, 4h+4), complex (B, h), complex (B,) arrays, or an `InputError`."""
    h = geometry.h12
    f = np.asarray(fluxes)
    if f.dtype.kind not in "iu":
        raise InputError(f"fluxes are {f.dtype}, but flux quanta are integers: convert them first.")
    f = np.ascontiguousarray(f, dtype=np.int64)
    z = np.ascontiguousarray(moduli, dtype=np.complex128)
    t = np.ascontiguousarray(tau, dtype=np.complex128)
    rows = len(f) if f.ndim else 0
    for name, found, wanted in (
        ("fluxes", f.shape, (rows, 4 * h + 4)),
        ("moduli", z.shape, (rows, h)),
        ("tau", t.shape, (rows,)),
    ):
        if found != wanted:
            raise InputError(f"{name} have shape {found}, but {wanted} fits {geometry.name}: reshape them.")
    return f, z, t
