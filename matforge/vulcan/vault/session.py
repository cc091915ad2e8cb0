"""Sessions: batches of vacua as they were found, one file each, nothing vouched for.

There is no catalogue to keep in step: every file says in its footer what it is, so any number of
processes may write at once.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from matforge.model import UsageError
from matforge.vulcan import runid
from matforge.vulcan.frames import to_pandas
from matforge.vulcan.identity import GeometryId
from matforge.vulcan.vault import intake, places
from matforge.vulcan.vault.catalogue import VaultDamagedError, write_table
from matforge.vulcan.vault.checks import SAME

if TYPE_CHECKING:
    import pandas as pd

RUN_KEY = b"matforge.session"
DEFAULT_TEMPLATE = "{date}_session"


class SessionStore:
    """The sessions in a folder.

    Parameters
    ----------
    folder : path, optional
        Default: ``MATFORGE_SESSION_DIR``, or the user's data folder. Made by the first write.
    clock : callable
        Unix time; tests give their own.
    """

    def __init__(self, folder: str | Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self.folder = places.session_dir(folder, os.environ)
        self._clock = clock

    def __repr__(self) -> str:
        return f"SessionStore({str(self.folder)!r})"

    # ------------------------------------------------------------ write

    def write(
        self,
        df: Any,
        *,
        model: Any = None,
        identity: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        tags: Iterable[str] = (),
        notes: str = "",
    ) -> str:
        """Keep a batch; its run id.

        Parameters
        ----------
        df : DataFrame, Table or mapping of columns
            With ``flux, moduli_re, moduli_im, tau_re, tau_im``.
        model, identity : optional
            The geometry, or its keys; one of them is needed.
        run_id : str, optional
            Default: a new one from the time. A run may be written to several times.
        tags, notes : optional

        Raises
        ------
        BatchError
            With everything that is wrong with the batch, and the rows.
        UsageError
            If another argument cannot be used.
        """
        where = intake.identity_of(intake.loaded(model), identity)
        if run_id is None:
            run_id = runid.unique(runid.render(DEFAULT_TEMPLATE, {}, self._now()))
        runid.check_run_id(run_id)
        frame, row_tags = intake.without_tags(df)
        _, batch = intake.sound(frame, where, force=False)
        table = intake.checked_table(batch, run_id)
        known = places.check_tags(tags)
        tagged = [sorted({*known, *more}) for more in row_tags] if row_tags else [known] * table.num_rows
        table = table.append_column("tags", pa.array(tagged, pa.list_(pa.string())))
        about = {
            "run_id": run_id, "geometry": where.as_dict(), "rows": table.num_rows, "notes": notes,
            "tags": known, "at": self._clock(),
        }  # fmt: skip
        name = f"{run_id}-{secrets.token_hex(6)}.parquet"
        footer = {RUN_KEY: json.dumps(about).encode()}
        write_table(self.folder / where.id / name, table.replace_schema_metadata(footer))
        return run_id

    def writer(self, **options: Any) -> SessionWriter:
        """A writer that gathers rows and keeps them at the end; options are those of :meth:`write`."""
        return SessionWriter(self, **options)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    # ------------------------------------------------------------ look up

    def runs(self, *, model: Any = None, tags: Iterable[str] | str | None = None) -> pd.DataFrame:
        """One row a file: run id, geometry, rows, tags, notes, when."""
        import pandas as pd

        wanted = set(places.check_tags(tags))
        found = [about for path, about in self._files(model) if wanted <= set(about["tags"])]
        names = ["run_id", "geometry_id", "rows", "tags", "notes", "at"]
        rows = [{**about, "geometry_id": GeometryId.of(about["geometry"]).id} for about in found]
        return pd.DataFrame([{name: row[name] for name in names} for row in rows], columns=names)

    def load(
        self,
        *,
        model: Any = None,
        run_id: str | None = None,
        tags: Iterable[str] | str | None = None,
        limit: int | None = None,
    ) -> pd.DataFrame:
        """The vacua of all sessions that meet the conditions, each (flux, z) once."""
        wanted = set(places.check_tags(tags))
        parts = []
        for path, about in self._files(model):
            if run_id is not None and about["run_id"] != run_id:
                continue
            table = self._read(path)
            keep = pa.array([wanted <= set(row) for row in table["tags"].to_pylist()], pa.bool_())
            parts.append(table.filter(keep).replace_schema_metadata(None))
        if not parts:
            return to_pandas(_EMPTY)
        whole = _distinct(pa.concat_tables(parts, promote_options="permissive"))
        return to_pandas(whole if limit is None else whole.slice(0, limit))

    def exists(self, flux: Any, moduli: Any, *, model: Any) -> bool:
        """Whether this vacuum, (flux, z), was found before."""
        return bool(len(self.similar(flux, moduli, model=model, tolerance=SAME)))

    def similar(self, flux: Any, moduli: Any = None, *, model: Any, tolerance: float = 0.1) -> pd.DataFrame:
        """Vacua of the same flux vector, and if ``moduli`` are given with every ``|dz| <= tolerance``."""
        frame = self.load(model=model)
        wanted = np.asarray(flux).astype(np.int64).tolist()
        same = np.array([list(row) == wanted for row in frame["flux"]], bool)
        if moduli is not None and same.any():
            rows = frame[same]
            z = np.stack(rows["moduli_re"].to_numpy()) + 1j * np.stack(rows["moduli_im"].to_numpy())
            same[np.flatnonzero(same)] = np.abs(z - np.asarray(moduli)).max(axis=1) <= tolerance
        return frame[same]

    def delete(self, *, run_id: str | None = None, model: Any = None, everything: bool = False) -> int:
        """Remove sessions; how many files.

        Raises
        ------
        UsageError
            If it is not said which, and ``everything`` is not set.
        """
        if run_id is None and model is None and not everything:
            raise UsageError("Which sessions? Give run_id= or model=, or everything=True for all of them.")
        chosen = [p for p, about in self._files(model) if run_id is None or about["run_id"] == run_id]
        for path in chosen:
            path.unlink(missing_ok=True)
        return len(chosen)

    def _files(self, model: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
        folder = "*" if model is None else GeometryId.of(intake.loaded(model)).id
        for path in sorted(self.folder.glob(f"{folder}/*.parquet")):
            if path.name.startswith("."):
                continue
            try:
                footer = pq.read_schema(path).metadata or {}
                yield path, json.loads(footer[RUN_KEY])
            except FileNotFoundError:
                continue  # deleted meanwhile
            except (pa.ArrowException, OSError, ValueError, KeyError) as error:
                raise VaultDamagedError(f"{path} cannot be read: {error}") from error

    def _read(self, path: Path) -> pa.Table:
        try:
            return pq.read_table(path, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise VaultDamagedError(f"{path} cannot be read: {error}") from error


_EMPTY = pa.schema(
    [
        ("flux", pa.list_(pa.int32())),
        *((name, pa.list_(pa.float64())) for name in ("moduli_re", "moduli_im")),
        *((name, pa.float64()) for name in ("tau_re", "tau_im")),
        ("tags", pa.list_(pa.string())),
        ("run_id", pa.string()),
    ]
).empty_table()


def _distinct(table: pa.Table) -> pa.Table:
    """The first row of every (flux, z), to 8 digits; geometries of one width only are compared."""
    seen: set[Any] = set()
    keep = []
    for key in intake.keys_of(table):
        keep.append(key not in seen)
        seen.add(key)
    return table.filter(pa.array(keep, pa.bool_()))


def _key(row: Mapping[str, Any]) -> Any:
    """What is the same for two copies of a vacuum."""
    try:
        key = intake.key_of(row["flux"], row["moduli_re"], row["moduli_im"])
        hash(key)
        return key
    except (KeyError, TypeError):
        return repr(row)  # no vacuum; it will be told what is wrong with it


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = {name: None for row in rows for name in row}
    return {name: [row.get(name) for row in rows] for name in names}


class SessionWriter:
    """Gathers vacua and keeps them when the ``with`` ends, also when its body raises.

    Parameters
    ----------
    store : SessionStore
    filter_fn : callable, optional
        Called with each row as a dict; rows for which it is false are not kept.
    **options
        Those of :meth:`SessionStore.write`.
    """

    def __init__(
        self,
        store: SessionStore,
        *,
        filter_fn: Callable[[dict[str, Any]], bool] | None = None,
        **options: Any,
    ) -> None:
        self._store, self._filter, self._options = store, filter_fn, options
        # told now, not when the rows would be lost
        self._where = intake.identity_of(intake.loaded(options.get("model")), options.get("identity"))
        if options.get("run_id") is not None:
            runid.check_run_id(options["run_id"])
        places.check_tags(options.get("tags"))
        self._rows: list[dict[str, Any]] = []
        self._seen: set[Any] = set()
        self.run_id: str | None = options.get("run_id")

    def __enter__(self) -> SessionWriter:
        return self

    def append(self, row: Mapping[str, Any]) -> bool:
        """Add one vacuum; False if it is there already or the filter refuses it.

        Raises
        ------
        BatchError, UsageError
            If it is none; what was added before is kept.
        """
        if not isinstance(row, Mapping):
            raise UsageError(f"A vacuum is a mapping of names to values, not {type(row).__name__}.")
        return self._add([{n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in row.items()}]) == 1

    def append_batch(self, df: Any) -> int:
        """Add the rows of a frame; how many were new.

        Raises
        ------
        BatchError, UsageError
            If one of the new rows is no vacuum; none of them is added, and what was added before is kept.
        """
        table = intake.as_table(df)
        if table is None:
            raise UsageError("A batch is a DataFrame, a Table or a mapping of columns of equal length.")
        return self._add(table.to_pylist())

    def _add(self, rows: list[dict[str, Any]]) -> int:
        new: dict[Any, dict[str, Any]] = {}
        for row in rows:
            key = _key(row)
            if key not in self._seen and key not in new and (self._filter is None or self._filter(row)):
                new[key] = row
        if new:
            self._check(list(new.values()))
        self._seen.update(new)
        self._rows += new.values()
        return len(new)

    def _check(self, rows: list[dict[str, Any]]) -> None:
        """Whether they can be kept: told now, for at the end everything else would be lost with them."""
        frame, _ = intake.without_tags(_columns(rows))
        intake.sound(frame, self._where, force=False)
        if self._rows and len(rows[0]["flux"]) != len(self._rows[0]["flux"]):
            raise UsageError(
                f"flux has another length than {len(self._rows[0]['flux'])}, that of the others."
            )

    def flush(self) -> None:
        """Keep what was gathered so far."""
        if self._rows:
            self.run_id = self._store.write(_columns(self._rows), **{**self._options, "run_id": self.run_id})
            self._rows = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.flush()
            return
        with suppress(Exception):  # the body's own error is the one to see
            self.flush()
