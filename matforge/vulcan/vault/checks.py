"""Whether rows are vacua: their equations, their tadpole, their place in the Kähler cone.

Every comparison is written so that NaN fails it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from matforge.model import UsageError
from matforge.vulcan.problems import Complaints, Problem

if TYPE_CHECKING:
    from matforge.vacua.geometry import Geometry

F_TERM_TOLERANCE = 1e-8
SAME = 1e-6
"""Largest difference of a modulus between two copies of one vacuum."""
_BLOCK = 256
"""Rows that are evaluated together: one shape, compiled once."""


class ValidationError(UsageError):
    """Some rows are no vacua; nothing was designated.

    Attributes
    ----------
    problems : tuple of Problem
        What is wrong, with the rows.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        rows = sorted({row for problem in self.problems for row in problem.rows})
        lines = "; ".join(map(str, self.problems))
        super().__init__(f"Nothing was designated: {len(rows)} rows fail the checks: {lines}.")


def tadpole_limit_of(geometry: Geometry) -> int:
    """The D3 charge that the largest orientifold can cancel, ``2 + h11 + h12`` (arXiv:2306.06160)."""
    return 2 + geometry.h11 + geometry.h12


def check_limits(f_term_tol: Any, tadpole_limit: Any) -> None:
    """Raise UsageError if nothing could be checked with these."""
    number = isinstance(f_term_tol, Real) and not isinstance(f_term_tol, bool)
    if not number or not 0 < f_term_tol < np.inf:
        raise UsageError(f"f_term_tol is a number above 0, not {f_term_tol!r}.")
    whole = isinstance(tadpole_limit, Integral) and not isinstance(tadpole_limit, bool)
    if tadpole_limit is not None and not (whole and tadpole_limit >= 1):
        raise UsageError(f"tadpole_limit is a whole number of at least 1, not {tadpole_limit!r}.")


def failures(
    geometry: Geometry,
    flux: NDArray[np.int64],
    z: NDArray[np.complex128],
    tau: NDArray[np.complex128],
    susy: NDArray[np.bool_],
    *,
    f_term_tol: float = F_TERM_TOLERANCE,
    tadpole_limit: int | None = None,
) -> list[Problem]:
    """What is wrong with rows that claim to be flux vacua.

    Parameters
    ----------
    geometry : Geometry
        ``h = h12``.
    flux : (B, 4h+4) int
        Rows ``[f | h]``.
    z, tau : (B, h) and (B,) complex
    susy : (B,) bool
        Where true every F-term ``D_I W`` must vanish; elsewhere the gradient of the scalar potential.
    f_term_tol : float
        Largest ``|D_I W|``, or component of the gradient, that counts as zero.
    tadpole_limit : int, optional
        Largest N_flux; default :func:`tadpole_limit_of`.
    """
    width = 4 * geometry.h12 + 4
    if flux.shape[1] != width:
        return [Problem("flux", f"must have {width} entries on {geometry.name}", tuple(range(len(flux))))]
    limit = tadpole_limit_of(geometry) if tadpole_limit is None else tadpole_limit
    found = Complaints()
    n_flux = tadpoles(flux)
    _note(found, "flux", f"has N_flux outside 1 to {limit}", (n_flux >= 1) & (n_flux <= limit))
    inside = (z.imag @ geometry.walls.T.astype(float) > 0).all(axis=1) & (tau.imag > 0)
    _note(found, "moduli_im", "lies outside the Kähler cone, or Im tau is not positive", inside)
    terms = _evaluate(_f_terms, geometry, z, tau, flux)
    _note(found, "", f"an F-term |D_I W| exceeds {f_term_tol:g}", ~susy | (terms <= f_term_tol))
    if not susy.all():
        slopes = _evaluate(_gradient, geometry, z, tau, flux)
        text = f"the gradient of the scalar potential exceeds {f_term_tol:g}"
        _note(found, "", text, susy | (slopes <= f_term_tol))
    return found.found


def _note(found: Complaints, column: str, text: str, good: NDArray[np.bool_]) -> None:
    if not good.all():
        found.add(column, text, np.flatnonzero(~good))


def tadpoles(flux: NDArray[np.int64]) -> NDArray[np.int64]:
    """``N_flux = f^T Sigma h`` of rows ``[f | h]``, (B,); -1 where the width is no multiple of four."""
    if flux.shape[1] % 4:
        return np.full(len(flux), -1)
    f1, f2, h1, h2 = np.split(flux.astype(np.int64), 4, axis=1)
    return (f1 * h2 - f2 * h1).sum(axis=1)  # type: ignore[no-any-return]


def _evaluate(
    function: Callable[..., Any], geometry: Geometry, z: Any, tau: Any, flux: Any
) -> NDArray[np.float64]:
    """The largest absolute entry of ``function(model, z, tau, fluxes)``, for every row."""
    from matforge.vacua import periods

    model = periods.model_of(geometry)
    found = []
    for begin in range(0, len(flux), _BLOCK):
        rows = np.arange(begin, begin + _BLOCK).clip(max=len(flux) - 1)
        values = np.asarray(periods.batched(function)(model, z[rows], tau[rows], flux[rows].astype(float)))
        found.append(np.abs(values).max(axis=1)[: len(flux) - begin])
    return np.concatenate(found)


def _f_terms(model: Any, z: Any, tau: Any, fluxes: Any) -> Any:
    from matforge.vacua import periods

    return periods.covariant_derivatives(model, z, tau, fluxes)


def _gradient(model: Any, z: Any, tau: Any, fluxes: Any) -> Any:
    """Derivatives of the potential by the real and imaginary parts of z and tau, (2h+2,)."""
    import jax
    import jax.numpy as jnp

    from matforge.vacua import periods

    def potential(x: Any) -> Any:
        half = x.shape[0] // 2
        point = x[:half] + 1j * x[half:]
        return periods.scalar_potential(model, point[:-1], point[-1], fluxes)

    point = jnp.append(z, tau)
    return jax.grad(potential)(jnp.concatenate([point.real, point.imag]))


def duplicates(
    geometry: Geometry | None, rows: tuple[Any, Any, Any], known: tuple[Any, Any, Any]
) -> NDArray[np.int64]:
    """Which rows are the same vacuum as an earlier one or as one that is known.

    Parameters
    ----------
    geometry : Geometry or None
        If given, vacua that differ by a symmetry (sign, axion shifts, SL(2, Z)) are the same.
    rows, known : (flux, z, tau)
        (B, 4h+4) int, (B, h) complex, (B,) complex.

    Returns
    -------
    ndarray
        Indices of rows, ascending.
    """
    flux, z, tau = (np.concatenate([old, new]) for old, new in zip(known, rows, strict=True))
    if geometry is not None and flux.shape[1] == 4 * geometry.h12 + 4:
        from matforge.vacua import domain

        flux, z, tau = domain.canonical(geometry, flux.astype(np.int64), z, tau)
    first: dict[bytes, list[int]] = {}
    twice = []
    for index, key in enumerate(np.ascontiguousarray(flux).astype(np.int64)):
        others = first.setdefault(key.tobytes(), [])
        if any(np.abs(z[index] - z[other]).max() <= SAME for other in others):
            twice.append(index - len(known[0]))
        else:
            others.append(index)
    return np.array([index for index in twice if index >= 0], dtype=np.int64)
