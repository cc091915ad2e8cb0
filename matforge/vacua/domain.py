"""What counts as one vacuum: folding into the fundamental domain, complex conjugation, duplicates, order.

Vacua related by one of these moves are the same vacuum:

* ``z^i -> z^i + 1`` with ``(f, h) -> (T_i f, T_i h)``, the integer monodromies (`Geometry.monodromy`);
* ``tau -> tau - 1`` with ``f -> f - h``, and ``tau -> -1 / tau`` with ``(f, h) -> (h, -f)``;
* ``(f, h) -> -(f, h)``.

The fundamental domain is ``-1/2 < Re z <= 1/2``, ``-1/2 < Re tau <= 1/2``, ``|tau| >= 1``, with
``Re tau >= 0`` on the arc ``|tau| = 1``, and the first non-zero entry of ``[f | h]`` positive. Many vacua lie
on an edge, and Newton's method puts them an ulp to either side, so every edge is moved by `EDGE`: whatever is
within `EDGE` of it counts as on it (``Re z = -1/2 + 1e-9`` is folded to ``1/2 + 1e-9``). Two points of the
domain are fixed by a rotation that changes the fluxes, ``tau = i`` and ``exp(i pi / 3)``: there the smallest
of the equivalent fluxes is taken.

All moves are exact in integers. The functions take ``xp=jax.numpy`` as well and may then be compiled, the
geometry being a constant; with the default, NumPy, this module does not import JAX.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from matforge.vacua.geometry import Geometry

__all__ = [
    "EDGE",
    "SAME",
    "canonical",
    "canonical_order",
    "complex_conjugate",
    "conjugation_matrix",
    "deduplicate",
    "fold_axions",
    "fold_tau",
    "sign_rule",
]

EDGE = 1e-6
"""Width within which a point counts as lying on an edge of the fundamental domain."""
SAME = 1e-6
"""Two vacua with equal fluxes are one if every modulus agrees to this."""
MAX_PASSES = 200
"""Most turns of the fold of tau; each raises Im tau, and a start at 1e-6 needs fewer than 20."""

Arrays = tuple[Any, Any]


def _shifts(xp: Any, x: Any) -> Any:
    """Integers k with ``x - k`` in (-1/2 + EDGE, 1/2 + EDGE]; 0 where x is not finite."""
    k = xp.ceil(x - (0.5 + EDGE))
    return xp.where(xp.isfinite(k), k, 0.0).astype(xp.int64)


def _shift_moduli(xp: Any, geometry: Geometry, x: Any, k: Any) -> Any:
    """Apply the monodromy of ``z -> z + k`` to integer vectors x, (B, 2h+2), for integers k, (B, h).

    With ``x = (x_0, x_i, x^0, x^i)``, from the expansion of the periods about z: ``x^i -> x^i + k^i x^0``,
    ``x_i -> x_i - kappa_ijl k^j x^l + (a_ij k^j - kappa_ijl k^j k^l / 2) x^0`` and
    ``x_0 -> x_0 - k^i x_i + (a_ij k^j + kappa_ijl k^j k^l / 2) x^i + C x^0`` with
    ``C = kappa_ijl k^i k^j k^l / 6 + c2_i k^i / 12``.
    """
    h = geometry.h12
    kappa, twice_a, c2 = (xp.asarray(np.rint(v).astype(np.int64)) for v in _integers(geometry))
    kk = xp.einsum("ijl,bj->bil", kappa, k)
    kkk = xp.einsum("bil,bl->bi", kk, k)
    ak = k @ twice_a
    lower, top, upper = x[:, 1 : h + 1], x[:, h + 1], x[:, h + 2 :]
    constant = (2 * (kkk * k).sum(-1) + k @ c2) // 12  # exact, as the monodromies are integral
    new_lower = lower - xp.einsum("bil,bl->bi", kk, upper) + ((ak - kkk) // 2) * top[:, None]
    new_first = x[:, 0] - (k * lower).sum(-1) + (((ak + kkk) // 2) * upper).sum(-1) + constant * top
    return xp.concatenate([new_first[:, None], new_lower, top[:, None], upper + k * top[:, None]], axis=1)


def _integers(geometry: Geometry) -> tuple[NDArray[np.float64], ...]:
    return geometry.kappa, 2 * geometry.a_matrix, geometry.c2


def fold_axions(geometry: Geometry, fluxes: Any, z: Any, *, xp: Any = np) -> Arrays:
    """Bring every Re z into (-1/2, 1/2], edges within `EDGE`, with the monodromies acting on the fluxes.

    Parameters
    ----------
    geometry
        The geometry, ``h = h12``.
    fluxes
        Integer rows ``[f | h]``, (B, 4h+4).
    z
        Moduli, (B, h) complex.
    xp
        ``numpy`` or ``jax.numpy``.

    Returns
    -------
    fluxes, z
        The same vacua; fluxes int64. Rows that are not finite are left alone.
    """
    fluxes, z = xp.asarray(fluxes).astype(xp.int64), xp.asarray(z)
    if xp is np:
        moved = np.flatnonzero(_shifts(np, z.real).any(axis=-1))  # most rows do not move
        if len(moved) < len(z):
            fluxes, z = fluxes.copy(), z.astype(np.complex128)
            fluxes[moved], z[moved] = _fold_axions(np, geometry, fluxes[moved], z[moved])
            return fluxes, z
    return _fold_axions(xp, geometry, fluxes, z)


def _fold_axions(xp: Any, geometry: Geometry, fluxes: Any, z: Any) -> Arrays:
    k = _shifts(xp, z.real)
    half = 2 * geometry.h12 + 2
    parts = [_shift_moduli(xp, geometry, fluxes[:, s], -k) for s in (slice(0, half), slice(half, None))]
    return xp.concatenate(parts, axis=1), z - k


def _invert(xp: Any, fluxes: Any, tau: Any, where: Any) -> Arrays:
    """``tau -> -1 / tau`` with (f, h) -> (h, -f), where asked for."""
    half = fluxes.shape[1] // 2
    turned = xp.concatenate([fluxes[:, half:], -fluxes[:, :half]], axis=1)
    safe = xp.where(where, tau, 1.0)
    return xp.where(where[:, None], turned, fluxes), xp.where(where, -1.0 / safe, tau)


def _tau_pass(xp: Any, fluxes: Any, tau: Any) -> tuple[Any, Any, Any]:
    """One shift and, if due, one inversion; also which rows were inverted and need another pass."""
    half = fluxes.shape[1] // 2
    k = _shifts(xp, tau.real)
    fluxes = xp.concatenate([fluxes[:, :half] - k[:, None] * fluxes[:, half:], fluxes[:, half:]], axis=1)
    tau = tau - k
    size = xp.abs(tau)
    inside = (size < 1 - EDGE) | ((size <= 1 + EDGE) & (tau.real < -EDGE))
    inside = inside & (tau.imag > 0)
    fluxes, tau = _invert(xp, fluxes, tau, inside)
    return fluxes, tau, inside


def fold_tau(fluxes: Any, tau: Any, *, xp: Any = np) -> Arrays:
    """Bring tau into the fundamental domain of SL(2, Z), the fluxes following.

    Parameters
    ----------
    fluxes
        Integer rows ``[f | h]``, (B, 4h+4).
    tau
        Axio-dilaton, (B,) complex; rows with Im tau <= 0 or that are not finite are left as they are.
    xp
        ``numpy`` or ``jax.numpy``.

    Returns
    -------
    fluxes, tau
        The same vacua with ``-1/2 < Re tau <= 1/2``, ``|tau| >= 1``, and ``Re tau >= 0`` on the arc; at the
        two fixed points the equivalent fluxes that are smallest after the sign rule.
    """
    fluxes, tau = xp.asarray(fluxes).astype(xp.int64), xp.asarray(tau)
    if xp is np:
        fluxes, tau, moved = _tau_pass(np, fluxes, tau)
        rows = np.flatnonzero(moved)
        for _ in range(MAX_PASSES):
            if not len(rows):
                break
            fluxes[rows], tau[rows], moved = _tau_pass(np, fluxes[rows], tau[rows])
            rows = rows[moved]
        return _at_fixed_points(np, fluxes, tau)
    from jax import lax

    def turn(state: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
        return (*_tau_pass(xp, state[0], state[1]), state[3] + 1)

    start = (*_tau_pass(xp, fluxes, tau), 0)
    fluxes, tau, _, _ = lax.while_loop(lambda state: state[2].any() & (state[3] < MAX_PASSES), turn, start)
    return _at_fixed_points(xp, fluxes, tau)


def _at_fixed_points(xp: Any, fluxes: Any, tau: Any) -> Arrays:
    """At tau = i and exp(i pi / 3) take the smallest of the fluxes that the stabiliser relates; tau stays."""
    half = fluxes.shape[1] // 2
    at_i = xp.abs(tau - 1j) <= 2 * EDGE
    corner = xp.abs(tau - complex(0.5, np.sqrt(0.75))) <= 4 * EDGE
    if xp is np:
        rows = np.flatnonzero(at_i | corner)
        if not len(rows):
            return fluxes, tau
        fluxes = fluxes.copy()
        fluxes[rows] = _smallest(np, fluxes[rows], at_i[rows], corner[rows], half)
        return fluxes, tau
    return _smallest(xp, fluxes, at_i, corner, half), tau


def _smallest(xp: Any, fluxes: Any, at_i: Any, corner: Any, half: int) -> Any:
    f, h = fluxes[:, :half], fluxes[:, half:]
    best = fluxes
    # i is fixed by tau -> -1/tau; the corner, where tau - 1 = -1/tau, by tau -> -1/(tau - 1) and its square
    for where, other in (
        (at_i, xp.concatenate([h, -f], axis=1)),
        (corner, xp.concatenate([h, h - f], axis=1)),
        (corner, xp.concatenate([h - f, -f], axis=1)),
    ):
        smaller = where & _less(xp, sign_rule(other, xp=xp), sign_rule(best, xp=xp))
        best = xp.where(smaller[:, None], other, best)
    return best


def _less(xp: Any, a: Any, b: Any) -> Any:
    """Lexicographic ``a < b``, row by row."""
    different = a != b
    first = xp.argmax(different, axis=1)[:, None]
    return (xp.take_along_axis(a, first, axis=1) < xp.take_along_axis(b, first, axis=1))[:, 0]


def sign_rule(fluxes: Any, *, xp: Any = np) -> Any:
    """The rows ``[f | h]`` with the sign that makes the first non-zero entry positive, (B, 4h+4)."""
    fluxes = xp.asarray(fluxes)
    first = xp.argmax(fluxes != 0, axis=1)[:, None]
    negative = xp.take_along_axis(fluxes, first, axis=1) < 0
    return xp.where(negative, -fluxes, fluxes)


def canonical(geometry: Geometry, fluxes: Any, z: Any, tau: Any, *, xp: Any = np) -> tuple[Any, Any, Any]:
    """The one representative of each vacuum: axions and tau folded, sign fixed.

    Parameters
    ----------
    geometry
        The geometry, ``h = h12``.
    fluxes, z, tau
        Integer (B, 4h+4), complex (B, h), complex (B,).
    xp
        ``numpy`` or ``jax.numpy``.

    Returns
    -------
    fluxes, z, tau
        The same shapes; N_flux, |W_0| and the masses are unchanged.
    """
    fluxes, z = fold_axions(geometry, fluxes, z, xp=xp)
    fluxes, tau = fold_tau(fluxes, tau, xp=xp)
    return sign_rule(fluxes, xp=xp), z, tau


def conjugation_matrix(geometry: Geometry) -> NDArray[np.int64]:
    """The integer matrix S with ``Pi(-conj z) = S conj(Pi(z))``, (2h+2, 2h+2); ``S^T Sigma S = -Sigma``.

    The coefficients of the prepotential are real but for K0 and the factor of F_inst, which are imaginary, so
    that ``F_0(-conj z) = -conj F_0`` and ``F_i(-conj z) = conj(F_i) - 2 a_ij conj(z^j)``.
    """
    h = geometry.h12
    matrix = np.diag(np.concatenate([[-1], np.ones(h + 1), -np.ones(h)])).astype(np.int64)
    matrix[1 : h + 1, h + 2 :] = -np.rint(2 * geometry.a_matrix).astype(np.int64)
    return matrix


def complex_conjugate(
    geometry: Geometry, fluxes: Any, z: Any, tau: Any, *, xp: Any = np
) -> tuple[Any, Any, Any]:
    """The CP image of each vacuum, itself a vacuum: ``z -> -conj z, tau -> -conj tau, f -> S f, h -> -S h``.

    ``W -> -conj W`` and N_flux stays. Arguments and result are those of `canonical`; the image is not folded.
    """
    s = xp.asarray(conjugation_matrix(geometry).T)
    fluxes = xp.asarray(fluxes).astype(xp.int64)
    half = fluxes.shape[1] // 2
    image = xp.concatenate([fluxes[:, :half] @ s, -(fluxes[:, half:] @ s)], axis=1)
    return image, -xp.conj(xp.asarray(z)), -xp.conj(xp.asarray(tau))


def _flux_keys(fluxes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Few integer keys, the first the most significant, that order rows as their entries do."""
    keys: list[NDArray[np.int64]] = []
    room = 0
    for column in fluxes.T if len(fluxes) else ():
        low = int(column.min())
        span = int(column.max()) - low + 1
        if keys and room * span < 2**62:
            keys[-1] = keys[-1] * span + (column - low)
            room *= span
        else:
            keys.append(column - low)
            room = span
    return keys


def canonical_order(
    fluxes: NDArray[np.integer[Any]],
    z: NDArray[np.complex128],
    n_flux: NDArray[np.integer[Any]] | None = None,
) -> NDArray[np.int64]:
    """Indices that sort by (n_flux, fluxes, Re z, Im z), the last two rounded to six digits.

    Parameters
    ----------
    fluxes, z
        Canonical rows, (B, 4h+4) and (B, h).
    n_flux
        The tadpole, (B,); computed if not given.

    Returns
    -------
    ndarray
        (B,) indices. Two vacua of one flux vector that differ as vacua do (by more than `SAME`) are put in
        the same order whatever their last digits.
    """
    rows = np.asarray(fluxes).astype(np.int64)
    if n_flux is None:
        f1, f2, h1, h2 = np.split(rows, 4, axis=1)
        n_flux = (f1 * h2 - f2 * h1).sum(axis=1)
    z = np.asarray(z)
    values = [np.rint(1e6 * part) for part in (*z.real.T, *z.imag.T)]
    return np.lexsort([*reversed(values), *reversed(_flux_keys(rows)), n_flux]).astype(np.int64)


def deduplicate(
    fluxes: ArrayLike, z: ArrayLike, tau: ArrayLike, *, tolerance: float = SAME
) -> NDArray[np.int64]:
    """Indices of one row for each vacuum: equal fluxes and every ``|dz| <= tolerance`` are one vacuum.

    Of equal rows the one with the smallest values (Re z, Im z, Re tau, Im tau; compared exactly) is kept. So
    the kept values depend neither on the order of the rows nor on how they were split: removing duplicates
    from parts and then from their union gives the same bits as from all at once, as long as copies of one
    vacuum lie much closer, and different vacua much farther apart, than ``tolerance``.

    Parameters
    ----------
    fluxes, z, tau
        Canonical rows: integer (B, 4h+4), complex (B, h), complex (B,).
    tolerance
        Largest difference of a modulus between copies.

    Returns
    -------
    ndarray
        Indices of the kept rows, sorted by fluxes and values.
    """
    flux_rows, z, tau = np.asarray(fluxes).astype(np.int64), np.asarray(z), np.asarray(tau)
    if not len(flux_rows):
        return np.zeros(0, dtype=np.int64)
    keys = _flux_keys(flux_rows)
    values = [*z.real.T, *z.imag.T, tau.real, tau.imag]
    order = np.lexsort([*reversed(values), *reversed(keys)])
    new = np.zeros(len(order), dtype=bool)
    new[0] = True
    for key in keys:
        new[1:] |= np.diff(key[order]) != 0
    group = np.cumsum(new) - 1
    z = z[order]
    kept = np.zeros(len(order), dtype=bool)
    left = np.arange(len(order))
    while len(left):  # each turn takes the smallest row left of every flux vector, and drops its copies
        leaders = left[np.concatenate([[True], np.diff(group[left]) != 0])]
        kept[leaders] = True
        leader = leaders[np.searchsorted(group[leaders], group[left])]
        near = np.abs(z[left] - z[leader]).max(axis=1) <= tolerance
        left = left[~(near | (left == leader))]
    return order[kept].astype(np.int64)
