"""What one asks of the catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from matforge.model import UsageError
from matforge.vulcan.identity import GEOMETRY_KEYS, HASH_KEY, GeometryId
from matforge.vulcan.vault import places


@dataclass(frozen=True)
class Filters:
    """Which vacua; what is None does not matter.

    Attributes
    ----------
    ids : iterable of int
    model : Geometry or str
        The geometry, or name or file of one.
    identity : mapping
        Of the geometry's keys those that matter.
    label, committed_by : str
    is_susy : bool
    n_flux_max : int
    tags : iterable of str
        All of them.
    include_retracted : bool
    limit : int
    """

    ids: Iterable[int] | int | None = None
    model: Any = None
    identity: Mapping[str, Any] | None = None
    label: str | None = None
    committed_by: str | None = None
    is_susy: bool | None = None
    n_flux_max: int | None = None
    tags: Iterable[str] | str | None = None
    include_retracted: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        for name, kinds, what in _KINDS:
            value = getattr(self, name)
            fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
            if value is not None and not fits:
                raise UsageError(f"{name} is {what}, not {value!r}.")
        if self.limit is not None and self.limit < 0:
            raise UsageError(f"limit must be at least 0, not {self.limit}.")


_KINDS: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("identity", (Mapping,), "a mapping of the geometry's keys"),
    ("label", (str,), "text"),
    ("committed_by", (str,), "text"),
    ("is_susy", (bool,), "True or False"),
    ("include_retracted", (bool,), "True or False"),
    ("n_flux_max", (Integral,), "a whole number"),
    ("limit", (Integral,), "a whole number"),
)


def rows_of(table: pa.Table, filters: Filters) -> pa.Table:
    """The rows of the catalogue that meet all conditions, in the order of their numbers."""
    keep: list[Any] = []
    if not filters.include_retracted:
        keep.append(pc.invert(table["retracted"]))
    if filters.ids is not None:
        wanted = pa.array(places.check_ids(filters.ids), pa.int64())
        keep.append(pc.is_in(table["designated_id"], wanted))
    for name in ("label", "committed_by", "is_susy"):
        value = getattr(filters, name)
        if value is not None:
            keep.append(pc.equal(table[name], value))
    if filters.n_flux_max is not None:
        keep.append(pc.less_equal(table["N_flux"], filters.n_flux_max))
    keep += _geometry(table, filters)
    tags = set(places.check_tags(filters.tags))
    if tags:
        keep.append(pa.array([tags <= set(row) for row in table["tags"].to_pylist()], pa.bool_()))
    every = pa.array([True] * table.num_rows, pa.bool_())
    for mask in keep:
        every = pc.and_(every, pc.fill_null(mask, False))
    table = table.filter(every)
    table = table.sort_by("designated_id")
    return table if filters.limit is None else table.slice(0, filters.limit)


def _geometry(table: pa.Table, filters: Filters) -> list[Any]:
    """Conditions on the geometry: all of it from a model, single keys from an identity."""
    keep: list[Any] = []
    if filters.model is not None:
        from matforge.vulcan.vault.intake import loaded

        keep.append(pc.equal(table["geometry_id"], GeometryId.of(loaded(filters.model)).id))
    for key, value in (filters.identity or {}).items():
        if key not in (*GEOMETRY_KEYS, HASH_KEY):
            raise UsageError(
                f"A geometry has no key {key!r}; known are {', '.join((*GEOMETRY_KEYS, HASH_KEY))}."
            )
        keep.append(pc.equal(table[key], value))
    return keep
