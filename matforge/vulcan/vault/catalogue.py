"""The vault's catalogue: one row a vacuum, replaced as a whole, by one process at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from matforge.model import MatForgeError
from matforge.vulcan import layout
from matforge.vulcan.identity import GEOMETRY_KEYS, HASH_KEY
from matforge.vulcan.lease import BriefLease

CATALOGUE_NAME = "designated_vacua_catalog.parquet"
RETRACTIONS_NAME = "retractions.parquet"
NEXT_ID_KEY = b"matforge.vault.next_id"
FORMAT_KEY, FORMAT = b"matforge.vault.format", b"1"
PATIENCE_S = 120.0
"""Nobody changes the vault for longer."""

SCHEMA = pa.schema(
    [
        pa.field("designated_id", pa.int64(), nullable=False),
        pa.field("geometry_id", pa.string(), nullable=False),
        *(pa.field(key, pa.int32(), nullable=False) for key in GEOMETRY_KEYS),
        pa.field(HASH_KEY, pa.string()),
        pa.field("flux", pa.list_(pa.int32()), nullable=False),
        pa.field("moduli_re", pa.list_(pa.float64()), nullable=False),
        pa.field("moduli_im", pa.list_(pa.float64()), nullable=False),
        pa.field("tau_re", pa.float64(), nullable=False),
        pa.field("tau_im", pa.float64(), nullable=False),
        pa.field("N_flux", pa.int32(), nullable=False),
        pa.field("is_susy", pa.bool_()),
        pa.field("tags", pa.list_(pa.string()), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("notes", pa.string(), nullable=False),
        pa.field("committed_by", pa.string(), nullable=False),
        pa.field("commit_date", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("validated", pa.bool_(), nullable=False),
        pa.field("matforge_version", pa.string(), nullable=False),
        pa.field("source_run_id", pa.string()),
        pa.field("file", pa.string(), nullable=False),
        pa.field("retracted", pa.bool_(), nullable=False),
        pa.field("retracted_by", pa.string()),
        pa.field("retracted_at", pa.timestamp("us", tz="UTC")),
        pa.field("reason", pa.string()),
    ]
)
RETRACTIONS = pa.schema(
    [
        pa.field("designated_id", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("by", pa.string(), nullable=False),
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)


class VaultDamagedError(MatForgeError):
    """A file of the vault cannot be read; the text names it."""


class Catalogue:
    """The catalogue of one vault."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / CATALOGUE_NAME

    def lock(self) -> BriefLease:
        """Held while the vault is changed; others wait."""
        return BriefLease(self.path, PATIENCE_S)

    def read(self) -> pa.Table:
        """All rows; the next number is in the metadata.

        Raises
        ------
        VaultDamagedError
            If the file cannot be read.
        """
        return read_table(self.path, SCHEMA)

    def replace(self, table: pa.Table, next_id: int) -> None:
        """Put another table in its place, at once."""
        metadata = {FORMAT_KEY: FORMAT, NEXT_ID_KEY: str(next_id).encode()}
        write_table(self.path, table.cast(SCHEMA).replace_schema_metadata(metadata))

    def retractions(self) -> pa.Table:
        """Every retraction there ever was."""
        return read_table(self.folder / RETRACTIONS_NAME, RETRACTIONS)

    def note(self, retractions: pa.Table) -> None:
        """Add retractions."""
        known = pa.concat_tables([self.retractions().replace_schema_metadata(None), retractions])
        write_table(self.folder / RETRACTIONS_NAME, known)


def next_id(table: pa.Table) -> int:
    """The first number that was never given; numbers of purged vacua are not given again."""
    stored = int((table.schema.metadata or {}).get(NEXT_ID_KEY, b"1"))
    highest = max(table["designated_id"].to_pylist(), default=0)
    return max(stored, highest + 1)


def parse(data: bytes) -> pa.Table:
    """The table in the bytes of a parquet file, read without threads.

    Threads of Arrow's let go of what Python gave them to read some time after the read, and if the
    interpreter is ending by then it aborts.
    """
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """A table of that schema, empty if there is no such file.

    Raises
    ------
    VaultDamagedError
        If it cannot be read.
    """
    try:
        table = parse(path.read_bytes())
        return table.select(schema.names).cast(schema.with_metadata(table.schema.metadata))
    except FileNotFoundError:
        return schema.empty_table()
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise VaultDamagedError(f"{path} cannot be read: {error}") from error


def write_table(path: Path, table: pa.Table) -> None:
    """Write a file whole or not at all, and on the disk before its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = layout.beside(path)
    try:
        with beside.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        if isinstance(error, OSError) and not error.filename:
            error.filename = str(path)  # a disk that is full does not say of what
        beside.unlink(missing_ok=True)
        raise
