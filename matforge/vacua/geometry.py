"""Topological data of a Calabi-Yau threefold whose mirror's complex structure is stabilised by fluxes.

A geometry file is one JSON object:

===========================  =========================================================================
``name, description``        text
``h11, h12``                 Hodge numbers; ``h12`` moduli are stabilised
``euler_characteristic``     ``2 (h12 - h11)``, the number that enters ``K0``
``intersection_numbers``     ``kappa_ijk``, integers, h12 x h12 x h12, symmetric
``c2``                       second Chern class on the basis of divisors, h12 integers
``a_matrix``                 ``a_ij`` of the prepotential, h12 x h12, symmetric, half-integral
``gv_charges``               curve classes ``q``, a list of lists of h12 integers
``gv_invariants``            genus-0 Gopakumar-Vafa invariants ``n_q``; *integers*, of any size
``kahler_cone_hyperplanes``  walls ``w`` of the Kähler cone ``w . Im z > 0``, a list of lists of integers
``maximum_degree``           degree to which the invariants are complete
``polytope_points``          optional, list of lists of integers
``note, ks_id``              optional; also ``triang_id``, ``cicy_id``
===========================  =========================================================================

Integral floats count as integers. Beyond shapes and symmetry the loader checks that the monodromies
``z^i -> z^i + 1`` are integer matrices, which ties ``a_matrix`` and ``c2`` to the intersection numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matforge.vacua import cone
from matforge.vacua.inputs import InputError, exact_integer, integer_entries, nearest, real_entries

__all__ = ["Geometry", "InputError", "list_geometries", "load_geometry"]

_REQUIRED = (
    "name",
    "description",
    "h11",
    "h12",
    "euler_characteristic",
    "intersection_numbers",
    "c2",
    "a_matrix",
    "gv_charges",
    "gv_invariants",
    "kahler_cone_hyperplanes",
    "maximum_degree",
)
_OPTIONAL = ("polytope_points", "note", "ks_id", "triang_id", "cicy_id")
LARGEST_INVARIANT = 1e300
"""Invariants are exact integers of any length, but the sums are made of floats."""
_ZETA3 = 1.2020569031595942


@dataclass(frozen=True, eq=False)
class Geometry:
    """Checked topological data; equal to another geometry if the `hash` is equal.

    Build it with `load_geometry` or `Geometry.from_dict`, which check what the constructor takes on trust.
    Arrays are float64 and read-only; ``h`` is h12 and ``m`` the number of curve classes, which are kept in a
    canonical order, so that equal geometries give equal bits.
    """

    name: str
    description: str
    h11: int
    h12: int
    euler_characteristic: int
    kappa: NDArray[np.float64]
    """Intersection numbers, (h, h, h)."""
    c2: NDArray[np.float64]
    """Second Chern class, (h,)."""
    a_matrix: NDArray[np.float64]
    """Quadratic term of the prepotential, (h, h)."""
    gv_charges: NDArray[np.float64]
    """Curve classes, (m, h)."""
    gv_invariants: NDArray[np.float64]
    """Genus-0 Gopakumar-Vafa invariants as floats, (m,)."""
    gv_exact: tuple[int, ...]
    """The same invariants as exact integers; they can exceed 64 bits."""
    kahler_cone_hyperplanes: NDArray[np.float64]
    """Walls of the Kähler cone as given, (n, h)."""
    maximum_degree: int
    polytope_points: tuple[tuple[int, ...], ...] | None = None
    note: str | None = None
    ks_id: int | str | None = None
    triang_id: int | str | None = None
    cicy_id: int | str | None = None

    @property
    def b(self) -> NDArray[np.float64]:
        """Linear term ``b_i = c2_i / 24`` of the prepotential, (h,)."""
        return self.c2 / 24.0

    @property
    def k0(self) -> complex:
        """``K0 = zeta(3) chi / (2 pi i)^3``, twice the constant term of the prepotential."""
        return 1j * _ZETA3 * self.euler_characteristic / (8 * np.pi**3)

    @cached_property
    def walls(self) -> NDArray[np.int64]:
        """The irredundant walls of the Kähler cone, primitive integer rows, (at least h, h)."""
        return cone.irredundant(np.rint(self.kahler_cone_hyperplanes).astype(np.int64))

    @property
    def is_simplicial(self) -> bool:
        """Whether the Kähler cone has exactly ``h12`` walls."""
        return len(self.walls) == self.h12

    @cached_property
    def cone_coordinates(self) -> NDArray[np.float64]:
        """The matrix ``T`` with ``t = T Im z`` in which regions are given, (h, h).

        For a simplicial cone its rows are the walls, so that ``t`` are the distances to them; the identity if
        the walls are the unit vectors in any order, and for every cone that is not simplicial.
        """
        identity = np.eye(self.h12)
        if not self.is_simplicial or {tuple(w) for w in self.walls} == {
            tuple(w) for w in identity.astype(int)
        }:
            return identity
        return self.walls.astype(np.float64)

    def monodromy(self, i: int) -> NDArray[np.int64]:
        """Integer symplectic matrix ``T_i`` with ``Pi(z + e_i) = T_i Pi(z)``, (2h+2, 2h+2).

        Besides ``z^i -> z^i + 1``, from ``F_j = -kappa_jkl z^k z^l / 2 + a_jk z^k + b_j + ...`` and
        ``F_0 = 2 F - z^j F_j``: ``F_j -> F_j - kappa_ijk z^k + (a_ij - kappa_iij / 2)`` and
        ``F_0 -> F_0 - F_i + (a_ik + kappa_iik / 2) z^k + (kappa_iii / 6 + c2_i / 12)``; the instantons are
        periodic.

        Raises
        ------
        InputError
            If ``i`` is no modulus, or an entry is not an integer (never for loaded data).
        """
        if not 0 <= i < self.h12:
            raise InputError(f"{self.name} has moduli 0 to {self.h12 - 1}: there is no monodromy {i}.")
        return _monodromy(self, i, self.name)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the topological data in canonical form; name, description and note do not enter."""
        data = {
            "format": 1,
            "hodge": [self.h11, self.h12, self.euler_characteristic],
            "kappa": np.rint(self.kappa).astype(int).tolist(),
            "c2": np.rint(self.c2).astype(int).tolist(),
            "twice_a": np.rint(2 * self.a_matrix).astype(int).tolist(),
            "charges": np.rint(self.gv_charges).astype(int).tolist(),
            "invariants": [str(n) for n in self.gv_exact],
            "cone": np.rint(self.cone_coordinates).astype(int).tolist(),
            "walls": sorted(self.walls.tolist()),
            "maximum_degree": self.maximum_degree,
        }
        return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return self.hash == other.hash if isinstance(other, Geometry) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.hash)

    def to_dict(self) -> dict[str, Any]:
        """The geometry as the JSON object of a geometry file; `from_dict` takes it back."""
        data: dict[str, Any] = {
            "name": self.name,
            "description": self.description,
            "h11": self.h11,
            "h12": self.h12,
            "euler_characteristic": self.euler_characteristic,
            "intersection_numbers": np.rint(self.kappa).astype(int).tolist(),
            "c2": np.rint(self.c2).astype(int).tolist(),
            "a_matrix": self.a_matrix.tolist(),
            "gv_charges": np.rint(self.gv_charges).astype(int).tolist(),
            "gv_invariants": list(self.gv_exact),
            "kahler_cone_hyperplanes": np.rint(self.kahler_cone_hyperplanes).astype(int).tolist(),
            "maximum_degree": self.maximum_degree,
        }
        if self.polytope_points is not None:
            data["polytope_points"] = [list(point) for point in self.polytope_points]
        data.update({key: getattr(self, key) for key in _OPTIONAL[1:] if getattr(self, key) is not None})
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "geometry") -> Geometry:
        """Check the JSON object of a geometry file and build the geometry.

        Parameters
        ----------
        data
            The object, with the keys of the module's table.
        source
            What messages call it, as a rule the file's name.

        Raises
        ------
        InputError
            One sentence naming ``source``, the key, the index, and what to do.
        """
        _check_keys(data, source)
        h = exact_integer(data["h12"], f"{source}: h12")
        if h < 1:
            raise InputError(f"{source}: h12 is {h}, but at least one modulus is needed.")
        kappa = integer_entries(data["intersection_numbers"], (h, h, h), f"{source}: intersection_numbers")
        a_matrix = real_entries(data["a_matrix"], (h, h), f"{source}: a_matrix")
        charges, invariants = _instantons(data, h, source)
        points = data.get("polytope_points")
        geometry = cls(
            name=_text(data, "name", source),
            description=_text(data, "description", source),
            h11=exact_integer(data["h11"], f"{source}: h11"),
            h12=h,
            euler_characteristic=exact_integer(
                data["euler_characteristic"], f"{source}: euler_characteristic"
            ),
            kappa=_frozen(kappa, (h, h, h)),
            c2=_frozen(integer_entries(data["c2"], (h,), f"{source}: c2"), (h,)),
            a_matrix=_frozen(a_matrix, (h, h)),
            gv_charges=_frozen(charges, (len(charges), h)),
            gv_invariants=_frozen(invariants, (len(charges),)),
            gv_exact=tuple(invariants),
            kahler_cone_hyperplanes=_walls(data["kahler_cone_hyperplanes"], h, source),
            maximum_degree=exact_integer(data["maximum_degree"], f"{source}: maximum_degree"),
            polytope_points=None if points is None else _points(points, source),
            note=_text(data, "note", source) if data.get("note") is not None else None,
            **{key: _identifier(data, key, source) for key in ("ks_id", "triang_id", "cicy_id")},
        )
        _check_consistency(geometry, source)
        return geometry


def _frozen(values: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    array = np.array(values, dtype=np.float64).reshape(shape)
    array.flags.writeable = False
    return array


def _text(data: Mapping[str, Any], key: str, source: str) -> str:
    value = data[key]
    if not isinstance(value, str):
        raise InputError(f"{source}: {key} is {value!r}, but text belongs there: put it in quotes.")
    return value


def _identifier(data: Mapping[str, Any], key: str, source: str) -> Any:
    value = data.get(key)
    return value if value is None or isinstance(value, str) else exact_integer(value, f"{source}: {key}")


def _points(points: Any, source: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(p) for p in integer_entries(points, (None, None), f"{source}: polytope_points"))


def _check_keys(data: Mapping[str, Any], source: str) -> None:
    if not isinstance(data, Mapping):
        raise InputError(f"{source}: a JSON object {{...}} belongs there, not {type(data).__name__}.")
    known = _REQUIRED + _OPTIONAL
    for key in data:
        if key not in known:
            raise InputError(f"{source}: unknown key {key!r}, {nearest(key, known)} Rename or remove it.")
    missing = [key for key in _REQUIRED if key not in data]
    if missing:
        raise InputError(
            f"{source}: missing {', '.join(missing)}: add {'it' if len(missing) == 1 else 'them'}."
        )


def _instantons(data: Mapping[str, Any], h: int, source: str) -> tuple[list[list[int]], list[int]]:
    """Charges and exact invariants, sorted by the sum of the charge and then the charge itself."""
    charges = integer_entries(data["gv_charges"], (None, h), f"{source}: gv_charges")
    invariants = integer_entries(
        data["gv_invariants"], (len(charges),), f"{source}: gv_invariants", below=LARGEST_INVARIANT
    )
    seen: dict[tuple[int, ...], int] = {}
    for k, charge in enumerate(charges):
        if not any(charge):
            raise InputError(f"{source}: gv_charges[{k}] is zero: remove it and gv_invariants[{k}].")
        if tuple(charge) in seen:
            raise InputError(
                f"{source}: gv_charges[{k}] repeats gv_charges[{seen[tuple(charge)]}]: remove one."
            )
        seen[tuple(charge)] = k
    order = sorted(range(len(charges)), key=lambda k: (sum(charges[k]), charges[k]))
    return [charges[k] for k in order], [invariants[k] for k in order]


def _walls(value: Any, h: int, source: str) -> NDArray[np.float64]:
    rows = integer_entries(value, (None, h), f"{source}: kahler_cone_hyperplanes")
    for k, row in enumerate(rows):
        if not any(row):
            raise InputError(f"{source}: kahler_cone_hyperplanes[{k}] is zero: remove it.")
    walls = _frozen(rows, (len(rows), h))
    if not cone.has_interior(walls.astype(np.int64)):
        raise InputError(f"{source}: kahler_cone_hyperplanes leave no interior: check the signs of the rows.")
    if len(walls) == 0 or np.linalg.matrix_rank(walls) < h:
        raise InputError(
            f"{source}: kahler_cone_hyperplanes need {h} independent rows: add the missing walls."
        )
    return walls


def _check_consistency(geometry: Geometry, source: str) -> None:
    for array, key in ((geometry.kappa, "intersection_numbers"), (geometry.a_matrix, "a_matrix")):
        for axis in range(1, array.ndim):
            other = np.swapaxes(array, 0, axis)
            if not np.array_equal(array, other):
                index = "".join(f"[{i}]" for i in np.argwhere(array != other)[0])
                raise InputError(
                    f"{source}: {key} is not symmetric at {index}: correct that entry or its mirror."
                )
    euler = 2 * (geometry.h12 - geometry.h11)
    if geometry.euler_characteristic != euler:
        found = geometry.euler_characteristic
        raise InputError(
            f"{source}: euler_characteristic is {found}, but 2 (h12 - h11) is {euler}: correct one."
        )
    if geometry.maximum_degree < 1:
        raise InputError(f"{source}: maximum_degree is {geometry.maximum_degree}, but must be at least 1.")
    for i in range(geometry.h12):
        _monodromy(geometry, i, source)
    for charge in geometry.gv_charges:
        if not cone.in_cone(geometry.walls.astype(np.float64), charge):
            q = charge.astype(int).tolist()
            raise InputError(
                f"{source}: the curve {q} of gv_charges has negative area inside the cone of "
                "kahler_cone_hyperplanes: correct its charge or the walls."
            )


def _monodromy(geometry: Geometry, i: int, source: str) -> NDArray[np.int64]:
    h, kappa, a_matrix = geometry.h12, geometry.kappa, geometry.a_matrix
    matrix = np.eye(2 * h + 2)
    matrix[h + 2 + i, h + 1] = 1.0
    matrix[0, 1 + i] = -1.0
    matrix[0, h + 1] = kappa[i, i, i] / 6 + geometry.c2[i] / 12
    matrix[0, h + 2 :] = a_matrix[i] + kappa[i, i] / 2
    matrix[1 : h + 1, h + 1] = a_matrix[i] - kappa[i, i] / 2
    matrix[1 : h + 1, h + 2 :] = -kappa[i]
    wrong = np.abs(matrix - np.rint(matrix)) > 1e-9
    if wrong[0, h + 1]:
        raise InputError(
            f"{source}: c2[{i}] = {geometry.c2[i]:g} does not fit intersection_numbers[{i}][{i}][{i}] = "
            f"{kappa[i, i, i]:g}: 2 kappa + c2 must be a multiple of 12; correct one of them."
        )
    if wrong.any():
        j = int(np.argwhere(wrong[1 : h + 1, h + 1] | wrong[0, h + 2 :])[0, 0])
        raise InputError(
            f"{source}: a_matrix[{i}][{j}] = {a_matrix[i, j]:g} does not fit "
            f"intersection_numbers[{i}][{i}][{j}] = {kappa[i, i, j]:g}: a - kappa / 2 must be an "
            "integer; correct one of them."
        )
    return np.rint(matrix).astype(np.int64)


def list_geometries() -> list[str]:
    """Names of the geometries shipped with MatForge, sorted."""
    folder = resources.files("matforge.vacua.geometries")
    return sorted(entry.name[: -len(".json")] for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_geometry(name_or_path: str | Path) -> Geometry:
    """Load a geometry by the name of a shipped one, or from a JSON file.

    Parameters
    ----------
    name_or_path
        One of `list_geometries`, or a path: whatever ends in ``.json`` or holds a path separator.

    Raises
    ------
    InputError
        If there is no such geometry (with the nearest names), or the file cannot be read or is inconsistent.

    Examples
    --------
    >>> load_geometry("octic").h12
    1
    """
    text = str(name_or_path)
    if isinstance(name_or_path, str) and not text.endswith(".json") and "/" not in text and "\\" not in text:
        if text not in list_geometries():
            raise InputError(f"there is no geometry {text!r}: {nearest(text, list_geometries())}")
        content = resources.files("matforge.vacua.geometries").joinpath(f"{text}.json").read_text("utf-8")
        return Geometry.from_dict(_parsed(content, f"{text}.json"), f"{text}.json")
    try:
        content = Path(name_or_path).read_text("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{text}: cannot be read ({error.strerror}): give the path of a geometry file."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{text}: is not text in UTF-8: give the path of a geometry file.") from error
    return Geometry.from_dict(_parsed(content, text), text)


def _parsed(content: str, source: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise InputError(f"{source}: the key {key!r} stands there twice: remove one.")
        return dict(pairs)

    try:
        return json.loads(content, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{source}: is not JSON (line {error.lineno}: {error.msg}): correct the file."
        ) from error
    except RecursionError as error:
        raise InputError(f"{source}: is nested too deeply for a geometry: correct the file.") from error
