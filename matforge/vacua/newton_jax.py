"""Newton's method for flux vacua in JAX: the solver for GPUs, and the reference for the compiled one.

The unknowns are ``x = (z, tau)``. The equations ``E = (D_i W, G)`` with ``G = (f - tau h)^T Sigma conj(Pi)``,
which is ``D_tau W`` up to a factor, are not holomorphic: with ``P = dE/dx`` and ``Q = dE/d(conj x)`` a step
solves ``P dx + Q conj(dx) = -E`` as 2(h+1) real equations. The derivatives (arXiv:2306.06160, section 2) are

* ``d_j D_i W = W_ij + K_ij W + K_i W_j``, ``d_jbar D_i W = K_ijbar W``,
  ``d_tau D_i W = -(h^T Sigma Pi_i + K_i h^T Sigma Pi)``;
* ``d_jbar G = (f - tau h)^T Sigma conj(Pi_j)``, ``d_tau G = -h^T Sigma conj(Pi)``.

Batches are cut into chunks of one fixed shape, so that only one program is compiled a geometry and device,
and a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from matforge.vacua import periods as sg
from matforge.vacua.geometry import Geometry
from matforge.vacua.newton import NewtonResult, checked_starts

__all__ = ["solve"]

CHUNK = 1024
"""Rows a compiled call takes on a CPU; a GPU wants more to be busy."""
CHUNK_GPU = 32768
LARGEST_STEP = 0.5
"""Cap on a step: of each z^i in absolute value, and of tau in units of Im tau."""
NEAR = 1e-6
"""Residual below which Newton converges quadratically, so that a step that does not reduce it is rounding."""
ACCEPTED = 1e-12
"""Residual up to which a solve that stalls by rounding counts as converged."""


class _Local(NamedTuple):
    """The equations at one point."""

    residual: Array
    w0_abs: Array
    equations: Array  # (h+1,)
    holomorphic: Array  # P, (h+1, h+1)
    antiholomorphic: Array  # Q, (h+1, h+1)


class _State(NamedTuple):
    """One solve: the current point, and the best one so far with its residual and |W_0|."""

    z: Array
    tau: Array
    best_z: Array
    best_tau: Array
    residual: Array
    w0_abs: Array
    steps: Array
    done: Array


def _local(model: sg.Model, z: Array, tau: Array, fluxes: Array) -> _Local:
    half = fluxes.shape[-1] // 2
    f, h = fluxes[:half], fluxes[half:]
    jets = sg._period_jets(model, z)
    pi, d_pi, d2_pi = jets
    kahler = sg._kahler(jets)
    bra, h_bra = -sg._sigma(f - tau * h), -sg._sigma(h)  # a^T Sigma b = -(Sigma a) . b
    w, w_i, w_ij = bra @ pi, d_pi @ bra, d2_pi @ bra
    hw, hw_i = h_bra @ pi, d_pi @ h_bra
    d_w = w_i + kahler.k_i * w
    g = bra @ pi.conj()
    n = z.shape[0]
    p = jnp.zeros((n + 1, n + 1), dtype=jnp.complex128)
    p = p.at[:n, :n].set(w_ij + kahler.k_ij * w + jnp.outer(kahler.k_i, w_i))
    p = p.at[:n, n].set(-(hw_i + kahler.k_i * hw)).at[n, n].set(-(h_bra @ pi.conj()))
    q = jnp.zeros((n + 1, n + 1), dtype=jnp.complex128)
    q = q.at[:n, :n].set(kahler.metric * w).at[n, :n].set(d_pi.conj() @ bra)
    scale = jnp.sqrt(2 / jnp.pi / (kahler.volume * 2 * tau.imag))  # sqrt(2/pi) exp(K/2)
    residual = scale * (jnp.abs(d_w).sum() + jnp.abs(g) / (2 * tau.imag))  # |D_tau W| = |G| / (2 Im tau)
    return _Local(residual, scale * jnp.abs(w), jnp.append(d_w, g), p, q)


def _solve_real(matrix: Array, right: Array) -> Array:
    """Gauss-Jordan elimination with pivoting, unrolled: for so few unknowns quicker than calls of LAPACK."""
    n = matrix.shape[0]
    rows = jnp.concatenate([matrix, right[:, None]], axis=1)
    index = jnp.arange(n)
    for k in range(n):
        pivot = k + jnp.argmax(jnp.abs(rows[k:, k]))
        rows = rows[jnp.where(index == k, pivot, jnp.where(index == pivot, k, index))]
        row = rows[k] / rows[k, k]
        rows = jnp.where((index == k)[:, None], row, rows - rows[:, k, None] * row)
    return rows[:, n]


def _step(local: _Local, tau: Array) -> tuple[Array, Array]:
    p, q, e = local.holomorphic, local.antiholomorphic, local.equations
    matrix = jnp.block([[p.real + q.real, q.imag - p.imag], [p.imag + q.imag, p.real - q.real]])
    dx = _solve_real(matrix, -jnp.concatenate([e.real, e.imag]))
    half = dx.shape[0] // 2
    dx = dx[:half] + 1j * dx[half:]
    size = jnp.maximum(jnp.abs(dx[:-1]).max(), jnp.abs(dx[-1]) / tau.imag)
    dx = dx * jnp.minimum(1.0, LARGEST_STEP / size)
    return dx[:-1], dx[-1]


def _solve_one(
    model: sg.Model, fluxes: Array, z: Array, tau: Array, max_iterations: Array, tolerance: Array
) -> _State:
    infinite = jnp.full((), jnp.inf)
    start = _State(z, tau, z, tau, infinite, infinite, jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    def advance(state: _State) -> _State:
        local = _local(model, state.z, state.tau, fluxes)
        inside = jnp.all(model.walls @ state.z.imag > 0) & (state.tau.imag > 0) & jnp.isfinite(local.residual)
        better = inside & (local.residual < state.residual)
        stalled = (state.residual < NEAR) & ~better
        residual = jnp.where(better, local.residual, state.residual)
        done = ~inside | stalled | (residual < tolerance) | (state.steps >= max_iterations)
        dz, dtau = _step(local, state.tau)
        return _State(
            z=jnp.where(done, state.z, state.z + dz),
            tau=jnp.where(done, state.tau, state.tau + dtau),
            best_z=jnp.where(better, state.z, state.best_z),
            best_tau=jnp.where(better, state.tau, state.best_tau),
            residual=residual,
            w0_abs=jnp.where(better, local.w0_abs, state.w0_abs),
            steps=state.steps + jnp.where(done, 0, 1).astype(jnp.int32),
            done=done,
        )

    return jax.lax.while_loop(lambda state: ~state.done, advance, start)


@jax.jit
def _solve_chunk(
    model: sg.Model, fluxes: Array, z: Array, tau: Array, max_iterations: Array, tolerance: Array
) -> _State:
    rows = jax.vmap(_solve_one, in_axes=(None, 0, 0, 0, None, None))
    return rows(model, fluxes, z, tau, max_iterations, tolerance)


@lru_cache(maxsize=16)
def _model(geometry: Geometry) -> sg.Model:
    return sg.model_of(geometry)


def solve(
    geometry: Geometry,
    fluxes: ArrayLike,
    moduli: ArrayLike,
    tau: ArrayLike,
    *,
    max_iterations: int = 30,
    tolerance: float = 1e-13,
) -> NewtonResult:
    """Solve ``D_I W = 0``; arguments and result are those of `matforge.vacua.newton.solve`."""
    f, z, t = checked_starts(geometry, fluxes, moduli, tau)
    chunk = CHUNK if jax.default_backend() == "cpu" else CHUNK_GPU
    model, parts = _model(geometry), list[_State]()
    for first in range(0, len(f), chunk):
        pick = np.minimum(np.arange(first, first + chunk), len(f) - 1)  # the last row fills up the last chunk
        parts.append(
            _solve_chunk(model, f[pick].astype(np.float64), z[pick], t[pick], max_iterations, tolerance)
        )
    if not parts:
        none = np.zeros(0)
        return NewtonResult(z, t, none, none.astype(np.int32), none.astype(bool), none)

    def joined(field: str) -> Any:
        return np.concatenate([np.asarray(getattr(part, field)) for part in parts])[: len(f)]

    residual = joined("residual")
    return NewtonResult(
        moduli=joined("best_z"),
        tau=joined("best_tau"),
        residual=residual,
        n_iterations=joined("steps"),
        converged=residual < max(tolerance, ACCEPTED),
        w0_abs=joined("w0_abs"),
    )
