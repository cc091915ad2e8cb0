"""Newton's method for D_i W = 0, D_tau W = 0, compiled, one flux vector after the other, generic in h12.

Unknowns are Re and Im of (z^i, tau); equations are D_i W and (f - tau h)^T Sigma conj(Pi), which is D_tau W
up to conjugation and a factor (arXiv:2306.06160, section 2.3). Derivatives are analytic, up to F_ijk. With
G = f - tau h = (G1, G2), g^k = G2_0 z^k - G2_k, y = Im z and Y = -i Pi^dagger Sigma Pi = exp(-K_cs):

    W = G^T Sigma Pi,    W_i = G1_i - G2_0 F_i + g^k F_ki,    W_ij = g^k F_kij,
    Y_i = -2 Im F_i + 2 y^k F_ki,    Y_ij = 2 y^k F_kij,    Y_i jbar = -2 Im F_ij,
    K_i = -Y_i / Y,    K_ij = K_i K_j - Y_ij / Y,    K_i jbar = K_i conj(K_j) - Y_i jbar / Y.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from matforge.vacua.kernels import (
    D_V,
    D_W,
    D_WH,
    F1,
    F2,
    F3,
    INNER,
    JIT,
    KAPPA,
    PI,
    V,
    Z,
    arrays_of,
    complex_work,
    derivatives,
)  # fmt: skip
from matforge.vacua.newton import NewtonResult, checked_starts

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from matforge.vacua.geometry import Geometry

LARGEST_STEP = 0.5
"""Largest change of any z^i in one step, and of tau in units of Im tau: Newton's method has no sense of
scale far away."""
NEAR = 1e-6
"""Residual below which Newton's method converges quadratically: a step that does not reduce it is
rounding."""
ACCEPTED = 1e-12
"""Residual up to which a row that stalls by rounding counts as converged."""


@njit(**INNER)
def equations(big, work, h, tau, fluxes, row, system):
    """Fill the 2 (h + 1) real equations, right-hand side last, at (work[Z], tau), from F and its derivatives.

    Row 2 i of the system is the real part of equation i, column 2 j that of the unknown x_j. Returns
    (residual, |W_0|); they are infinite where exp(-K) is not positive.
    """
    p = h + 1
    big *= 2.0
    for i in range(h):
        big -= work[Z, i] * work[F1, i]
    # w = f^T Sigma Pi, wh = h^T Sigma Pi, y = exp(-K_cs)
    w = complex(0.0, 0.0)
    wh = complex(0.0, 0.0)
    y = 0.0
    x = complex(1.0, 0.0)
    for i in range(p):
        w += fluxes[row, i] * x - fluxes[row, p + i] * big
        wh += fluxes[row, 2 * p + i] * x - fluxes[row, 3 * p + i] * big
        y += 2.0 * (big.real * x.imag - big.imag * x.real)
        if i < h:
            x = work[Z, i]
            big = work[F1, i]
    if not y > 0.0:
        return np.inf, np.inf
    tau_bar = tau.conjugate()
    v = w - tau_bar * wh
    w -= tau * wh
    total = abs(v) / (2.0 * tau.imag)
    f0 = fluxes[row, p]
    h0 = fluxes[row, 3 * p]
    for i in range(h):
        x = work[F1, i]
        g = fluxes[row, 1 + i] - f0 * x
        gh = fluxes[row, 2 * p + 1 + i] - h0 * x
        k_i = complex(2.0 * x.imag, 0.0)
        for k in range(h):
            z = work[Z, k]
            x = work[F2 + k, i]
            g += (f0 * z - fluxes[row, p + 1 + k]) * x
            gh += (h0 * z - fluxes[row, 3 * p + 1 + k]) * x
            k_i -= 2.0 * z.imag * x
        work[V, i] = k_i / y
        work[D_W, i] = g - tau * gh
        work[D_WH, i] = gh
        work[D_V, i] = g - tau_bar * gh
    g0 = f0 - tau * h0
    for i in range(p):
        e = v.conjugate()
        k_i = complex(0.0, 0.0)
        if i < h:
            k_i = work[V, i]
            e = work[D_W, i] + k_i * w
            total += abs(e)
        for j in range(p):
            slope = complex(0.0, 0.0)
            bar = slope
            if i == h:
                if j == h:
                    slope = -wh.conjugate()
                else:
                    bar = work[D_V, j].conjugate()
            elif j == h:
                slope = -(work[D_WH, i] + k_i * wh)
            else:
                x = work[V, j]
                slope = k_i * work[D_W, j]
                k_ij = k_i * x
                bar = (k_i * x.conjugate() + 2.0 * work[F2 + i, j].imag / y) * w
                for k in range(h):
                    z = work[Z, k]
                    x = work[F3 + i * h + j, k]
                    g = g0 * z - fluxes[row, p + 1 + k] + tau * fluxes[row, 3 * p + 1 + k]
                    slope += g * x
                    k_ij -= (2.0 * z.imag / y) * x
                slope += k_ij * w
            system[2 * i, 2 * j] = slope.real + bar.real
            system[2 * i, 2 * j + 1] = bar.imag - slope.imag
            system[2 * i + 1, 2 * j] = slope.imag + bar.imag
            system[2 * i + 1, 2 * j + 1] = slope.real - bar.real
        system[2 * i, 2 * p] = -e.real
        system[2 * i + 1, 2 * p] = -e.imag
    factor = np.sqrt(1.0 / (PI * tau.imag * y))  # sqrt(2 / pi) e^(K / 2) with e^-K = 2 s Y
    return factor * total, factor * abs(w)


@njit(**INNER)
def eliminate(system):
    """Solve the linear system in place (the solution ends in the last column); False if it is singular."""
    m = system.shape[0]
    for k in range(m):
        best = k
        for r in range(k + 1, m):
            if abs(system[r, k]) > abs(system[best, k]):
                best = r
        pivot = system[best, k]
        if not abs(pivot) > 1e-300:
            return False
        for c in range(k, m + 1):
            x = system[best, c] / pivot
            system[best, c] = system[k, c]
            system[k, c] = x
        for r in range(m):
            times = system[r, k]
            if r != k:
                for c in range(k + 1, m + 1):
                    system[r, c] -= times * system[k, c]
    return True


@njit(**JIT)
def iterate(real, curves, work, fluxes, moduli, tau, most, tolerance, system, result, count):
    """Newton's method row by row; moduli and tau become the best iterates, result[row] its residual and
    |W_0|.

    A row depends on nothing but itself.
    """
    h = moduli.shape[1]
    last = 2 * h + 2
    for row in range(fluxes.shape[0]):
        for i in range(h):
            work[Z, i] = moduli[row, i]
        here = tau[row]
        best = np.inf
        result[row, 0] = np.inf
        result[row, 1] = np.inf
        step = 0
        while True:
            inside = here.imag > 0.0
            for k in range(KAPPA + h * h, real.shape[0]):
                area = 0.0
                for i in range(h):
                    area += real[k, i] * work[Z, i].imag
                inside = area > 0.0 and inside
            big, converges = derivatives(real, curves, work)
            residual, w0 = equations(big, work, h, here, fluxes, row, system)
            if not (inside and converges):
                residual = np.inf
            if residual < best:
                best = residual
                result[row, 0] = residual
                result[row, 1] = w0
                tau[row] = here
                for i in range(h):
                    moduli[row, i] = work[Z, i]
            elif best < NEAR:
                break
            if not (residual < np.inf) or best < tolerance or step >= most or not eliminate(system):
                break
            size = LARGEST_STEP
            for i in range(h + 1):
                x = np.hypot(system[2 * i, last], system[2 * i + 1, last])
                size = max(size, x if i < h else x / here.imag)
            size = LARGEST_STEP / size
            for i in range(h + 1):
                x = complex(size * system[2 * i, last], size * system[2 * i + 1, last])
                if i < h:
                    work[Z, i] += x
                else:
                    here += x
            step += 1
        count[row] = step


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
    vectors, z, t = checked_starts(geometry, fluxes, moduli, tau)
    z, t = z.copy(), t.copy()
    rows, h = z.shape
    geo = arrays_of(geometry)
    result = np.empty((rows, 2))
    count = np.empty(rows, dtype=np.int64)
    system = np.empty((2 * h + 2, 2 * h + 3))
    iterate(
        *geo, complex_work(geo), vectors.astype(np.float64), z, t, int(max_iterations), float(tolerance),
        system, result, count,
    )  # fmt: skip
    residual = result[:, 0].copy()
    return NewtonResult(
        z, t, residual, count.astype(np.int32), residual < max(tolerance, ACCEPTED), result[:, 1].copy()
    )
