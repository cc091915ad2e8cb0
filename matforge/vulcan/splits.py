"""Which split a row belongs to: a hash, so the same on every machine and in every version.

A geometry's place in [0, 1) is the first 8 bytes of SHA-256(salt + geometry_id) as a big-endian
number over 2^64; the splits are consecutive intervals. All vacua of one geometry then lie in one
split, and nothing learned about it leaks into the test. For a set of a single geometry ``by="row"``
hashes salt + geometry_id + ":" + flux vector instead (its entries in decimal, with commas between):
the vacua of one flux vector stay together, since they are near copies.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from matforge.model import UsageError

FRACTIONS = (0.8, 0.1, 0.1)
NAMES = ("train", "val", "test")
UNITS = ("geometry", "row")


@dataclass(frozen=True)
class SplitSpec:
    """How a data set is split.

    Parameters
    ----------
    fractions : sequence of float
        One for each split, at least 0, with sum 1.
    names : sequence of str
    salt : str
        Another salt gives another, independent assignment.
    by : str
        What stays together: ``geometry``, or ``row`` (the vacua of one flux vector).

    Raises
    ------
    UsageError
        If these do not describe a split.
    """

    fractions: tuple[float, ...] = FRACTIONS
    names: tuple[str, ...] = NAMES
    salt: str = ""
    by: str = "geometry"

    def __post_init__(self) -> None:
        object.__setattr__(self, "fractions", _fractions(self.fractions))
        object.__setattr__(self, "names", _names(self.names))
        if len(self.fractions) != len(self.names):
            raise UsageError(
                f"There are {len(self.fractions)} fractions for {len(self.names)} splits "
                f"({', '.join(self.names)}); give one each."
            )
        if not isinstance(self.salt, str):
            raise UsageError(f"The salt of the splits must be text, not {self.salt!r}.")
        if self.by not in UNITS:
            raise UsageError(f"Splits are by {' or by '.join(UNITS)}, not by {self.by!r}.")

    def of_geometry(self, geometry_id: str) -> str:
        """The split of a geometry, if geometries stay together."""
        return self._at(_place(self.salt + geometry_id))

    def assign(
        self, geometry_ids: Iterable[str], flux: pa.Array | pa.ChunkedArray | None = None
    ) -> list[str]:
        """The split of each row.

        Parameters
        ----------
        geometry_ids : iterable of str
            One a row.
        flux : list array, optional
            The flux vectors; needed for ``by="row"`` only.
        """
        ids = list(geometry_ids)
        if self.by == "geometry":
            known = {name: self.of_geometry(name) for name in set(ids)}
            return [known[name] for name in ids]
        if flux is None:
            raise UsageError("Splits by row need the column 'flux'.")
        known = {}
        found = []
        for name, text in zip(ids, _texts(flux), strict=True):
            key = f"{self.salt}{name}:{text}"
            if key not in known:
                known[key] = self._at(_place(key))
            found.append(known[key])
        return found

    def mask(self, table: pa.Table, split: str) -> NDArray[np.bool_]:
        """Which rows of a table with ``geometry_id`` (and ``flux``) belong to ``split``, (rows,)."""
        flux = table.column("flux") if self.by == "row" else None
        return np.array(
            [name == split for name in self.assign(table.column("geometry_id").to_pylist(), flux)], bool
        )

    def check(self, split: str) -> str:
        """``split``, if there is one of that name.

        Raises
        ------
        UsageError
            If there is not.
        """
        if split not in self.names:
            raise UsageError(f"There is no split {split!r}; known are {', '.join(self.names)}.")
        return split

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, as frozen in a repository."""
        return {
            "fractions": list(self.fractions),
            "names": list(self.names),
            "salt": self.salt,
            "by": self.by,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SplitSpec:
        """Inverse of :meth:`as_dict`; keys of later versions are ignored."""
        return cls(**{key: data[key] for key in ("fractions", "names", "salt", "by") if key in data})

    def _at(self, place: float) -> str:
        edge = 0.0
        last = self.names[0]
        for name, fraction in zip(self.names, self.fractions, strict=True):
            edge += fraction
            if fraction > 0:
                last = name
            if place < edge:
                return name
        return last  # the fractions add up to a little less than 1


def _place(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _texts(flux: pa.Array | pa.ChunkedArray) -> list[str]:
    return [",".join(map(str, row)) for row in flux.to_pylist()]


def _fractions(values: Sequence[float]) -> tuple[float, ...]:
    try:
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise UsageError(f"The fractions of the splits must be numbers, not {values!r}.") from None
    if not found or not all(math.isfinite(f) and f >= 0 for f in found) or abs(sum(found) - 1) > 1e-9:
        raise UsageError(f"The fractions of the splits must be at least 0 and add up to 1, not {values!r}.")
    return found


def _names(values: Sequence[str]) -> tuple[str, ...]:
    found = () if isinstance(values, str) else tuple(values)
    good = all(isinstance(name, str) and name.isidentifier() for name in found)
    if not found or not good or len(set(found)) != len(found):
        raise UsageError(
            f"The names of the splits must be different words, such as {NAMES!r}, not {values!r}."
        )
    return found
