"""Newton's method for D_i W = 0, D_tau W = 0, compiled, one flux vector after the other, generic in h12.

Unknowns are Re and Im of (z^i, tau); equations are D_i W and (f - tau h)^T Sigma conj(Pi), which is D_tau W up to conjugation and a
factor (arXiv:2306.06160, section 2.3). Derivatives are analytic, up to F_ijk. With G = f - tau h = (G1, G2), g^k = G2_0 z^k - G2_k,
y = Im z and Y = -i Pi^dagger Sigma Pi = exp(-K_cs):

    W = G^T Sigma Pi,    W_i = G1_i - G2_0 F_i + g^k F_ki,    W_ij = g^k F_kij,
    Y_i = -2 Im F_i + 2 y^k F_ki,    Y_ij = 2 y^k F_kij,    Y_i jbar = -2 Im F_ij,
    K_i = -Y_i / Y,    K_ij = K_i K_j - Y_ij / Y,    K_i jbar = K_i conj(K_j) - Y_i jbar / Y.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from matforge.vacua.kernels import INNER, JIT, PI, arrays_of, derivatives, point
from matforge.vacua.newton import NewtonResult, checked_starts

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from matforge.vacua.geometry import Geometry

LARGEST_STEP = 0.5
"""Largest change of any z^i in one step, and of tau in units of Im tau: Newton's method has no sense of scale far away."""
NEAR = 1e-6
"""Residual below which Newton's method converges quadratically: a step that does not reduce it is rounding."""
ACCEPTED = 1e-12
"""Residual up to which a row that stalls by rounding counts as converged."""


@njit(**INNER)
def evaluate(geo, at, tau, fluxes, row, system, value):
    """Fill the real system of 2 (h + 1) equations, right-hand side last, at (at.z, tau); False outside the cone.

    value[0] = residual, value[1] = |W0|.
    """
    z = at.z
    f1 = at.f1
    f2 = at.f2
    f3 = at.f3
    h = z.shape[0]
    p = h + 1
    if not tau.imag > 0.0:
        return False
    for k in range(geo.walls.shape[0]):
        inside = 0.0
        for i in range(h):
            inside += geo.walls[k, i] * z[i].imag
        if not inside > 0.0:
            return False
    big_f, good = derivatives(geo, at, True)
    if not good:
        return False
    f0 = 2.0 * big_f
    for i in range(h):
        f0 -= z[i] * f1[i]
    # w = G^T Sigma Pi, wh = h^T Sigma Pi, v = conj of G^T Sigma conj(Pi) = conj(G)^T Sigma Pi, y = exp(-K_cs)
    w = complex(0.0, 0.0)
    wh = complex(0.0, 0.0)
    y = 0.0
    for i in range(p):
        x = z[i - 1] if i > 0 else complex(1.0, 0.0)
        big = f1[i - 1] if i > 0 else f0
        w += fluxes[row, i] * x - fluxes[row, p + i] * big
        wh += fluxes[row, 2 * p + i] * x - fluxes[row, 3 * p + i] * big
        y -= 2.0 * (big.imag * x.real - big.real * x.imag)
    v = w - tau.conjugate() * wh
    w -= tau * wh
    if not y > 0.0:
        return False
    total = abs(v) / (2.0 * tau.imag)
    for i in range(h):
        k_i = complex(2.0 * f1[i].imag, 0.0)
        for k in range(h):
            k_i -= 2.0 * z[k].imag * f2[i, k]
        at.v[i] = k_i / y
    tau_bar = tau.conjugate()
    for i in range(h):
        # first derivatives of w, wh and v along z^i
        a = complex(0.0, 0.0)
        b = complex(0.0, 0.0)
        for side in range(2):
            at_flux = 2 * side * p
            g = fluxes[row, at_flux + 1 + i] - fluxes[row, at_flux + p] * f1[i]
            for k in range(h):
                g += (fluxes[row, at_flux + p] * z[k] - fluxes[row, at_flux + p + 1 + k]) * f2[k, i]
            if side == 0:
                a = g
            else:
                b = g
        at.d[0, i] = a - tau * b
        at.d[1, i] = b
        at.d[2, i] = a - tau_bar * b
    for i in range(h):
        k_i = at.v[i]
        e = at.d[0, i] + k_i * w
        total += abs(e)
        tau_slope = -(at.d[1, i] + k_i * wh)
        zero = complex(0.0, 0.0)
        put(system, i, h, tau_slope, zero, e)
        for j in range(h):
            w_ij = zero
            k_ij = zero
            for k in range(h):
                g = (fluxes[row, p] - tau * fluxes[row, 3 * p]) * z[k]
                g -= fluxes[row, p + 1 + k] - tau * fluxes[row, 3 * p + 1 + k]
                w_ij += g * f3[i, j, k]
                k_ij -= 2.0 * z[k].imag * f3[i, j, k]
            k_ij = k_i * at.v[j] + k_ij / y
            k_bar = k_i * at.v[j].conjugate() + 2.0 * f2[i, j].imag / y
            put(system, i, j, w_ij + k_ij * w + k_i * at.d[0, j], k_bar * w, e)
            if i == 0:
                put(system, h, j, zero, at.d[2, j].conjugate(), v.conjugate())
    put(system, h, h, -wh.conjugate(), complex(0.0, 0.0), v.conjugate())
    factor = np.sqrt(1.0 / (PI * tau.imag * y))  # sqrt(2 / pi) e^(K / 2) with e^-K = 2 s Y
    value[0] = factor * total
    value[1] = factor * abs(w)
    return value[0] < np.inf


@njit(**INNER)
def put(system, i, j, slope, slope_bar, right):
    """Equation i = slope dx_j + slope_bar conj(dx_j) + ...: its two real rows, the columns Re and Im of x_j, and minus the value."""
    last = system.shape[0]
    system[2 * i, 2 * j] = slope.real + slope_bar.real
    system[2 * i, 2 * j + 1] = slope_bar.imag - slope.imag
    system[2 * i + 1, 2 * j] = slope.imag + slope_bar.imag
    system[2 * i + 1, 2 * j + 1] = slope.real - slope_bar.real
    system[2 * i, last] = -right.real
    system[2 * i + 1, last] = -right.imag


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
            swap = system[best, c]
            system[best, c] = system[k, c]
            system[k, c] = swap
        for r in range(k + 1, m):
            times = system[r, k] / pivot
            if times != 0.0:
                for c in range(k + 1, m + 1):
                    system[r, c] -= times * system[k, c]
    for k in range(m - 1, -1, -1):
        x = system[k, m]
        for c in range(k + 1, m):
            x -= system[k, c] * system[c, m]
        system[k, m] = x / system[k, k]
    return True


@njit(**INNER)
def advance(system, at, tau):
    """Move at.z by the solution of the system, shortened to LARGEST_STEP; returns the new tau."""
    h = at.z.shape[0]
    last = 2 * h + 2
    size = np.hypot(system[2 * h, last], system[2 * h + 1, last]) / tau.imag
    for i in range(h):
        size = max(size, np.hypot(system[2 * i, last], system[2 * i + 1, last]))
    shrink = min(1.0, LARGEST_STEP / size) if size > 0.0 else 1.0
    for i in range(h):
        at.z[i] += complex(shrink * system[2 * i, last], shrink * system[2 * i + 1, last])
    return tau + complex(shrink * system[2 * h, last], shrink * system[2 * h + 1, last])


@njit(**JIT)
def iterate(geo, at, fluxes, moduli, tau, most, tolerance, system, value, residual, count, w0):
    """Newton's method row by row; moduli and tau become the best iterates. A row depends on nothing but itself."""
    h = at.z.shape[0]
    for row in range(fluxes.shape[0]):
        for i in range(h):
            at.z[i] = moduli[row, i]
        here = tau[row]
        step = 0
        residual[row] = np.inf
        w0[row] = np.inf
        while evaluate(geo, at, here, fluxes, row, system, value):
            if value[0] < residual[row]:
                residual[row] = value[0]
                w0[row] = value[1]
                tau[row] = here
                for i in range(h):
                    moduli[row, i] = at.z[i]
            elif residual[row] < NEAR:
                break
            if residual[row] < tolerance or step >= most or not eliminate(system):
                break
            here = advance(system, at, here)
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
    residual, w0 = np.empty(rows), np.empty(rows)
    count = np.empty(rows, dtype=np.int32)
    iterate(
        geo, point(geo), vectors.astype(np.float64), z, t, int(max_iterations), float(tolerance),
        np.empty((2 * h + 2, 2 * h + 3)), np.empty(2), residual, count, w0,
    )  # fmt: skip
    return NewtonResult(z, t, residual, count, residual < max(tolerance, ACCEPTED), w0)
