"""Reading back: a catalogue of what there is, and queries that open only what they need."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from matforge.model import MatForgeError, UsageError
from matforge.vulcan import filters as conditions
from matforge.vulcan import rows, schema
from matforge.vulcan.catalog import PUBLIC
from matforge.vulcan.frames import to_pandas
from matforge.vulcan.rows import File, Request
from matforge.vulcan.sources import HubSource, LocalSource, Source

if TYPE_CHECKING:
    import pandas as pd

CACHED_SHARDS = 32


class SchemaVersionError(MatForgeError, ValueError):
    """A shard was written by another version of the schema."""


class NoSuchRunError(UsageError, FileNotFoundError):
    """There is no shard of that name."""


class VulcanReader:
    """Reads shards; make one with :meth:`from_local` or :meth:`from_hf`.

    Parameters
    ----------
    source : Source
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._shards: OrderedDict[str, pa.Table] = OrderedDict()

    @classmethod
    def from_local(cls, staging_dir: str | Path, *, source: str = "synced") -> VulcanReader:
        """A reader of a staging folder.

        Parameters
        ----------
        source : str
            ``synced`` (published shards), ``pending``, or ``local`` (all that are not rejected).
        """
        return cls(LocalSource(Path(staging_dir).absolute(), source))

    @classmethod
    def from_hf(
        cls, repo: str, revision: str | None = None, token: str | None = None, *, endpoint: str | None = None
    ) -> VulcanReader:
        """A reader of a repository on the Hub; nothing is downloaded but what a query needs."""
        from matforge.vulcan.settings import check_repo

        return cls(HubSource(check_repo(repo), revision, token, endpoint))

    def __repr__(self) -> str:
        return f"VulcanReader({self.source!r})"

    # -- catalogue -------------------------------------------------------------------------------

    def catalog(self, *, refresh: bool = False, strict: bool = False) -> pd.DataFrame:
        """One row for each shard; no rows of any shard are read.

        Parameters
        ----------
        refresh : bool
            Look at every shard again.
        strict : bool
            Raise if a shard is of another version of the schema.

        Returns
        -------
        DataFrame
            ``path_in_repo, run_id, geometry_id``, the geometry's keys, ``n_rows, schema_version``;
            ``attrs["n_skipped"]`` counts files that cannot be used, of which a warning tells.

        Raises
        ------
        SchemaVersionError
            See ``strict``.
        """
        frame = to_pandas(self._entries(refresh=refresh, strict=strict))
        # a shard whose rows were distributed over several splits has an entry for each
        keys = [name for name in PUBLIC if name != "n_rows"]
        if frame["path_in_repo"].duplicated().any():
            frame = frame.groupby(keys, as_index=False, dropna=False, sort=False)["n_rows"].sum()
        frame = frame[list(PUBLIC)].reset_index(drop=True)
        frame.attrs["n_skipped"] = len(self.source.skipped)
        return frame

    def _entries(self, *, refresh: bool = False, strict: bool = False) -> pa.Table:
        entries = self.source.entries(refresh=refresh)
        for name, reason in self.source.skipped.items():
            warnings.warn(f"{name} is left out: {reason}", RuntimeWarning, stacklevel=3)
        if strict:
            other = pc.not_equal(entries["schema_version"], schema.SCHEMA_VERSION)
            if pc.any(other).as_py():
                row = entries.filter(other).slice(0, 1).to_pylist()[0]
                raise SchemaVersionError(
                    f"The shard {row['run_id']} has schema version {row['schema_version']!r}, "
                    f"not {schema.SCHEMA_VERSION!r}."
                )
        return entries

    # -- rows ------------------------------------------------------------------------------------

    def query(
        self,
        *,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
        **filters: Any,
    ) -> pd.DataFrame:
        """The vacua that meet all conditions.

        Parameters
        ----------
        columns : sequence of str, optional
            Which to read, in this order; by default all.
        where : pyarrow.compute.Expression, optional
            Any condition on the schema's columns, for instance ``pc.field("tau_im") > 2``.
        **filters
            ``name=value`` for any column that is no list: equal; a list means any of these, a tuple
            ``(low, high)`` between, None no condition. Those on run and geometry decide which files are
            opened.

        Returns
        -------
        DataFrame
            All columns with their types even if no row is found. Integer and truth columns in which values
            may be missing have pandas' nullable types.

        Raises
        ------
        TypeError, KeyError, UsageError
            If there is no such filter, no such column, or a value does not fit its column.
        """
        return to_pandas(self.table(columns=columns, where=where, **filters))

    def table(
        self,
        *,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
        **filters: Any,
    ) -> pa.Table:
        """What :meth:`query` returns, as an Arrow table."""
        files, request = self.plan(filters, columns, where)
        return rows.read(files, request, self.source.filesystem)

    def plan(
        self,
        filters: Mapping[str, Any],
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
        *,
        split: str | None = None,
    ) -> tuple[list[File], Request]:
        """What a query would open and read; see :meth:`query`.

        Parameters
        ----------
        split : str, optional
            Only files that were published as this split.
        """
        if where is not None and not isinstance(where, pc.Expression):
            raise UsageError(
                f"where is a pyarrow.compute expression such as pc.field('tau_im') > 2, not {where!r}."
            )
        request = Request(_columns(columns), conditions.both(conditions.expression(filters), where))
        entries = self._entries()
        self.source.check_own(request.own)
        chosen = conditions.expression(filters, conditions.SHARD_FILTERS)
        if split is not None:
            chosen = conditions.both(chosen, pc.field("split") == split)
        return self.source.files(entries if chosen is None else entries.filter(chosen)), request

    def in_splits(self) -> bool:
        """Whether every file was published as part of a split."""
        return bool(self._entries()["split"].null_count == 0)

    def geometries(self, filters: Mapping[str, Any]) -> list[str]:
        """Ids of the geometries that have shards meeting these conditions, sorted."""
        entries, chosen = self._entries(), conditions.expression(filters, conditions.SHARD_FILTERS)
        found = entries if chosen is None else entries.filter(chosen)
        return sorted(found["geometry_id"].unique().to_pylist())

    def read_columns(self, columns: Sequence[str], **filters: Any) -> pd.DataFrame:
        """Some columns of all vacua that meet the conditions."""
        return self.query(columns=columns, **filters)

    def fetch_run(self, run_id: str) -> pd.DataFrame:
        """The vacua of one write.

        Raises
        ------
        FileNotFoundError
            If there is no such run.
        """
        return to_pandas(self._fetch("run_id", run_id))

    def fetch_shard(self, path_in_repo: str) -> pd.DataFrame:
        """The vacua of one shard, by its path in the repository.

        Raises
        ------
        FileNotFoundError
            If there is no such shard.
        """
        return to_pandas(self._fetch("path_in_repo", path_in_repo))

    def _fetch(self, name: str, value: str) -> pa.Table:
        if not isinstance(value, str):
            raise UsageError(f"{name} is text, not {value!r}.")
        entries = self._entries()
        chosen = entries.filter(pc.equal(entries[name], value))
        if not chosen.num_rows:
            raise NoSuchRunError(f"There is no shard with {name} {value!r} in {self.source!r}.")
        key = "\n".join(chosen["sha256"].to_pylist())
        if key in self._shards and key.strip():
            self._shards.move_to_end(key)
            return self._shards[key]  # an Arrow table cannot be changed, so everybody may have the same
        runs = pc.field("run_id").isin(chosen["run_id"].combine_chunks())
        table = rows.read(self.source.files(chosen), Request(None, runs), self.source.filesystem)
        self._shards[key] = table
        while len(self._shards) > CACHED_SHARDS:
            self._shards.popitem(last=False)
        return table


def _columns(columns: Sequence[str] | None) -> tuple[str, ...] | None:
    if columns is None:
        return None
    found = () if isinstance(columns, str) else tuple(columns)
    if not found or not all(isinstance(name, str) for name in found) or len(set(found)) != len(found):
        raise UsageError(f"columns is a list of different names of columns, not {columns!r}.")
    return found
