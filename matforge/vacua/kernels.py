"""Compiled special geometry near large complex structure: prepotential, periods, gauge kinetic matrix.

Conventions (arXiv:2306.06160, section 2): ``F = -kappa_ijk z^i z^j z^k / 6 + a_ij z^i z^j / 2 + b_i z^i +
K0 / 2 + F_inst`` with ``F_inst = -(2 pi i)^-3 sum_q n_q Li_3(exp(2 pi i q.z))`` and integer Gopakumar-Vafa
invariants ``n_q``; periods ``Pi = (F_0, F_i, 1, z^i)``; ``Sigma = [[0, 1], [-1, 0]]`` in blocks of ``h12 +
1``.

The matrix ``A = Sigma^T M Sigma`` (positive definite, symplectic) is handled through its factor ``A = L
L^T`` with ``L = [[E^-T, 0], [-R E^-T, E]]``, where ``N = R + i I`` is the gauge kinetic matrix and ``-I = E
E^T``. This ``L`` is itself symplectic, so that in the frame ``x~ = L^T x`` the complex structure ``J = M
Sigma`` becomes the constant matrix ``Sigma``.

How the compiled functions are written, and why. Every array that numba passes to a function costs
compilation time and reference counts at each call, so each function takes a few two-dimensional work
arrays, and the named constants are the rows at which things begin: ``work[F2 + i, j]`` is F_ij. Everything
is a plain loop over scalars: nothing needs LAPACK, and a result never depends on what is computed beside
it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import njit

from matforge.vacua.geometry import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from matforge.vacua.geometry import Geometry

__all__ = ["GeometryArrays", "arrays_of", "gauge_kinetic", "isd_matrix", "periods", "prepotential"]

JIT: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
"""Options of the compiled functions that Python calls."""
INNER: dict[str, Any] = {**JIT, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Options of those that only compiled code calls: no wrapper, which saves a good part of the compilation."""

PI = np.pi
NEGLIGIBLE = 1e-44
"""Square of n_q |exp(2 pi i q.z)| below which an instanton is left out (it is below 1e-19 of any
derivative)."""
RADIUS = 0.97
"""The polylogarithm series are summed up to this modulus; nearer to 1 they are as good as divergent."""
MAX_H12 = 7
"""Largest number of moduli for which the rows below have room."""

SCALARS, B, A_MATRIX, CONE, KAPPA = 0, 1, 2, 9, 16
"""Rows of GeometryArrays.real: (K0 / 2, lowest charge, derivatives needed), b, a, inverse cone, kappa
(h^2), walls."""
Z, F1, LI, V, D_W, D_WH, D_V, F2, SECOND, TABLE, F3 = 0, 1, 2, 3, 4, 5, 6, 7, 14, 22, 29
"""Rows of the complex work array: z, F_i, polylogarithms, Im F_IJ X^J, three gradients, F_ij, F_IJ, powers,
F_ijk (h^2)."""
R, E, E_INV, FRAME = 0, 8, 16, 24
"""Rows of the real work array: real part of N, E, its inverse, L^T."""


class GeometryArrays(NamedTuple):
    """A geometry as the compiled functions take it; ``h`` is h12 and ``m`` the number of charges."""

    real: NDArray[np.float64]  # (KAPPA + h^2 + walls, width) coefficients, row by row
    curves: NDArray[np.float64]  # (m, h + 1) charges and, last, the Gopakumar-Vafa invariant


def arrays_of(geometry: Geometry, order: int = 3) -> GeometryArrays:
    """Collect the numbers of a geometry for the compiled functions.

    Parameters
    ----------
    geometry
        A loaded geometry with ``h12`` moduli.
    order
        Derivatives of the prepotential that are needed, 2 or 3.

    Raises
    ------
    InputError
        If h12 exceeds `MAX_H12`.
    """
    h = geometry.h12
    if h > MAX_H12:
        raise InputError(f"{geometry.name} has {h} moduli, but the compiled search takes at most {MAX_H12}.")
    real = np.zeros((KAPPA + h * h + len(geometry.walls), max(h, 4)))
    lowest = min(geometry.gv_charges.min(initial=0.0), 0.0)
    real[SCALARS, :4] = geometry.k0.real / 2, geometry.k0.imag / 2, lowest, order
    real[B, :h] = geometry.b
    real[A_MATRIX : A_MATRIX + h, :h] = geometry.a_matrix
    real[CONE : CONE + h, :h] = np.linalg.inv(geometry.cone_coordinates)
    real[KAPPA : KAPPA + h * h, :h] = geometry.kappa.reshape(h * h, h)
    real[KAPPA + h * h :, :h] = geometry.walls
    return GeometryArrays(real, np.column_stack((geometry.gv_charges, geometry.gv_invariants)))


def complex_work(geo: GeometryArrays) -> NDArray[np.complex128]:
    """Work array of the functions below, wide enough for all powers of exp(2 pi i z) that occur."""
    h = geo.curves.shape[1] - 1
    powers = int(geo.curves[:, :h].max(initial=1.0) - geo.real[SCALARS, 2]) + 1
    return np.zeros((F3 + h * h, max(powers, h + 1, 4)), dtype=np.complex128)


def real_work(h12: int) -> NDArray[np.float64]:
    """Work array of `gauge_factor`."""
    return np.zeros((FRAME + 2 * h12 + 2, 2 * h12 + 2))


@njit(**INNER)
def derivatives(real, curves, work):
    """Fill F_i, F_ij and, if asked for, F_ijk at z = work[Z]; return (F, whether the series converge).

    The series of Li_3, Li_2, Li_1, Li_0 share their powers; they run until the next term is below 1e-17 of
    the first.
    """
    h = curves.shape[1] - 1
    value = complex(real[SCALARS, 0], real[SCALARS, 1])
    third = real[SCALARS, 3] > 2.0
    zero = -int(real[SCALARS, 2])
    for i in range(h):
        first = complex(real[B, i], 0.0)
        z = work[Z, i]
        value += first * z
        for j in range(h):
            kz = complex(0.0, 0.0)
            for k in range(h):
                kappa = real[KAPPA + i * h + j, k]
                kz += kappa * work[Z, k]
                work[F3 + i * h + j, k] = -kappa
            a = real[A_MATRIX + i, j]
            work[F2 + i, j] = a - kz
            first += (a - 0.5 * kz) * work[Z, j]
            value += (0.5 * a - kz * (1.0 / 6.0)) * z * work[Z, j]
        work[F1, i] = first
        z *= complex(0.0, 2.0 * PI)
        first = np.exp(z)
        kz = np.exp(-zero * z)
        for k in range(work.shape[1]):
            work[TABLE + i, k] = kz
            kz *= first
    good = True
    for q in range(curves.shape[0]):
        n = curves[q, h]
        z = complex(1.0, 0.0)
        for i in range(h):
            z *= work[TABLE + i, int(curves[q, i]) + zero]
        size = z.real * z.real + z.imag * z.imag
        if n * n * size < NEGLIGIBLE:
            continue
        if not size < RADIUS * RADIUS:
            good = False
            continue
        power = complex(n, 0.0)
        weight = 1.0
        m = 0.0
        for k in range(4):
            work[LI, k] = 0.0
        while weight > 1e-34:
            m += 1.0
            power *= z
            weight *= size if m > 1.0 else 1.0
            scale = 1.0
            for k in range(3, -1, -1):
                work[LI, k] += scale * power
                scale /= m
        value -= complex(0.0, 1.0 / (8.0 * PI**3)) * work[LI, 0]
        for i in range(h):
            a = curves[q, i]
            work[F1, i] += (a / (4.0 * PI**2)) * work[LI, 1]
            for j in range(h):
                kappa = a * curves[q, j]
                work[F2 + i, j] += complex(0.0, kappa / (2.0 * PI)) * work[LI, 2]
                if third:
                    for k in range(h):
                        work[F3 + i * h + j, k] -= kappa * curves[q, k] * work[LI, 3]
    return value, good


@njit(**INNER)
def gauge_factor(value, work, h, out):
    """From F and its derivatives at work[Z] fill R, E with -I = E E^T (lower triangular), E^-1 and L^T in
    ``out``.

    N_IJ = conj(F_IJ) + 2 i (Im F_IK X^K)(Im F_JL X^L) / (X^K Im F_KL X^L), arXiv:2306.06160 section 2.1,
    with the homogeneous F_IJ, for which F_I = N_IJ X^J. Returns False where -I is not positive definite.
    """
    p = h + 1
    good = True
    value *= 2.0
    for i in range(h):
        first = work[F1, i]
        row = first
        for j in range(h):
            x = work[F2 + i, j]
            row -= x * work[Z, j]
            work[SECOND + 1 + i, 1 + j] = x
        work[SECOND, 1 + i] = row
        work[SECOND + 1 + i, 0] = row
        value -= (first + row) * work[Z, i]
    work[SECOND, 0] = value
    bottom = complex(0.0, 0.0)
    for i in range(p):
        x = complex(work[SECOND + i, 0].imag, 0.0)
        for j in range(h):
            x += work[SECOND + i, j + 1].imag * work[Z, j]
        work[V, i] = x
        bottom += x * work[Z, i - 1] if i > 0 else x
    bottom = complex(0.0, 2.0) / bottom
    for i in range(p):
        for j in range(p):
            x = work[SECOND + i, j].conjugate() + bottom * work[V, i] * work[V, j]
            out[R + i, j] = x.real
            y = -x.imag
            for k in range(min(i, j)):
                y -= out[E + i, k] * out[E + j, k]
            if i > j:
                y /= out[E + j, j]
            elif i == j:
                good = y > 0.0 and good
                y = np.sqrt(abs(y))
            else:
                y = 0.0
            out[E + i, j] = y
    total = 0.0
    for i in range(p):
        for j in range(p):
            y = 1.0 if i == j else 0.0
            for k in range(i):
                y -= out[E + i, k] * out[E_INV + k, j]
            y /= out[E + i, i]
            out[E_INV + i, j] = y
            out[FRAME + i, j] = y
            out[FRAME + p + i, j] = 0.0
            out[FRAME + p + i, p + j] = out[E + j, i]
        for j in range(p):
            y = 0.0
            for k in range(p):
                y -= out[E_INV + i, k] * out[R + k, j]
            total += y
            out[FRAME + i, p + j] = y
    return good and np.isfinite(total)


@njit(**JIT)
def evaluate_at(real, curves, work, out):
    """For callers outside compiled code: F, whether the series converge, whether -Im N is positive."""
    value, converges = derivatives(real, curves, work)
    return value, converges, gauge_factor(value, work, curves.shape[1] - 1, out)


def prepotential(
    geometry: Geometry, moduli: ArrayLike
) -> tuple[complex, NDArray[np.complex128], NDArray[np.complex128], NDArray[np.complex128]]:
    """F, F_i, F_ij and F_ijk at one point, by the compiled kernel.

    Parameters
    ----------
    geometry
        A geometry with h12 = h.
    moduli
        (h,) complex values z.

    Returns
    -------
    tuple
        F (complex), F_i (h,), F_ij (h, h), F_ijk (h, h, h).

    Raises
    ------
    ValueError
        If the instanton series does not converge at this point.
    """
    geo = arrays_of(geometry)
    h = geometry.h12
    work = complex_work(geo)
    work[Z, :h] = moduli
    value, converges, _ = evaluate_at(*geo, work, real_work(h))
    if not converges:
        where = list(np.ravel(moduli))
        raise ValueError(f"the instanton series of {geometry.name} does not converge at z = {where}")
    f3 = work[F3 : F3 + h * h, :h].reshape(h, h, h)
    return value, work[F1, :h].copy(), work[F2 : F2 + h, :h].copy(), f3.copy()


def periods(geometry: Geometry, moduli: ArrayLike) -> NDArray[np.complex128]:
    """Period vector (F_0, F_i, 1, z^i) of length 2 h + 2 at one point (h,), with F_0 = 2 F - z^i F_i."""
    z = np.asarray(moduli, dtype=np.complex128)
    value, first, _, _ = prepotential(geometry, z)
    return np.concatenate(([2 * value - first @ z], first, [1.0], z))


def gauge_kinetic(geometry: Geometry, moduli: ArrayLike) -> NDArray[np.complex128]:
    """Gauge kinetic matrix N = R + i I, (h + 1, h + 1) complex, at one point (h,).

    Raises
    ------
    ValueError
        If the series diverges there or Im N is not negative definite.
    """
    geo = arrays_of(geometry, 2)
    p = geometry.h12 + 1
    work, out = complex_work(geo), real_work(geometry.h12)
    work[Z, : p - 1] = moduli
    if not evaluate_at(*geo, work, out)[2]:
        where = list(np.ravel(moduli))
        raise ValueError(f"no positive gauge kinetic matrix of {geometry.name} at z = {where}")
    e = out[E : E + p, :p]
    return out[R : R + p, :p] - 1j * e @ e.T


def isd_matrix(geometry: Geometry, moduli: ArrayLike) -> NDArray[np.float64]:
    """Matrix M of the condition f = c0 h + s M Sigma h, (2 h + 2, 2 h + 2) real symmetric.

    M = -[[I + R I^-1 R, R I^-1], [I^-1 R, I^-1]] (arXiv:2306.06160).
    """
    n = gauge_kinetic(geometry, moduli)
    inverse = np.linalg.inv(n.imag)
    mixed = n.real @ inverse
    return -np.block([[n.imag + mixed @ n.real, mixed], [mixed.T, inverse]])
