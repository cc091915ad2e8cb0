"""The vault itself: designate, look up, retract, purge."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from matforge._version import __version__
from matforge.model import UsageError
from matforge.vulcan.frames import to_pandas
from matforge.vulcan.identity import GeometryId
from matforge.vulcan.vault import admission, catalogue, checks, intake, places
from matforge.vulcan.vault.catalogue import Catalogue, VaultDamagedError
from matforge.vulcan.vault.filters import Filters, rows_of

if TYPE_CHECKING:
    import pandas as pd

    from matforge.vacua.geometry import Geometry
    from matforge.vulcan.forge import Vulcan
    from matforge.vulcan.vault.session import SessionStore

DATA_DIRNAME = "data"
_AGE = re.compile(r"(\d+)\s*([dhw])")
_AGE_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


class Vault:
    """Curated vacua in a folder.

    Parameters
    ----------
    folder : path, optional
        Default: ``MATFORGE_VAULT``, or ``vacua_vault`` in a source checkout. Made by the first designation.
    clock : callable
        Unix time; tests give their own.

    Raises
    ------
    VaultNotFoundError
        If it is not known where the vault is.
    """

    def __init__(self, folder: str | Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self.folder = places.vault_dir(folder, os.environ)
        self._catalogue = Catalogue(self.folder)
        self._clock = clock

    def __repr__(self) -> str:
        return f"Vault({str(self.folder)!r})"

    # ------------------------------------------------------------ designate

    def designate(
        self,
        df: Any,
        label: str,
        committed_by: str,
        *,
        model: Geometry | str | None = None,
        identity: Mapping[str, Any] | None = None,
        tags: Iterable[str] = (),
        notes: str = "",
        validate: bool = True,
        force: bool = False,
        f_term_tol: float = checks.F_TERM_TOLERANCE,
        tadpole_limit: int | None = None,
        source_run_id: str | None = None,
    ) -> list[int]:
        """Put vacua into the vault, all or none.

        Parameters
        ----------
        df : DataFrame, Table or mapping of columns
            With ``flux, moduli_re, moduli_im, tau_re, tau_im``; ``is_susy`` says which rows need only be
            critical points of the potential, ``tags`` adds to the tags, other columns are kept.
        label : str
            Name of the set: letters, digits, ``-`` and ``_``.
        committed_by : str
            Who vouches for it.
        model : Geometry or str, optional
            The geometry, or name or file of one; needed to validate.
        identity : mapping, optional
            The geometry's keys, if there is no model.
        tags, notes : optional
        validate : bool
            Check F-terms, tadpole and cone. In any case rows must be sound: no NaN, whole flux quanta, none
            twice.
        force : bool
            Leave out the rows that fail instead of refusing all.
        f_term_tol, tadpole_limit : optional
            See :func:`matforge.vulcan.vault.checks.failures`.
        source_run_id : str, optional
            Where they come from.

        Returns
        -------
        list of int
            The number of each vacuum, in the order of the rows that were kept; never given twice.

        Raises
        ------
        ValidationError, BatchError
            With everything that is wrong, and the rows; nothing was designated.
        UsageError
            If another argument cannot be used.
        """
        places.check_label(label)
        committed_by = places.check_person(committed_by, "committed_by")
        common = places.check_tags(tags)
        geometry = intake.loaded(model)
        where = intake.identity_of(geometry, identity)
        checks.check_limits(f_term_tol, tadpole_limit)
        if validate and geometry is None:
            raise UsageError(
                "Without the geometry nothing can be checked: give model=, or validate=False to vouch for it."
            )
        frame, row_tags = intake.without_tags(df)
        kept, batch = intake.sound(frame, where, force)
        table = intake.checked_table(batch, source_run_id or "vault")
        # before the lock is taken, for it may take a while
        problems = (
            admission.unphysical(table, geometry, f_term_tol, tadpole_limit) if validate and geometry else []
        )
        with self._catalogue.lock() as lease:
            known = self._catalogue.read()
            problems += admission.repeated(known, table, geometry, where)
            good = admission.admitted(problems, table.num_rows, kept, force)
            chosen = [sorted({*common, *row_tags[kept[row]]}) if row_tags else common for row in good]
            entry = {
                "label": label, "committed_by": committed_by, "notes": notes, "validated": validate,
                "source_run_id": source_run_id,
            }  # fmt: skip
            lease.check()
            return self._add(known, table.take(pa.array(good)), where, chosen, entry)

    def _add(
        self,
        known: pa.Table,
        table: pa.Table,
        where: GeometryId,
        tags: list[list[str]],
        entry: Mapping[str, Any],
    ) -> list[int]:
        first = catalogue.next_id(known)
        ids = list(range(first, first + table.num_rows))
        file = f"{DATA_DIRNAME}/h12_{where.h12}/h11_{where.h11}/{where.id}/vacua-{first:08d}.parquet"
        catalogue.write_table(
            self.folder / file, table.add_column(0, "designated_id", pa.array(ids, pa.int64()))
        )
        flux, _, _ = intake.values_of(table)
        now = datetime.fromtimestamp(self._clock(), UTC)
        columns: dict[str, Any] = {
            **{name: table[name] for name in catalogue.SCHEMA.names if name in table.column_names},
            "designated_id": ids, "N_flux": checks.tadpoles(flux), "tags": tags, "commit_date": now,
            "file": file, "matforge_version": __version__, "retracted": False, **entry,
        }  # fmt: skip
        rows = pa.table(
            {
                field.name: intake.column(columns.get(field.name), field, len(ids))
                for field in catalogue.SCHEMA
            },
            schema=catalogue.SCHEMA,
        )
        whole = pa.concat_tables([known.replace_schema_metadata(None), rows])
        self._catalogue.replace(whole, ids[-1] + 1)
        return ids

    def promote(self, forge: Vulcan, run_id: str, label: str, committed_by: str, **options: Any) -> list[int]:
        """Designate the vacua of one write of a forge; options are those of :meth:`designate`.

        Raises
        ------
        FileNotFoundError
            If the forge has no such run.
        """
        from matforge.vulcan.reader import NoSuchRunError

        try:
            frame = forge.reader("synced").fetch_run(run_id)
        except NoSuchRunError:
            frame = forge.reader("local").fetch_run(run_id)
        if options.get("model") is None and "identity" not in options:
            options["identity"] = intake.identity_in(frame)
        frame = frame.dropna(axis="columns", how="all")
        return self.designate(frame, label, committed_by, source_run_id=run_id, **options)

    def deposit(
        self,
        df: Any,
        store: SessionStore,
        *,
        model: Geometry | str | None = None,
        identity: Mapping[str, Any] | None = None,
        designate: bool = False,
        label: str = "",
        committed_by: str = "",
        validate_before_designate: bool = True,
        tags: Iterable[str] = (),
    ) -> list[int]:
        """Keep the result of a search as a session and, if asked, designate it.

        Parameters
        ----------
        df, model, identity, label, committed_by, tags
            As for :meth:`designate`.
        store : SessionStore
        designate, validate_before_designate : bool

        Returns
        -------
        list of int
            Numbers of the designated vacua; none if they are only kept.
        """
        if designate:  # told before anything is written
            places.check_label(label)
            places.check_person(committed_by, "committed_by")
        tags = places.check_tags(tags)
        run_id = store.write(df, model=model, identity=identity, tags=tags)
        if not designate:
            return []
        return self.designate(
            df, label, committed_by, model=model, identity=identity, tags=tags,
            validate=validate_before_designate, source_run_id=run_id,
        )  # fmt: skip

    # ------------------------------------------------------------ look up

    def query(self, **filters: Any) -> pd.DataFrame:
        """Rows of the catalogue.

        Parameters
        ----------
        **filters
            Those of :class:`~matforge.vulcan.vault.filters.Filters`: ``ids, model, identity, label,
            committed_by, is_susy, n_flux_max, tags`` (all of them), ``include_retracted``, ``limit``.
        """
        return to_pandas(self._chosen(Filters(**filters)))

    def load(self, **filters: Any) -> pd.DataFrame:
        """The vacua with all their columns and the catalogue's; filters are those of :meth:`query`."""
        chosen = self._chosen(Filters(**filters))
        parts = [self._data(file, chosen) for file in sorted(set(chosen["file"].to_pylist()))]
        if not parts:
            return to_pandas(chosen)
        data = pa.concat_tables(parts, promote_options="permissive").sort_by("designated_id")
        chosen = chosen.sort_by("designated_id")
        for name in chosen.column_names:
            if name not in data.column_names:
                data = data.append_column(chosen.schema.field(name), chosen[name].combine_chunks())
        return to_pandas(data)

    def load_local_vacua(
        self, model: Any = None, label: str | None = None, include_retracted: bool = False
    ) -> pd.DataFrame:
        """All curated vacua of a geometry, or of a label, with flux, moduli and tau."""
        return self.load(model=model, label=label, include_retracted=include_retracted)

    def _chosen(self, filters: Filters) -> pa.Table:
        return rows_of(self._catalogue.read().replace_schema_metadata(None), filters)

    def _data(self, file: str, chosen: pa.Table) -> pa.Table:
        path = self.folder / file
        try:
            table = pq.read_table(path, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise VaultDamagedError(f"{path} cannot be read: {error}") from error
        wanted = chosen.filter(pc.equal(chosen["file"], file))["designated_id"]
        found = table.filter(pc.is_in(table["designated_id"], wanted.combine_chunks()))
        if found.num_rows != len(wanted):
            raise VaultDamagedError(f"{path} lacks vacua that the catalogue lists.")
        return found

    # ------------------------------------------------------------ retract, purge

    def retract(self, ids: int | Sequence[int], reason: str, by: str) -> None:
        """Take vacua back: they stay on record, and no query gives them unless asked.

        Raises
        ------
        UsageError
            If there is no reason, nobody says so, or it is not said of which.
        KeyError
            If there is no such vacuum.
        """
        if not isinstance(reason, str) or not reason.strip():
            raise UsageError("A retraction needs a reason.")
        by = places.check_person(by, "by")
        wanted = set(places.check_ids(ids))
        if not wanted:
            raise UsageError("Which vacua? Give their numbers.")
        now = datetime.fromtimestamp(self._clock(), UTC)
        with self._catalogue.lock() as lease:
            known = self._catalogue.read()
            missing = wanted - set(known["designated_id"].to_pylist())
            if missing:
                raise NoSuchVacuumError(
                    f"There is no vacuum {', '.join(map(str, sorted(missing)))} in {self}."
                )
            hit = pc.is_in(known["designated_id"], pa.array(sorted(wanted), pa.int64()))
            changes = {"retracted": True, "retracted_by": by, "retracted_at": now, "reason": reason}
            table = known
            for name, value in changes.items():
                field = catalogue.SCHEMA.field(name)
                new = pc.if_else(hit, pa.scalar(value, field.type), known[name])
                table = table.set_column(table.column_names.index(name), field, new)
            audit = [{"designated_id": i, "reason": reason, "by": by, "at": now} for i in sorted(wanted)]
            lease.check()
            self._catalogue.note(pa.Table.from_pylist(audit, schema=catalogue.RETRACTIONS))
            self._catalogue.replace(table, catalogue.next_id(known))

    def retractions(self) -> pd.DataFrame:
        """Every retraction there ever was, those of purged vacua too."""
        return to_pandas(self._catalogue.retractions())

    def purge(
        self,
        older_than: str = "30d",
        *,
        dry_run: bool = True,
        confirm: bool = False,
        archive: str | Path | None = None,
    ) -> list[int]:
        """Remove retracted vacua for good.

        Parameters
        ----------
        older_than : str
            Only those retracted that long ago: ``12h``, ``30d``, ``4w``.
        dry_run, confirm : bool
            Nothing is removed unless ``dry_run=False`` and ``confirm=True``.
        archive : path, optional
            A new parquet file that is to hold what is removed.

        Returns
        -------
        list of int
            Their numbers; they are not given again.

        Raises
        ------
        UsageError
            If ``older_than`` is no length of time, or ``archive`` is there: an earlier one is not replaced.
        """
        match = _AGE.fullmatch(older_than) if isinstance(older_than, str) else None
        if match is None:
            raise UsageError(f"older_than is a length of time such as 12h, 30d or 4w, not {older_than!r}.")
        age = timedelta(**{_AGE_UNITS[match[2]]: int(match[1])})
        edge = datetime.fromtimestamp(self._clock(), UTC) - age
        with self._catalogue.lock() as lease:
            known = self._catalogue.read()
            old = pc.less_equal(known["retracted_at"], pa.scalar(edge, pa.timestamp("us", tz="UTC")))
            gone = pc.fill_null(pc.and_kleene(known["retracted"], old), False)
            leaving = known.filter(gone)
            ids = sorted(leaving["designated_id"].to_pylist())
            if dry_run or not confirm or not ids:
                return ids
            if archive is not None:
                if os.path.lexists(archive):
                    raise UsageError(
                        f"{archive} is there already; archive to a new file. Nothing was removed."
                    )
                catalogue.write_table(Path(archive), self._removed(leaving))
            lease.check()
            self._remove(known, gone)
            return ids

    def _removed(self, leaving: pa.Table) -> pa.Table:
        files = sorted(set(leaving["file"].to_pylist()))
        return pa.concat_tables([self._data(f, leaving) for f in files], promote_options="permissive")

    def _remove(self, known: pa.Table, gone: pa.ChunkedArray) -> None:
        # first files with what stays, then the catalogue, then the old files: killed anywhere, all is whole
        staying = known.filter(pc.invert(gone))
        touched = sorted(set(known.filter(gone)["file"].to_pylist()))
        renamed = {}
        for file in touched:
            rest = staying.filter(pc.equal(staying["file"], file))
            if rest.num_rows:
                renamed[file] = f"{file.removesuffix('.parquet')}-{secrets.token_hex(4)}.parquet"
                catalogue.write_table(self.folder / renamed[file], self._data(file, staying))
        files = [renamed.get(file, file) for file in staying["file"].to_pylist()]
        index = staying.column_names.index("file")
        table = staying.set_column(index, catalogue.SCHEMA.field("file"), pa.array(files, pa.string()))
        self._catalogue.replace(table, catalogue.next_id(known))
        for file in touched:
            (self.folder / file).unlink(missing_ok=True)

    def problems(self) -> list[str]:
        """What is wrong with the files, one sentence each."""
        known = self._catalogue.read()
        listed = set(known["file"].to_pylist())
        there = {str(p.relative_to(self.folder)) for p in (self.folder / DATA_DIRNAME).rglob("*.parquet")}
        found = [f"{file} is missing." for file in sorted(listed - there)]
        return found + [f"{file} is not in the catalogue." for file in sorted(there - listed)]


class NoSuchVacuumError(UsageError, KeyError):
    """There is no vacuum of that number."""

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0])
