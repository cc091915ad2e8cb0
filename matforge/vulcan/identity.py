"""Which geometry a vacuum belongs to: six integers, or a hash of the topological data.

The id of a geometry is the first 16 hex digits of the SHA-1 of the compact, sorted JSON object of
the six keys, missing ones being -1, so 0 is a value of its own. A geometry that stands in no list
(no Kreuzer-Skarke, CICY or conifold number) but whose topological data are hashed gets that hash
into the object as a seventh key: two of the same Hodge numbers are then two geometries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any

from matforge.model import UsageError

GEOMETRY_KEYS = ("h11", "h12", "ks_id", "triang_id", "cicy_id", "conifold_id")
HASH_KEY = "geometry_hash"
MISSING = -1
"""Stands for a key that a geometry does not have."""
_LISTED = ("ks_id", "cicy_id", "conifold_id")
"""Numbers that name one geometry (with a triangulation, for the first) in a published list."""
_MAX = 2**31 - 1


@dataclass(frozen=True)
class GeometryId:
    """The checked keys of one geometry.

    Build it with :meth:`of`.
    """

    h11: int = MISSING
    h12: int = MISSING
    ks_id: int = MISSING
    triang_id: int = MISSING
    cicy_id: int = MISSING
    conifold_id: int = MISSING
    geometry_hash: str | None = None
    """Hash of the topological data, hexadecimal."""

    @classmethod
    def of(cls, geometry: Any) -> GeometryId:
        """The keys of a mapping, or of an object with such attributes (``matforge.vacua.Geometry``).

        Parameters
        ----------
        geometry : mapping or object
            Of the keys in :data:`GEOMETRY_KEYS` and ``geometry_hash`` any; None and -1 mean missing. From
            an object, ``hash`` is the hash, and names that are no numbers are left out.

        Raises
        ------
        UsageError
            If a key is unknown, a value is no whole number of at least 0, or nothing is given at all.
        """
        if isinstance(geometry, GeometryId):
            return geometry
        given = dict(geometry) if isinstance(geometry, Mapping) else _attributes(geometry)
        unknown = [repr(key) for key in given if key not in (*GEOMETRY_KEYS, HASH_KEY)]
        if unknown:
            raise UsageError(
                f"A geometry has no key {' or '.join(unknown)}; known are "
                f"{', '.join((*GEOMETRY_KEYS, HASH_KEY))}."
            )
        keys = {key: _number(key, given.get(key)) for key in GEOMETRY_KEYS}
        digest = _digest(given.get(HASH_KEY))
        if digest is None and all(value == MISSING for value in keys.values()):
            raise UsageError("A geometry needs at least one of its keys, for example h11 and h12.")
        return cls(**keys, geometry_hash=digest)

    @property
    def keys(self) -> dict[str, int]:
        """The six integers, in the order of :data:`GEOMETRY_KEYS`."""
        return {key: getattr(self, key) for key in GEOMETRY_KEYS}

    @property
    def known(self) -> dict[str, int]:
        """Those of the six that are not missing."""
        return {key: value for key, value in self.keys.items() if value != MISSING}

    @cached_property
    def id(self) -> str:
        """The id, 16 hex digits."""
        data: dict[str, Any] = self.keys
        if self.geometry_hash and all(data[key] == MISSING for key in _LISTED):
            data[HASH_KEY] = self.geometry_hash
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`of` takes it back."""
        return {**self.keys, **({HASH_KEY: self.geometry_hash} if self.geometry_hash else {})}


def bucket(geometry_id: str) -> int:
    """One of 16 folders: the low 4 bits of the first byte of the SHA-1 of the id."""
    return hashlib.sha1(geometry_id.encode("ascii"), usedforsecurity=False).digest()[0] & 0x0F


def _attributes(geometry: Any) -> dict[str, Any]:
    if not (hasattr(geometry, "h11") and hasattr(geometry, "h12")):
        raise UsageError(
            f"A geometry is a mapping such as {{'h11': 3, 'h12': 2}}, or an object with these as attributes, "
            f"not {type(geometry).__name__}."
        )
    given = {key: getattr(geometry, key, None) for key in GEOMETRY_KEYS}
    # a geometry file may name its source in words; such a name is no number of a list
    given = {
        key: None if isinstance(value, str) and not value.isdecimal() else value
        for key, value in given.items()
    }
    given = {key: int(value) if isinstance(value, str) else value for key, value in given.items()}
    return {**given, HASH_KEY: getattr(geometry, "hash", None)}


def _number(key: str, value: Any) -> int:
    if value is None:
        return MISSING
    if type(value) is int and MISSING <= value <= _MAX:
        return value
    whole = isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())
    if not whole or isinstance(value, bool) or not MISSING <= value <= _MAX:
        raise UsageError(
            f"The geometry's {key} must be a whole number from 0 to {_MAX} (or None where there is none), "
            f"not {value!r}."
        )
    return int(value)


def _digest(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not 16 <= len(value) <= 128 or set(value) - set("0123456789abcdef"):
        raise UsageError(f"geometry_hash must be 16 to 128 hexadecimal digits, not {value!r}.")
    return value
