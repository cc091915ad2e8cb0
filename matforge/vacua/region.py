"""The box that is searched, and the presets with their published or exhausted counts.

A region is given in the coordinates ``t = T Im z`` of the Kähler cone (`Geometry.cone_coordinates`; for most
bundled geometries ``t = Im z``), a range of ``s = Im tau``, and a bound on ``N_flux``. Re z and Re tau always
cover their fundamental domain, whose lowest point is ``s = sqrt(3) / 2``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from matforge.vacua.geometry import Geometry
from matforge.vacua.inputs import InputError, exact_integer, nearest

__all__ = ["PRESETS", "S_LOWEST", "Preset", "Region", "instanton_ratio", "preset"]

S_LOWEST = math.sqrt(3.0) / 2.0
"""Lowest Im tau of the fundamental domain of SL(2, Z), reached at tau = exp(i pi / 3)."""
_SPELLED = 5e-4
"""A lower end of s this little below `S_LOWEST` is its decimal spelling (0.866), and means it."""
_LARGEST_RATIO = 0.5
"""Last degree over last but one; below it a geometric tail adds less than the last degree itself."""

_LARGEST_N = 10_000
"""Largest N_flux that is accepted: with it no flux quantum of a bundled region comes near 32 bits."""

Range = tuple[float, float]


def instanton_ratio(geometry: Geometry, t: ArrayLike) -> float:
    """What the last degree of the instanton series adds to F_ijk, over what the last but one adds.

    Degrees at which every invariant vanishes, or is not listed, do not count: with a gap between the last two
    that do, this is the mean ratio of a step.

    With ``Y_d = sum over deg(q) = d of |n_q| (q.y)^3 exp(-2 pi q.y)``, the size of degree ``d`` in the
    contraction ``F_ijk y^i y^j y^k`` (degree 0 being ``|kappa_ijk y^i y^j y^k|``), this is ``Y_D / Y_(D-1)``
    at ``D = maximum_degree``. Invariants grow like ``n_d ~ exp(2 pi d y_c) / (d^3 log^2 d)`` with the
    conifold at ``y_c`` (Candelas, de la Ossa, Green, Parkes, Nucl. Phys. B 359 (1991) 21), so that the ratio
    tends to a constant r along a ray, and what the truncation leaves out tends to ``r / (1 - r)`` times the
    last degree. A region is accepted if ``r <= 1/2``: what is left out is then no larger than the last degree
    kept. For the octic, whose conifold lies at Im z = 1.71, r = 0.85 there.

    Parameters
    ----------
    geometry
        The geometry; the degree of a curve is the sum of its areas in units of the cone coordinates. If the
        cone is not simplicial, the degree is its area at ``t`` as a fraction of the largest one, in
        ``maximum_degree`` steps.
    t
        A point in cone coordinates, (h,).
    """
    t = np.asarray(t, dtype=np.float64)
    y = np.linalg.solve(geometry.cone_coordinates, t)
    areas = geometry.gv_charges @ y
    last = geometry.maximum_degree
    if geometry.is_simplicial:
        degrees = np.rint(np.linalg.solve(geometry.cone_coordinates.T, geometry.gv_charges.T).sum(axis=0))
    else:
        degrees = np.ceil(last * areas / areas.max(initial=1e-300) - 1e-9)
    sizes = np.abs(geometry.gv_invariants) * areas**3 * np.exp(-2 * np.pi * areas)
    totals = [float(sizes[degrees == d].sum()) for d in range(last + 1)]
    totals[0] += abs(float(np.einsum("ijk,i,j,k", geometry.kappa, y, y, y)))
    there = [d for d in range(last, -1, -1) if totals[d] > 0]
    if not there or there[0] == 0:
        return 0.0
    if len(there) == 1:
        return math.inf
    ratio: float = (totals[there[0]] / totals[there[1]]) ** (1 / (there[0] - there[1]))
    return ratio


@dataclass(frozen=True)
class Region:
    """A box in the cone coordinates, a range of s, and a bound on N_flux.

    Build it with `Region.parse` or `Region.from_dict`, which check it against a geometry.
    """

    im_z: tuple[Range, ...]
    """Lower and upper end of each cone coordinate ``t = T Im z``."""
    s: Range
    """Lower and upper end of Im tau."""
    n_max: int
    """Largest N_flux."""

    @classmethod
    def parse(
        cls,
        geometry: Geometry,
        im_z: str | Sequence[Any],
        s: str | Sequence[Any] = ":10",
        nmax: Any = 10,
    ) -> Region:
        """Read and check a region.

        Parameters
        ----------
        geometry
            The geometry to be searched.
        im_z
            ``"2:5"`` for every modulus, ``"2:5,2:4"`` for one range a modulus; or the numbers themselves.
        s
            ``"2:10"``; the lower end may be left out (``":10"``) or spelled 0.866, and is then sqrt(3) / 2.
        nmax
            Largest N_flux, an integer of at least 1.

        Raises
        ------
        InputError
            One sentence, if a range is malformed, empty, outside the Kähler cone or below convergence of the
            instanton series, or ``nmax`` is not a positive integer.
        """
        return cls(
            im_z=_moduli_ranges(geometry, im_z),
            s=_s_range(s),
            n_max=_n_max(nmax),
        )._checked(geometry)

    @classmethod
    def from_dict(cls, geometry: Geometry, data: Mapping[str, Any]) -> Region:
        """Read back what `as_dict` wrote, with the checks of `parse`."""
        known = ("im_z", "s", "n_max")
        for key in data:
            if key not in known:
                raise InputError(f"region: unknown key {key!r}, {nearest(key, known)} Rename or remove it.")
        for key in known:
            if key not in data:
                raise InputError(f"region: missing {key}: add it.")
        return cls.parse(geometry, data["im_z"], data["s"], data["n_max"])

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and numbers for JSON."""
        return {"im_z": [list(pair) for pair in self.im_z], "s": list(self.s), "n_max": self.n_max}

    def contains(
        self, geometry: Geometry, z: ArrayLike, tau: ArrayLike, tolerance: float = 1e-6
    ) -> NDArray[np.bool_]:
        """Which points lie in the box, its edges widened by ``tolerance``.

        Parameters
        ----------
        geometry
            The geometry, for its cone coordinates.
        z
            Moduli, (..., h) complex.
        tau
            Axio-dilaton, (...) complex.
        tolerance
            Absolute width by which every edge is moved outwards.

        Returns
        -------
        ndarray
            (...) bool; False where a value is not finite. Re z, Re tau and |tau| are not looked at.
        """
        t = np.imag(np.asarray(z)) @ geometry.cone_coordinates.T
        s = np.imag(np.asarray(tau))
        low, high = np.array(self.im_z).T
        inside = np.all((t >= low - tolerance) & (t <= high + tolerance), axis=-1)
        within: NDArray[np.bool_] = inside & (s >= self.s[0] - tolerance) & (s <= self.s[1] + tolerance)
        return within

    def _checked(self, geometry: Geometry) -> Region:
        if not geometry.is_simplicial:
            _check_corners(geometry, self.im_z)
        _check_metric(geometry, self.im_z)
        _check_convergence(geometry, self.im_z)
        return self


def _numbers(pair: str | Sequence[Any], what: str, lowest: float | None) -> Range:
    """Two finite numbers from ``"lo:hi"`` or a pair; ``lowest`` stands for a lower end left out."""
    parts = pair.split(":") if isinstance(pair, str) else list(pair)
    if len(parts) != 2:
        raise InputError(f"{what} is {pair!r}: write LO:HI, two numbers with a colon between.")
    values: list[float] = []
    for part in parts:
        if part in ("", None) and not values and lowest is not None:
            values.append(lowest)
            continue
        try:
            values.append(float(part))
        except (TypeError, ValueError):
            raise InputError(f"{what} is {pair!r}: {part!r} is not a number; write LO:HI.") from None
        if not math.isfinite(values[-1]):
            raise InputError(f"{what} is {pair!r}: {part!r} is not a finite number; write LO:HI.")
    low, high = values
    if low >= high:
        raise InputError(f"{what} runs from {low:g} to {high:g}: the lower end must be the smaller one.")
    return low, high


def _moduli_ranges(geometry: Geometry, im_z: str | Sequence[Any]) -> tuple[Range, ...]:
    h = geometry.h12
    parts: list[Any] = im_z.split(",") if isinstance(im_z, str) else list(im_z)
    if parts and not isinstance(im_z, str) and all(isinstance(p, int | float) for p in parts):
        parts = [tuple(parts)]  # one bare pair of numbers
    names = ["Im z"] if len(parts) == 1 else [f"Im z{i + 1}" for i in range(len(parts))]
    if len(parts) not in (1, h):
        moduli = f"{h} moduli: give one range for all, or {h}" if h > 1 else "one modulus: give one range"
        raise InputError(f"Im z has {len(parts)} ranges, but {geometry.name} has {moduli}.")
    ranges = []
    for what, part in zip(names, parts, strict=True):
        low, high = _numbers(part, what, None)
        if low <= 0:
            raise InputError(
                f"{what} starts at {low:g}, outside the Kähler cone of {geometry.name}: start above 0."
            )
        ranges.append((low, high))
    return tuple(ranges * h if len(ranges) == 1 else ranges)


def _s_range(s: str | Sequence[Any]) -> Range:
    low, high = _numbers(s, "s", S_LOWEST)
    if low < S_LOWEST - _SPELLED:
        raise InputError(
            f"s starts at {low:g}, but the fundamental domain of tau begins at sqrt(3)/2 = 0.866: "
            "start there (leave the lower end out)."
        )
    low = max(low, S_LOWEST)
    if low >= high:
        raise InputError(
            f"s ends at {high:g}, but the fundamental domain begins at sqrt(3)/2 = 0.866: end higher."
        )
    return low, high


def _n_max(value: Any) -> int:
    if isinstance(value, str):
        try:
            value = float(value) if not value.strip().lstrip("+-").isdigit() else int(value)
        except ValueError:
            raise InputError(f"nmax is {value!r}: write an integer of at least 1.") from None
    number = exact_integer(value, "nmax")
    if number < 1:
        raise InputError(f"nmax is {number}, but every vacuum has N_flux of at least 1: give 1 or more.")
    if number > _LARGEST_N:
        raise InputError(
            f"nmax is {number}, far beyond any orientifold's tadpole: give at most {_LARGEST_N}."
        )
    return number


def _check_corners(geometry: Geometry, ranges: tuple[Range, ...]) -> None:
    walls = geometry.walls.astype(np.float64)
    for corner in itertools.product(*ranges):
        outside = walls @ np.array(corner) <= 0
        if outside.any():
            wall = geometry.walls[int(np.argmax(outside))].tolist()
            raise InputError(
                f"the corner Im z = {[round(c, 6) for c in corner]} lies outside the Kähler cone of "
                f"{geometry.name} (wall {wall}): choose a box inside the cone."
            )


def _check_metric(geometry: Geometry, ranges: tuple[Range, ...]) -> None:
    """By the Hodge index theorem kappa_ijk y^k has one positive eigenvalue, and kappa y y y is the volume."""
    for corner in itertools.product(*ranges):
        y = np.linalg.solve(geometry.cone_coordinates, np.array(corner))
        form = geometry.kappa @ y
        values = np.linalg.eigvalsh(form)
        if y @ form @ y <= 0 or (values[:-1] > 1e-9 * abs(values).max()).any():
            raise InputError(
                f"the metric of {geometry.name} is not positive at Im z = {[round(float(c), 6) for c in y]}: "
                "correct its intersection_numbers or kahler_cone_hyperplanes."
            )


def _check_convergence(geometry: Geometry, ranges: tuple[Range, ...]) -> None:
    corners: list[tuple[float, ...]] = [tuple(low for low, _ in ranges)]
    if not geometry.is_simplicial:  # no corner is lowest for every curve
        corners = list(itertools.product(*ranges))
    ratio, corner = max((instanton_ratio(geometry, corner), corner) for corner in corners)
    if ratio <= _LARGEST_RATIO:
        return
    needed = [math.ceil(1e3 * _least_scale(geometry, corner) * low) / 1e3 for low, _ in ranges]
    starts = ", ".join(f"{low:g}" for low, _ in ranges)
    raise InputError(
        f"Im z starts at {starts}, where the instanton series of {geometry.name}, known to degree "
        f"{geometry.maximum_degree}, does not converge (its last degree adds {ratio:.2g} of what the one "
        f"before adds, at most {_LARGEST_RATIO:g} is accepted): start at "
        f"{', '.join(f'{x:g}' for x in needed)} or above."
    )


def _least_scale(geometry: Geometry, corner: Sequence[float]) -> float:
    """Smallest factor, to 1e-6, by which the corner must be scaled for the series to converge."""
    low, high = 1.0, 2.0

    def converges(scale: float) -> bool:
        return instanton_ratio(geometry, scale * np.array(corner)) <= _LARGEST_RATIO

    while not converges(high) and high < 1e6:
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if converges(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Preset:
    """A named search, with the outcome it must have."""

    name: str
    geometry: str
    im_z: str
    s: str
    n_max: int
    description: str
    expected: int | None = None
    """Number of vacua modulo the overall sign of the fluxes, where it is known."""
    by_n_flux: tuple[int, ...] | None = None
    """The same for N_flux = 1, 2, ..., where it is known."""

    def region(self, geometry: Geometry) -> Region:
        """The region, checked against the loaded geometry."""
        return Region.parse(geometry, self.im_z, self.s, self.n_max)


_DATASET_B = (0, 2, 4, 24, 39, 65, 161, 606, 1613, 3583, 6779, 10741, 14543, 19849)

PRESETS: dict[str, Preset] = {
    entry.name: entry
    for entry in (
        Preset(
            "p11169-slice",
            "p11169",
            "2:5",
            "2:10",
            4,
            "the 42 published vacua (21 modulo sign) with N_flux <= 4 and weak coupling (arXiv:2501.03984)",
            21,
        ),
        Preset(
            "p11169-full",
            "p11169",
            "2:5",
            ":10",
            10,
            "every vacuum with N_flux <= 10, Dataset B of arXiv:2501.03984",
            6097,
            _DATASET_B[:10],
        ),
        Preset(
            "p11169-n14",
            "p11169",
            "2:5",
            ":10",
            14,
            "the region of Dataset B to N_flux <= 14",
            58009,
            _DATASET_B,
        ),
        Preset(
            "octic-n10",
            "octic",
            "2:7",
            ":30",
            10,
            "one modulus: the mirror octic of arXiv:2310.06040",
            4759,
            (2, 11, 41, 100, 189, 388, 601, 883, 1020, 1524),
        ),
        Preset(
            "ks-h12-2b-n6",
            "ks-h12-2b",
            "2:4",
            ":10",
            6,
            "a second geometry with two moduli",
            374,
            (0, 0, 3, 3, 44, 324),
        ),
    )
}
"""The named searches."""


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises
    ------
    InputError
        With the nearest names, if there is none.
    """
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}: {nearest(name, PRESETS)}")
    return PRESETS[name]
