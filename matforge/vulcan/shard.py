"""One staged shard: what it says of itself, and whether it can be trusted.

A shard's file holds its provenance and its repository; its sidecar holds the same and the checksum.
Where the sidecar is missing or unreadable the file is believed alone, after every page of it has been
read against its own checksum. Where it goes in the repository is always computed, never believed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from matforge.model import MatForgeError
from matforge.vulcan import layout, schema
from matforge.vulcan.identity import GEOMETRY_KEYS, HASH_KEY, GeometryId
from matforge.vulcan.layout import ShardName

SIDECAR_VERSION = 1


class DamagedShardError(MatForgeError):
    """The file is no whole shard: cut short, changed, or not written by a forge."""


class ShardGoneError(MatForgeError):
    """The file is not there (any more)."""


class WrongRepositoryError(MatForgeError):
    """The shard was staged for another repository."""


@dataclass(frozen=True)
class ShardRecord:
    """What a shard says of itself, without its rows."""

    run_id: str
    geometry: GeometryId
    n_rows: int
    repo: str | None = None
    """The repository it was staged for; None in shards of other tools."""
    schema_version: str = schema.SCHEMA_VERSION
    sha256: str = ""
    """Of the file; empty where it is not known."""
    n_bytes: int = 0
    own_columns: tuple[str, ...] = ()
    """Columns that the schema does not know."""
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)
    """The whole blob: schema_version, run_id, geometry, solver, provenance, n_rows."""

    @property
    def geometry_id(self) -> str:
        """The id of its geometry."""
        return self.geometry.id

    @property
    def name(self) -> ShardName:
        """The name its file must have."""
        return ShardName.of(self.geometry, self.run_id)

    @property
    def path_in_repo(self) -> str:
        """Where it goes in the repository, unless it is compacted."""
        return self.name.path_in_repo

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types for the manifest of a file of many shards; the blob is left out."""
        return {
            "run_id": self.run_id,
            "geometry": self.geometry.as_dict(),
            "n_rows": self.n_rows,
            "schema_version": self.schema_version,
            "sha256": self.sha256,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ShardRecord:
        """Inverse of :meth:`as_dict`.

        Raises
        ------
        DamagedShardError
            If something is missing or of the wrong type.
        """
        try:
            return cls(
                _text(data, "run_id"),
                _geometry(data["geometry"]),
                _count(data),
                data.get("repo"),
                str(data.get("schema_version", "")),
                str(data.get("sha256") or ""),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise _unusable(error) from error

    @classmethod
    def of_blob(
        cls, blob: Any, repo: Any, sha256: str = "", n_bytes: int = 0, own_columns: Iterable[str] = ()
    ) -> ShardRecord:
        """The record in a provenance blob.

        Raises
        ------
        DamagedShardError
            If something is missing or of the wrong type.
        """
        try:
            version = str(blob.get("schema_version", ""))
            known = (_text(blob, "run_id"), _geometry(blob["geometry"]), _count(blob))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise _unusable(error) from error
        repo = repo if isinstance(repo, str) else None
        return cls(*known, repo, version, sha256, n_bytes, tuple(own_columns), blob)


def _unusable(error: Exception) -> DamagedShardError:
    reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
    return DamagedShardError(f"its provenance cannot be used: {reason}")


def _text(data: Mapping[str, Any], key: str) -> str:
    if not isinstance(data[key], str):
        raise ValueError(f"{key} is {data[key]!r}")
    return str(data[key])


def _count(data: Mapping[str, Any]) -> int:
    n_rows = data["n_rows"]
    if isinstance(n_rows, bool) or not isinstance(n_rows, int) or n_rows < 0:
        raise ValueError(f"n_rows is {n_rows!r}")
    return n_rows


def _geometry(data: Mapping[str, Any]) -> GeometryId:
    """Other tools say more of a geometry than its keys."""
    return _geometry_of(*(data.get(key) for key in (*GEOMETRY_KEYS, HASH_KEY)))


@lru_cache(maxsize=4096, typed=True)
def _geometry_of(*values: Any) -> GeometryId:
    """Thousands of shards are of few geometries."""
    return GeometryId.of(dict(zip((*GEOMETRY_KEYS, HASH_KEY), values, strict=True)))


@dataclass(frozen=True)
class StagedShard:
    """One shard in the staging folder: a file of vacua of one geometry.

    Attributes
    ----------
    parquet_path : Path
    record : ShardRecord
        Read when first asked for.
    """

    parquet_path: Path

    @property
    def name(self) -> ShardName:
        """The parts of its file name.

        Raises
        ------
        DamagedShardError
            If that is not the name of a shard.
        """
        parsed = ShardName.parse(self.parquet_path.name)
        if parsed is None:
            raise DamagedShardError(f"{self.parquet_path} is not named like a shard.")
        return parsed

    @property
    def run_id(self) -> str:
        """The id of the write that staged it."""
        return self.name.run_id

    @property
    def path_in_repo(self) -> str:
        """Where it goes in the repository, unless it is compacted."""
        return self.name.path_in_repo

    @property
    def sidecar_path(self) -> Path:
        """Its sidecar; the file may be missing."""
        return layout.sidecar_of(self.parquet_path)

    @property
    def n_rows(self) -> int:
        """Vacua in it."""
        return self.record.n_rows

    @cached_property
    def record(self) -> ShardRecord:
        """From the sidecar, else from the file itself; see :func:`read_record`."""
        return read_record(self.parquet_path)

    def __repr__(self) -> str:
        return f"StagedShard({str(self.parquet_path)!r})"


def sidecar_document(record: ShardRecord) -> dict[str, Any]:
    """What stands in a sidecar."""
    return {
        "format_version": SIDECAR_VERSION,
        "path_in_repo": record.path_in_repo,
        "run_id": record.run_id,
        "n_rows": record.n_rows,
        "repo": record.repo,
        "sha256": record.sha256,
        "n_bytes": record.n_bytes,
        "own_columns": list(record.own_columns),
        "provenance": record.provenance,
    }


def write_sidecar(parquet: Path, record: ShardRecord) -> None:
    """Put the sidecar of ``parquet`` in its place, whole or not at all."""
    target = layout.sidecar_of(parquet)
    temporary = layout.beside(target)
    try:
        temporary.write_bytes(json.dumps(sidecar_document(record), separators=(",", ":")).encode())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_record(parquet: Path, size: int | None = None) -> ShardRecord:
    """What a shard says of itself: its sidecar, or the file's own footer where that is of no use.

    Parameters
    ----------
    parquet : Path
    size : int, optional
        Bytes of the file, if known; a sidecar that says otherwise is not believed.

    Raises
    ------
    ShardGoneError
        If there is no such file.
    DamagedShardError
        If neither can be read.
    """
    record = read_sidecar(parquet)
    if record is not None and size in (None, record.n_bytes):
        return record
    return read_footer(parquet)


def read_sidecar(parquet: Path) -> ShardRecord | None:
    """The record in the sidecar of ``parquet``, or None if it is missing, unreadable or of another file."""
    try:
        data = json.loads(layout.sidecar_of(parquet).read_bytes())
        record = ShardRecord.of_blob(
            data["provenance"],
            data["repo"],
            str(data["sha256"]),
            int(data["n_bytes"]),
            data.get("own_columns", ()),
        )
    except (OSError, ValueError, KeyError, TypeError, DamagedShardError):
        return None  # the file itself knows the same
    return record if record.sha256 and record.name.local == parquet.name else None


def read_footer(parquet: Path, filesystem: Any = None) -> ShardRecord:
    """The record in the metadata of a shard's file, which may lie in a repository.

    Raises
    ------
    ShardGoneError, DamagedShardError
        If there is no such file, or it is no shard.
    """
    try:
        metadata = pq.read_metadata(str(parquet), filesystem=filesystem)
    except FileNotFoundError:
        raise ShardGoneError(f"{parquet} is not there (any more).") from None
    except (pa.ArrowException, OSError) as error:
        raise DamagedShardError(f"{parquet} is not a whole parquet file: {error}") from error
    record = _record_of(parquet, metadata.metadata, metadata.num_rows)
    own = tuple(schema.extras(metadata.schema.to_arrow_schema()))
    record = replace(record, own_columns=own)
    return record if filesystem is not None else _named(parquet, record)


def load(parquet: Path, repo: str | None = None) -> tuple[ShardRecord, pa.Table]:
    """Read and check a shard before it is published.

    Parameters
    ----------
    parquet : Path
    repo : str, optional
        The repository it must have been staged for.

    Returns
    -------
    ShardRecord
        With size and checksum.
    Table
        All its columns, in the order of the schema.

    Raises
    ------
    ShardGoneError
        If there is no such file.
    WrongRepositoryError
        If it was staged for another repository.
    DamagedShardError
        If size, checksum, footer, name, number of rows or columns are not as they must be.
    """
    try:
        data = parquet.read_bytes()
    except FileNotFoundError:
        raise ShardGoneError(f"{parquet} is not there (any more).") from None
    except OSError as error:
        raise DamagedShardError(f"{parquet} cannot be read: {error.strerror or error}.") from error
    sha256 = hashlib.sha256(data).hexdigest()
    sidecar = read_sidecar(parquet)
    if sidecar is not None and sidecar.sha256 != sha256:
        raise DamagedShardError(
            f"{parquet} has {len(data)} bytes that are not the {sidecar.n_bytes} bytes that were staged."
        )
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=sidecar is None)
        table = file.read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DamagedShardError(f"{parquet} is not a whole parquet file: {error}") from error
    inside = _record_of(parquet, file.metadata.metadata, table.num_rows)
    own = tuple(schema.extras(table.schema))
    record = replace(inside, sha256=sha256, n_bytes=len(data), own_columns=own)
    _named(parquet, record)
    if repo is not None and record.repo not in (None, repo):
        raise WrongRepositoryError(f"{parquet} was staged for {record.repo}, not for {repo}.")
    try:
        return record, schema.conform(table)
    except schema.SchemaError as error:
        raise DamagedShardError(f"{parquet} is not a shard: {error}") from error


def _record_of(parquet: Path, metadata: Mapping[bytes, bytes] | None, n_rows: int) -> ShardRecord:
    known = metadata or {}
    keys = (schema.PROVENANCE_KEY, schema.REFERENCE_PROVENANCE_KEY)
    text = next((known[key.encode()] for key in keys if key.encode() in known), None)
    if text is None:
        raise DamagedShardError(f"{parquet} is a parquet file, but no shard: it has no provenance.")
    try:
        blob = json.loads(text)
        repo = known.get(schema.REPO_KEY.encode(), b"").decode() or None
        record = ShardRecord.of_blob(blob, repo)
    except ValueError as error:
        raise DamagedShardError(f"{parquet}: its provenance is not JSON: {error}.") from error
    except DamagedShardError as error:
        raise DamagedShardError(f"{parquet}: {error}.") from error
    if record.n_rows != n_rows:
        raise DamagedShardError(f"{parquet} has {n_rows} rows, but its provenance says {record.n_rows}.")
    return record


def _named(parquet: Path, record: ShardRecord) -> ShardRecord:
    if record.name.local != parquet.name:
        raise DamagedShardError(f"{parquet} holds the shard {record.name.local}.")
    return record
