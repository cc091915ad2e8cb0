"""Compiled special geometry near large complex structure: prepotential, periods, gauge kinetic matrix.

Conventions (arXiv:2306.06160, section 2): ``F = -kappa_ijk z^i z^j z^k / 6 + a_ij z^i z^j / 2 + b_i z^i + K0 / 2 +
F_inst`` with ``F_inst = -(2 pi i)^-3 sum_q n_q Li_3(exp(2 pi i q.z))`` and integer Gopakumar-Vafa invariants
``n_q``; periods ``Pi = (F_0, F_i, 1, z^i)``; ``Sigma = [[0, 1], [-1, 0]]`` in blocks of ``h12 + 1``.

The matrix ``A = Sigma^T M Sigma`` (positive definite, symplectic) is handled through its factor
``A = L L^T`` with ``L = [[E^-T, 0], [-R E^-T, E]]``, where ``N = R + i I`` is the gauge kinetic matrix and ``-I = E E^T``.
This ``L`` is itself symplectic, so that in the frame ``x~ = L^T x`` the complex structure ``J = M Sigma``
becomes the constant matrix ``Sigma``.

Every compiled function is a plain loop over scalars: nothing here needs LAPACK, and a row never depends on
the rows beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import njit

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
"""Square of n_q |exp(2 pi i q.z)| below which an instanton is left out (it is below 1e-19 of any derivative)."""
RADIUS = 0.97
"""The polylogarithm series are summed up to this modulus; nearer to 1 they are as good as divergent."""


class GeometryArrays(NamedTuple):
    """A geometry as the compiled functions take it; ``h`` is h12 and ``m`` the number of charges."""

    kappa: NDArray[np.float64]  # (h, h, h) intersection numbers
    a_matrix: NDArray[np.float64]  # (h, h)
    b: NDArray[np.float64]  # (h,) c2 / 24
    k0: complex  # zeta(3) chi / (2 pi i)^3
    charges: NDArray[np.int64]  # (m, h)
    invariants: NDArray[np.float64]  # (m,)
    inverse_cone: NDArray[np.float64]  # (h, h) Im z = inverse_cone @ t
    walls: NDArray[np.float64]  # (k, h) walls of the Kaehler cone, w . Im z > 0
    lowest: int  # smallest entry of the charges, at most 0
    highest: int  # largest entry of the charges


def arrays_of(geometry: Geometry) -> GeometryArrays:
    """Collect the arrays of a geometry for the compiled functions.

    Parameters
    ----------
    geometry
        A loaded geometry with ``h12`` moduli.

    Returns
    -------
    GeometryArrays
        Contiguous float64 and int64 copies.
    """

    def real(x: ArrayLike) -> NDArray[np.float64]:
        return np.array(x, dtype=np.float64, order="C")

    charges = np.array(np.rint(geometry.gv_charges), dtype=np.int64, order="C")
    return GeometryArrays(
        real(geometry.kappa),
        real(geometry.a_matrix),
        real(geometry.b),
        complex(geometry.k0),
        charges,
        real(geometry.gv_invariants),
        real(np.linalg.inv(geometry.cone_coordinates)),
        real(geometry.walls),
        int(charges.min(initial=0)),
        int(charges.max(initial=1)),
    )


@njit(**INNER)
def polylogarithms(x, li):
    """Fill li (8,) with real and imaginary parts of Li_3, Li_2, Li_1, Li_0 of x; False unless |x| < RADIUS.

    The four series share their powers; they run until the next term is below 1e-17 of the first.
    """
    re = x.real
    im = x.imag
    size = re * re + im * im
    if not size < RADIUS * RADIUS:
        return False
    for k in range(4):
        li[2 * k] = re
        li[2 * k + 1] = im
    power_re = re
    power_im = im
    weight = size
    m = 1.0
    while weight > 1e-34:
        m += 1.0
        new_re = power_re * re - power_im * im
        power_im = power_re * im + power_im * re
        power_re = new_re
        weight *= size
        scale = 1.0
        for k in range(3, -1, -1):
            li[2 * k] += scale * power_re
            li[2 * k + 1] += scale * power_im
            scale /= m
    return True


@njit(**INNER)
def derivatives(geo, at, third):
    """Fill at.f1 = F_i, at.f2 = F_ij and, if ``third``, at.f3 = F_ijk at at.z; return (F, whether the series converge)."""
    kappa = geo.kappa
    charges = geo.charges
    z = at.z
    f1 = at.f1
    f2 = at.f2
    f3 = at.f3
    table = at.table
    li = at.li
    h = z.shape[0]
    value = 0.5 * geo.k0
    for i in range(h):
        value += geo.b[i] * z[i]
        first = complex(geo.b[i], 0.0)
        for j in range(h):
            a = complex(geo.a_matrix[i, j], 0.0)
            kz = complex(0.0, 0.0)
            for k in range(h):
                kz += kappa[i, j, k] * z[k]
                f3[i, j, k] = -kappa[i, j, k]
            f2[i, j] = a - kz
            first += (a - 0.5 * kz) * z[j]
            value += (0.5 * a - kz * (1.0 / 6.0)) * z[i] * z[j]
        f1[i] = first
    low = geo.lowest
    for i in range(h):
        size = np.exp(-2.0 * PI * z[i].imag)
        angle = 2.0 * PI * z[i].real
        up = complex(size * np.cos(angle), size * np.sin(angle))
        down = complex(np.cos(angle) / size, -np.sin(angle) / size)
        table[i, -low] = 1.0
        for k in range(-low + 1, table.shape[1]):
            table[i, k] = table[i, k - 1] * up
        for k in range(-low - 1, -1, -1):
            table[i, k] = table[i, k + 1] * down
    good = True
    for q in range(charges.shape[0]):
        x = table[0, charges[q, 0] - low]
        for i in range(1, h):
            x *= table[i, charges[q, i] - low]
        n = geo.invariants[q]
        if n * n * (x.real * x.real + x.imag * x.imag) > NEGLIGIBLE:
            if not polylogarithms(x, li):
                good = False
            n3 = n / (8.0 * PI**3)
            n2 = n / (4.0 * PI**2)
            n1 = n / (2.0 * PI)
            value += complex(n3 * li[1], -n3 * li[0])  # -(2 pi i)^-3 n Li_3
            for i in range(h):
                qi = charges[q, i]
                f1[i] += complex(qi * n2 * li[2], qi * n2 * li[3])
                for j in range(h):
                    qij = qi * charges[q, j] * n1
                    f2[i, j] += complex(-qij * li[5], qij * li[4])
                    if third:
                        qij *= 2.0 * PI
                        for k in range(h):
                            f3[i, j, k] -= complex(qij * charges[q, k] * li[6], qij * charges[q, k] * li[7])
    return value, good


@njit(**INNER)
def gauge_factor(geo, at, r, e, e_inv):
    """Real part R of the gauge kinetic matrix at at.z, E with -I = E E^T (lower triangular), and its inverse.

    N_IJ = conj(F_IJ) + 2 i (Im F_IK X^K)(Im F_JL X^L) / (X^K Im F_KL X^L), arXiv:2306.06160 section 2.1, with the
    homogeneous F_IJ, for which F_I = N_IJ X^J. Returns False where -I is not positive definite or the series diverge.
    r, e and e_inv are (h + 1, h + 1) real.
    """
    z = at.z
    f1 = at.f1
    f2 = at.f2
    second = at.second
    h = z.shape[0]
    value, good = derivatives(geo, at, False)
    corner = 2.0 * value
    for i in range(h):
        row = f1[i]
        for j in range(h):
            row -= f2[i, j] * z[j]
            second[i + 1, j + 1] = f2[i, j]
        second[0, i + 1] = row
        second[i + 1, 0] = row
        corner -= (f1[i] + row) * z[i]
    second[0, 0] = corner
    bottom = complex(0.0, 0.0)
    for i in range(h + 1):
        v = complex(second[i, 0].imag, 0.0)
        for j in range(h):
            v += second[i, j + 1].imag * z[j]
        at.v[i] = v
        bottom += v * z[i - 1] if i > 0 else v
    size = bottom.real * bottom.real + bottom.imag * bottom.imag
    factor = complex(2.0 * bottom.imag / size, 2.0 * bottom.real / size)  # 2 i / bottom
    for i in range(h + 1):
        for j in range(i + 1):
            product = at.v[i] * at.v[j] * factor
            r[i, j] = second[i, j].real + product.real
            r[j, i] = r[i, j]
            e[i, j] = second[i, j].imag - product.imag
    for i in range(h + 1):
        for j in range(i + 1):
            x = e[i, j]
            for k in range(j):
                x -= e[i, k] * e[j, k]
            if i > j:
                e[i, j] = x / e[j, j]
                e[j, i] = 0.0
                e_inv[j, i] = 0.0
            elif x > 0.0:
                e[i, i] = np.sqrt(x)
            else:
                good = False
                e[i, i] = 1.0
        for j in range(i, -1, -1):  # row i of the inverse
            x = 1.0 if i == j else 0.0
            for k in range(j, i):
                x -= e[i, k] * e_inv[k, j]
            e_inv[i, j] = x / e[i, i]
    return good


@njit(**JIT)
def derivatives_at(geo, at, third):
    """`derivatives` for callers outside compiled code."""
    return derivatives(geo, at, third)


@njit(**JIT)
def gauge_factor_at(geo, at, r, e, e_inv):
    """`gauge_factor` for callers outside compiled code."""
    return gauge_factor(geo, at, r, e, e_inv)


class Point(NamedTuple):
    """A point z and what the kernels compute there; h = h12, complex128 unless said otherwise."""

    z: NDArray[np.complex128]  # (h,)
    f1: NDArray[np.complex128]  # (h,)
    f2: NDArray[np.complex128]  # (h, h)
    f3: NDArray[np.complex128]  # (h, h, h)
    table: NDArray[np.complex128]  # (h, powers of exp(2 pi i z))
    second: NDArray[np.complex128]  # (h + 1, h + 1) homogeneous second derivatives
    v: NDArray[np.complex128]  # (h + 1,)
    d: NDArray[np.complex128]  # (3, h) derivatives of W, h^T Sigma Pi, conj(G)^T Sigma Pi
    li: NDArray[np.float64]  # (8,)


def point(geo: GeometryArrays) -> Point:
    """Empty arrays of a `Point` of a geometry."""
    h = len(geo.b)
    shapes = ((h,), (h,), (h, h), (h, h, h), (h, geo.highest - geo.lowest + 1), (h + 1, h + 1), (h + 1,), (3, h))
    return Point(*(np.zeros(shape, dtype=np.complex128) for shape in shapes), np.zeros(8))


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
    at = point(geo)
    at.z[:] = moduli
    value, good = derivatives_at(geo, at, True)
    if not good:
        raise ValueError(f"the instanton series of {geometry.name} does not converge at z = {list(np.ravel(moduli))}")
    return value, at.f1, at.f2, at.f3


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
    geo = arrays_of(geometry)
    p = len(geo.b) + 1
    r, e, e_inv = np.zeros((3, p, p))
    at = point(geo)
    at.z[:] = moduli
    if not gauge_factor_at(geo, at, r, e, e_inv):
        raise ValueError(f"no positive gauge kinetic matrix of {geometry.name} at z = {list(at.z)}")
    return r - 1j * e @ e.T


def isd_matrix(geometry: Geometry, moduli: ArrayLike) -> NDArray[np.float64]:
    """Matrix M of the imaginary-self-dual condition f = c0 h + s M Sigma h, (2 h + 2, 2 h + 2) real symmetric.

    M = -[[I + R I^-1 R, R I^-1], [I^-1 R, I^-1]] (arXiv:2306.06160).
    """
    n = gauge_kinetic(geometry, moduli)
    inverse = np.linalg.inv(n.imag)
    mixed = n.real @ inverse
    return -np.block([[n.imag + mixed @ n.real, mixed], [mixed.T, inverse]])
