"""Special geometry near large complex structure in JAX: prepotential, periods, metrics, potential, masses.

Every function is pure and takes one point, ``(model, z)`` or ``(model, z, tau, fluxes)``; `batched` turns it
into a compiled function of many points. ``h`` is h12; ``z`` is (h,) complex, ``tau`` complex, and ``fluxes``
the 4h+4 integers ``[f | h]``. Formulas and signs are those of arXiv:2306.06160, section 2:

* ``F = -kappa_ijk z^i z^j z^k / 6 + a_ij z^i z^j / 2 + b_i z^i + K0 / 2 + F_inst``,
  ``F_inst = -(2 pi i)^-3 sum_q n_q Li_3(exp(2 pi i q.z))`` with *integer* Gopakumar-Vafa invariants ``n_q``;
* ``Pi = (F_0, F_i, 1, z^i)``, ``F_0 = 2 F - z^i F_i``; ``Sigma = [[0, 1], [-1, 0]]`` in blocks of h+1;
* ``K_cs = -log(-i Pi^dagger Sigma Pi)`` and ``K = K_cs - log(-i (tau - conj tau))``;
* ``W = (f - tau h)^T Sigma Pi``, ``N_flux = f^T Sigma h``,
  ``V = exp(K) K^IJbar D_I W conj(D_J W)`` over (z, tau).

Importing this module switches JAX to 64-bit numbers (``jax_enable_x64``) for the whole process: in single
precision neither the periods nor Newton's method mean anything here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from matforge.vacua.geometry import Geometry

jax.config.update("jax_enable_x64", True)

__all__ = [
    "Model",
    "batched",
    "complete",
    "covariant_derivatives",
    "d2_periods",
    "d_periods",
    "dual_isd_matrix",
    "gauge_kinetic_matrix",
    "instantons",
    "isd_completion_matrix",
    "isd_matrix",
    "kahler_metric",
    "kahler_potential",
    "kahler_potential_cs",
    "mass_matrix",
    "masses_squared",
    "mirror_volume",
    "model_of",
    "periods",
    "polylog",
    "prepotential",
    "prepotential_derivatives",
    "scalar_potential",
    "sigma_matrix",
    "superpotential",
    "tadpole",
    "w0",
]

SERIES_TERMS = 48
"""Terms of the polylogarithms: at |w| = 1/2 what is left out is below 1e-17 of Li_2, and of Li_3."""
_TWO_PI_I = 2j * np.pi


class Model(NamedTuple):
    """A geometry as a pytree of arrays; ``m`` is the number of curve classes."""

    kappa: Array  # (h, h, h)
    a_matrix: Array  # (h, h)
    b: Array  # (h,) c2 / 24
    k0: Array  # () zeta(3) chi / (2 pi i)^3
    charges: Array  # (m, h)
    invariants: Array  # (m,)
    walls: Array  # (n, h), the Kähler cone is walls @ Im z > 0


def model_of(geometry: Geometry) -> Model:
    """Put a geometry's data on the default device of JAX, in float64 and complex128."""
    return Model(
        kappa=jnp.asarray(geometry.kappa),
        a_matrix=jnp.asarray(geometry.a_matrix),
        b=jnp.asarray(geometry.b),
        k0=jnp.asarray(geometry.k0),
        charges=jnp.asarray(geometry.gv_charges),
        invariants=jnp.asarray(geometry.gv_invariants),
        walls=jnp.asarray(geometry.walls, dtype=jnp.float64),
    )


@lru_cache(maxsize=128)
def batched(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function(model, *point)`` compiled for many points: all arguments but the model have a batch axis.

    The same function gives the same compiled one, so that it may be asked for where it is used.

    Examples
    --------
    >>> from matforge.vacua.geometry import load_geometry
    >>> model = model_of(load_geometry("octic"))
    >>> batched(kahler_potential_cs)(model, jnp.array([[2j], [3j]])).shape
    (2,)
    """

    def many(model: Model, *points: Any) -> Any:
        return jax.vmap(function, in_axes=(None,) + (0,) * len(points))(model, *points)

    return jax.jit(many)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def polylog(order: int, w: Array) -> Array:
    """``Li_order(w) = sum_k w^k / k^order`` for order 0 to 3 and complex ``w`` of any shape.

    Orders 0 and 1 are closed forms; 2 and 3 are summed by Horner's rule, to rounding for ``|w| <= 1/2`` (that
    is ``q . Im z >= 0.11``); nearer to 1 the error grows like ``|w|^SERIES_TERMS``. Derivatives are taken as
    ``w Li_n'(w) = Li_(n-1)(w)``, not term by term.
    """
    if order == 0:
        return w / (1 - w)
    if order == 1:
        # log1p keeps small |w| exact: |1 - w|^2 = 1 + (|w|^2 - 2 Re w)
        size = w.real**2 + w.imag**2
        return -(0.5 * jnp.log1p(size - 2 * w.real) + 1j * jnp.arctan2(-w.imag, 1 - w.real))
    return _series(order, w)


@partial(jax.jit, static_argnums=0)
def _series(order: int, w: Array) -> Array:
    def horner(k: Array, total: Array) -> Array:
        return w * (total + (SERIES_TERMS - k * 1.0) ** -order)

    # not unrolled: the loop compiles sooner, and runs no slower
    return jax.lax.fori_loop(0, SERIES_TERMS, horner, jnp.zeros_like(w))


@polylog.defjvp
def _polylog_jvp(order: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (w,), (dw,) = primals, tangents
    if order == 0:
        slope = 1 / (1 - w) ** 2
    else:
        safe = jnp.where(w == 0, 1.0, w)  # w underflows far inside the cone
        slope = jnp.where(w == 0, 1.0, polylog(order - 1, w) / safe)
    return polylog(order, w), slope * dw


def _weights(model: Model, z: Array) -> Array:
    return jnp.exp(_TWO_PI_I * (model.charges @ z))


def instantons(model: Model, z: Array) -> tuple[Array, Array, Array, Array]:
    """``F_inst`` and its derivatives: (), (h,), (h, h), (h, h, h)."""
    w, n, q = _weights(model, z), model.invariants, model.charges
    return (
        -jnp.sum(n * polylog(3, w)) / _TWO_PI_I**3,
        -(n * polylog(2, w)) @ q / _TWO_PI_I**2,
        -jnp.einsum("q,qi,qj->ij", n * polylog(1, w), q, q) / _TWO_PI_I,
        -jnp.einsum("q,qi,qj,qk->ijk", n * polylog(0, w), q, q, q),
    )


def prepotential_derivatives(model: Model, z: Array) -> tuple[Array, Array, Array, Array]:
    """``F, F_i, F_ij, F_ijk`` at z: (), (h,), (h, h), (h, h, h)."""
    f, f1, f2, f3 = instantons(model, z)
    kz = model.kappa @ z
    kzz = kz @ z
    az = model.a_matrix @ z
    return (
        f - kzz @ z / 6 + az @ z / 2 + model.b @ z + model.k0 / 2,
        f1 - kzz / 2 + az + model.b,
        f2 - kz + model.a_matrix,
        f3 - model.kappa,
    )


def prepotential(model: Model, z: Array) -> Array:
    """The prepotential F."""
    return prepotential_derivatives(model, z)[0]


def _period_jets(model: Model, z: Array) -> tuple[Array, Array, Array]:
    h = z.shape[0]
    f, f1, f2, f3 = prepotential_derivatives(model, z)
    one, eye, none = jnp.ones(1), jnp.eye(h), jnp.zeros((h, h, h + 1))
    pi = jnp.concatenate([(2 * f - z @ f1)[None], f1, one, z])
    d_pi = jnp.concatenate([(f1 - f2 @ z)[:, None], f2, jnp.zeros((h, 1)), eye], axis=1)
    d2_pi = jnp.concatenate([-(f3 @ z)[:, :, None], f3, none], axis=2)
    return pi, d_pi, d2_pi


def periods(model: Model, z: Array) -> Array:
    """``Pi = (F_0, F_i, 1, z^i)``, (2h+2,)."""
    return _period_jets(model, z)[0]


def d_periods(model: Model, z: Array) -> Array:
    """``d Pi / d z^i``, (h, 2h+2)."""
    return _period_jets(model, z)[1]


def d2_periods(model: Model, z: Array) -> Array:
    """``d^2 Pi / d z^i d z^j``, (h, h, 2h+2)."""
    return _period_jets(model, z)[2]


def sigma_matrix(h: int) -> NDArray[np.int64]:
    """``Sigma = [[0, 1], [-1, 0]]`` in blocks of h+1, (2h+2, 2h+2)."""
    one = np.eye(h + 1, dtype=np.int64)
    return np.block([[0 * one, one], [-one, 0 * one]])


def _sigma(x: Array) -> Array:
    """``Sigma x`` along the last axis."""
    half = x.shape[-1] // 2
    return jnp.concatenate([x[..., half:], -x[..., :half]], axis=-1)


def mirror_volume(model: Model, z: Array) -> Array:
    """``exp(-K_cs) = -i Pi^dagger Sigma Pi``, real and positive in the Kähler cone."""
    pi = periods(model, z)
    return (-1j * (pi.conj() @ _sigma(pi))).real


class _Kahler(NamedTuple):
    """Derivatives of K_cs by z; the second index of ``metric`` is the antiholomorphic one."""

    volume: Array
    k_i: Array
    k_ij: Array
    metric: Array


def _kahler(jets: tuple[Array, Array, Array]) -> _Kahler:
    pi, d_pi, d2_pi = jets
    bra = -1j * _sigma(pi.conj())  # y = -i conj(Pi) Sigma Pi = -bra . Pi, as Sigma is antisymmetric
    y = -(bra @ pi).real
    y_i = -(d_pi @ bra) / y
    y_ij = -(d2_pi @ bra) / y
    y_ijbar = -1j * jnp.einsum("ia,ja->ij", _sigma(d_pi), d_pi.conj()) / y
    return _Kahler(y, -y_i, jnp.outer(y_i, y_i) - y_ij, jnp.outer(y_i, y_i.conj()) - y_ijbar)


def kahler_potential_cs(model: Model, z: Array) -> Array:
    """``K_cs = -log(-i Pi^dagger Sigma Pi)``, real."""
    return -jnp.log(mirror_volume(model, z))


def kahler_potential(model: Model, z: Array, tau: Array) -> Array:
    """``K = K_cs - log(-i (tau - conj tau))``, real."""
    return kahler_potential_cs(model, z) - jnp.log(2 * jnp.imag(tau))


def kahler_metric(model: Model, z: Array, tau: Array) -> Array:
    """``K_IJbar`` over (z, tau), Hermitian, (h+1, h+1); block diagonal."""
    h = z.shape[0]
    total = jnp.zeros((h + 1, h + 1), dtype=jnp.complex128)
    total = total.at[:h, :h].set(_kahler(_period_jets(model, z)).metric)
    return total.at[h, h].set(1 / (4 * jnp.imag(tau) ** 2))


def gauge_kinetic_matrix(model: Model, z: Array) -> Array:
    """``N_IJ`` with ``F_I = N_IJ X^J`` and ``conj(D_k F_I) = N_IJ conj(D_k X^J)``, symmetric, (h+1, h+1).

    ``N_IJ = conj(F_IJ) + 2 i (Im F_IK X^K) (Im F_JL X^L) / (X^M Im F_MN X^N)`` with the second derivatives of
    the homogeneous prepotential ``(X^0)^2 F(X / X^0)`` (hep-th/9605032, section 4); ``Im N`` is negative
    definite.
    """
    f, f1, f2, _ = prepotential_derivatives(model, z)
    f0i = f1 - f2 @ z
    f00 = 2 * f - z @ f1 - z @ f0i
    fij = jnp.block([[f00[None, None], f0i[None, :]], [f0i[:, None], f2]])
    x = jnp.concatenate([jnp.ones(1), z])
    ix = fij.imag @ x
    return fij.conj() + 2j * jnp.outer(ix, ix) / (x @ ix)


def isd_matrix(model: Model, z: Array) -> Array:
    """``M = -[[I + R I^-1 R, R I^-1], [I^-1 R, I^-1]]`` with ``N = R + i I``, (2h+2, 2h+2).

    Real, symmetric, positive definite and symplectic.
    """
    n = gauge_kinetic_matrix(model, z)
    r, i = n.real, n.imag
    inverse = jnp.linalg.inv((i + i.T) / 2)
    m = -jnp.block([[i + r @ inverse @ r, r @ inverse], [inverse @ r, inverse]])
    return (m + m.T) / 2


def isd_completion_matrix(model: Model, z: Array) -> Array:
    """``J = M Sigma``, the complex structure on flux quanta: ``J^2 = -1``, (2h+2, 2h+2)."""
    m = isd_matrix(model, z)
    return m @ jnp.asarray(sigma_matrix(z.shape[0]), dtype=m.dtype)


def dual_isd_matrix(model: Model, z: Array) -> Array:
    """``A = Sigma^T M Sigma = M^-1``, positive definite, determinant 1, (2h+2, 2h+2)."""
    m = isd_matrix(model, z)
    sigma = jnp.asarray(sigma_matrix(z.shape[0]), dtype=m.dtype)
    return sigma.T @ m @ sigma


def complete(model: Model, z: Array, tau: Array, h_fluxes: Array) -> Array:
    """The real ``f = c0 h + s J(z) h`` that makes (z, tau = c0 + i s) a vacuum, (2h+2,)."""
    h_fluxes = jnp.asarray(h_fluxes, dtype=jnp.float64)
    return jnp.real(tau) * h_fluxes + jnp.imag(tau) * (isd_completion_matrix(model, z) @ h_fluxes)


def tadpole(fluxes: ArrayLike) -> NDArray[np.int64]:
    """``N_flux = f^T Sigma h``, exact, of integer rows ``[f | h]`` of shape (..., 4h+4)."""
    rows = np.asarray(fluxes)
    if rows.dtype.kind not in "iu":
        raise TypeError(f"the tadpole is exact in integers only, not in {rows.dtype}")
    f1, f2, h1, h2 = np.split(rows.astype(np.int64), 4, axis=-1)
    return (f1 * h2 - f2 * h1).sum(axis=-1)


def _halves(fluxes: Array) -> tuple[Array, Array]:
    fluxes = jnp.asarray(fluxes, dtype=jnp.float64)
    half = fluxes.shape[-1] // 2
    return fluxes[..., :half], fluxes[..., half:]


def superpotential(model: Model, z: Array, tau: Array, fluxes: Array) -> Array:
    """``W = (f - tau h)^T Sigma Pi``."""
    f, h = _halves(fluxes)
    return (f - tau * h) @ _sigma(periods(model, z))


def covariant_derivatives(model: Model, z: Array, tau: Array, fluxes: Array) -> Array:
    """``D_I W = d_I W + K_I W`` over (z, tau), (h+1,)."""
    f, h = _halves(fluxes)
    jets = _period_jets(model, z)
    bra = f - tau * h
    w = bra @ _sigma(jets[0])
    d_z = _sigma(jets[1]) @ bra + _kahler(jets).k_i * w
    d_tau = -(h @ _sigma(jets[0])) - w / (2j * jnp.imag(tau))
    return jnp.concatenate([d_z, d_tau[None]])


def w0(model: Model, z: Array, tau: Array, fluxes: Array) -> Array:
    """``W_0 = sqrt(2 / pi) exp(K / 2) W``; its modulus does not depend on any choice of gauge."""
    scale = jnp.sqrt(2 / jnp.pi) * jnp.exp(kahler_potential(model, z, tau) / 2)
    return scale * superpotential(model, z, tau, fluxes)


def scalar_potential(model: Model, z: Array, tau: Array, fluxes: Array) -> Array:
    """The no-scale potential ``V = exp(K) K^IJbar D_I W conj(D_J W)`` over (z, tau), real, not negative."""
    d_w = covariant_derivatives(model, z, tau, fluxes)
    norm = (d_w.conj() @ jnp.linalg.solve(kahler_metric(model, z, tau), d_w)).real
    return jnp.exp(kahler_potential(model, z, tau)) * norm


def mass_matrix(model: Model, z: Array, tau: Array, fluxes: Array) -> Array:
    """Second derivatives of V at a vacuum in an orthonormal frame of the fields, Hermitian, (2h+2, 2h+2).

    At ``D_I W = 0``, with ``Z_IJ = D_I D_J W``, the Hessian of V is (as in hep-th/0411183)

        ``V_IJbar = exp(K) (Z_IK K^KLbar conj(Z_JL) + K_IJbar |W|^2)``, ``V_IJ = 2 exp(K) conj(W) Z_IJ``.

    A vielbein ``K_IJbar = E E^dagger`` brings the kinetic terms to the canonical ``d phi d conj(phi)``; the
    matrix is ``[[V_abbar, V_ab], [conj V_ab, conj V_abbar]]`` in that frame, and its eigenvalues are the
    squared masses. With the singular values ``x`` of Z in that frame these are ``exp(K) (x +- |W|)^2``: none
    is negative. The units are those of `scalar_potential`. Away from a vacuum the matrix has no meaning.
    """
    f, h_fluxes = _halves(fluxes)
    h = z.shape[0]
    jets = _period_jets(model, z)
    kahler = _kahler(jets)
    bra = f - tau * h_fluxes
    w = bra @ _sigma(jets[0])
    w_i = _sigma(jets[1]) @ bra
    z_ij = _sigma(jets[2]) @ bra + kahler.k_ij * w + jnp.outer(kahler.k_i, w_i)
    z_it = -(_sigma(jets[1]) @ h_fluxes + kahler.k_i * (h_fluxes @ _sigma(jets[0])))
    # D_j D_i W = d_j (D_i W) at a vacuum, as D_k W = 0; and it is symmetric, W_j being -K_j W
    zz = jnp.zeros((h + 1, h + 1), dtype=jnp.complex128)
    zz = zz.at[:h, :h].set((z_ij + z_ij.T) / 2).at[:h, h].set(z_it).at[h, :h].set(z_it)
    frame = jnp.linalg.inv(jnp.linalg.cholesky(kahler_metric(model, z, tau)))
    zz = frame @ zz @ frame.T
    scale = jnp.exp(kahler_potential(model, z, tau))
    mixed = scale * (zz @ zz.conj().T + jnp.abs(w) ** 2 * jnp.eye(h + 1))
    pure = 2 * scale * jnp.conj(w) * zz
    return jnp.block([[mixed, pure], [pure.conj(), mixed.conj()]])


def masses_squared(model: Model, z: Array, tau: Array, fluxes: Array) -> Array:
    """Squared masses of the 2h+2 real fields (z, tau) at a vacuum, ascending; see `mass_matrix`."""
    return jnp.linalg.eigvalsh(mass_matrix(model, z, tau, fluxes))
