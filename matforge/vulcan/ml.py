"""Fixed splits for training, the same on every machine, and the rows of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from matforge.model import UsageError
from matforge.vulcan import rows
from matforge.vulcan.features import FeatureSpec
from matforge.vulcan.frames import to_pandas
from matforge.vulcan.reader import VulcanReader
from matforge.vulcan.rows import File, Request
from matforge.vulcan.splits import SplitSpec

if TYPE_CHECKING:
    import pandas as pd

_KEYS = ("geometry_id", "flux")
"""What decides the split of a row."""


@dataclass(frozen=True)
class Plan:
    """The rows of one split, not yet read."""

    files: list[File]
    request: Request
    filesystem: Any
    split: str
    by_row: SplitSpec | None
    """Set if rows have still to be picked, by their flux vectors."""
    features: FeatureSpec | None

    def finish(self, table: pa.Table) -> pa.Table:
        """Pick and shape what was read."""
        if self.by_row is not None:
            table = table.filter(pa.array(self.by_row.mask(table, self.split)))
        return table if self.features is None else self.features.apply(table)


class VulcanMLView:
    """A data set cut into fixed splits.

    Parameters
    ----------
    reader : VulcanReader
    fractions, splits, salt, by : optional
        See :class:`~matforge.vulcan.splits.SplitSpec`; ``splits`` are the names. What is not given is as
        frozen in the repository, if that is what is read, else as in ``spec``.
    feature_spec : FeatureSpec, optional
        Of all methods that are not given another.
    spec : SplitSpec, optional
        Default of the first four.

    Raises
    ------
    UsageError
        If these do not describe a split.
    """

    def __init__(
        self,
        reader: VulcanReader,
        *,
        fractions: Sequence[float] | None = None,
        splits: Sequence[str] | None = None,
        salt: str | None = None,
        by: str | None = None,
        feature_spec: FeatureSpec | None = None,
        spec: SplitSpec | None = None,
    ) -> None:
        self.reader = reader
        self.feature_spec = feature_spec
        self._frozen = reader.source.splits()
        given = {"fractions": fractions, "names": splits, "salt": salt, "by": by}
        base = (self._frozen or spec or SplitSpec()).as_dict()
        self.spec = SplitSpec(**{**base, **{key: value for key, value in given.items() if value is not None}})

    def __repr__(self) -> str:
        return f"VulcanMLView({self.reader!r}, {self.spec!r})"

    def split_assignments(self) -> pd.DataFrame:
        """A table (geometry_id, split); by row, with every split that a geometry has rows in."""
        if self.spec.by == "geometry":
            ids = self.reader.geometries({})
            pairs = [(name, self.spec.of_geometry(name)) for name in ids]
        else:
            table = self.reader.table(columns=_KEYS)
            ids = table["geometry_id"].to_pylist()
            pairs = sorted(set(zip(ids, self.spec.assign(ids, table["flux"]), strict=True)))
        kind = pa.schema([("geometry_id", pa.string()), ("split", pa.string())])
        columns = [[pair[0] for pair in pairs], [pair[1] for pair in pairs]]
        return to_pandas(pa.Table.from_arrays([pa.array(c, pa.string()) for c in columns], schema=kind))

    def as_dataframe(
        self,
        split: str,
        feature_spec: FeatureSpec | None = None,
        query_filters: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """The rows of a split as a data frame; see :meth:`as_arrow`."""
        return to_pandas(self.as_arrow(split, feature_spec, query_filters))

    def as_arrow(
        self,
        split: str,
        feature_spec: FeatureSpec | None = None,
        query_filters: Mapping[str, Any] | None = None,
    ) -> pa.Table:
        """The rows of a split.

        Parameters
        ----------
        split : str
        feature_spec : FeatureSpec, optional
            Default: that of the view; without any, all columns as they are.
        query_filters : mapping, optional
            Further conditions, as in :meth:`VulcanReader.query` (``where`` too, but not ``columns``).

        Returns
        -------
        Table
            With all columns and types, even if it has no rows.

        Raises
        ------
        ValueError, KeyError, UsageError
            If there is no such split, feature or filter.
        """
        plan = self.plan(split, feature_spec, query_filters)
        return plan.finish(rows.read(plan.files, plan.request, plan.filesystem))

    def as_hf_dataset(
        self,
        split: str,
        feature_spec: FeatureSpec | None = None,
        query_filters: Mapping[str, Any] | None = None,
        *,
        streaming: bool = True,
    ) -> Any:
        """The rows of a split for ``datasets``; see :mod:`matforge.vulcan.hf`.

        Returns
        -------
        datasets.IterableDataset
            Reading as it goes; with ``streaming=False`` a ``datasets.Dataset`` in memory.

        Raises
        ------
        ImportError
            If ``datasets`` is not installed.
        """
        from matforge.vulcan import hf

        if not streaming:
            return hf.in_memory(self.as_arrow(split, feature_spec, query_filters))
        return hf.streaming(self.plan(split, feature_spec, query_filters))

    def plan(
        self,
        split: str,
        feature_spec: FeatureSpec | None = None,
        query_filters: Mapping[str, Any] | None = None,
    ) -> Plan:
        """What would be read for a split; see :meth:`as_arrow`."""
        self.spec.check(split)
        features = feature_spec or self.feature_spec
        if features is not None and not isinstance(features, FeatureSpec):
            raise UsageError(f"feature_spec is a FeatureSpec([...]), not {features!r}.")
        filters = dict(query_filters or {})
        if "columns" in filters:
            raise UsageError("Columns are chosen with a FeatureSpec, not in query_filters.")
        where = filters.pop("where", None)
        needed = None if features is None else features.columns
        published = split if self.spec == self._frozen and self.reader.in_splits() else None
        by_row = self.spec if self.spec.by == "row" and published is None else None
        if by_row is not None and needed is not None:
            needed = tuple(dict.fromkeys([*needed, *_KEYS]))
        if self.spec.by == "geometry":
            ids = [name for name in self.reader.geometries(filters) if self.spec.of_geometry(name) == split]
            filters["geometry_id"] = ids
        files, request = self.reader.plan(filters, needed, where, split=published)
        return Plan(files, request, self.reader.source.filesystem, split, by_row, features)
