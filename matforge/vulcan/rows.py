"""Rows out of many parquet files: only the columns and row groups that are asked for are read.

Files are taken as one data set of the schema's columns. Files that hold columns of their producer's
own are taken group by group, so that all of a group have the same; published files hold these folded,
and they are unfolded here.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from matforge.model import UsageError
from matforge.vulcan import afar, schema
from matforge.vulcan.errors import unanswered
from matforge.vulcan.filters import both
from matforge.vulcan.schema import EXTRA, NAMES, SCHEMA

READERS, AT_ONCE = 4, 256
"""Threads that read small files, and files that each takes at once; decoding leaves Python free."""
_READABLE = (pa.ArrowException, OSError)


class MissingColumnError(UsageError, KeyError):
    """No file has a column of that name."""

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0])


@dataclass(frozen=True)
class File:
    """One file to read."""

    path: str
    own: tuple[str, ...] = ()
    """Columns that the schema does not know."""
    only: pc.Expression | None = None
    """What of it counts, if not all of it does."""
    elsewhere: tuple[str, ...] = ()
    """Where it may be by now: a sync moves shards while others read."""


@dataclass(frozen=True)
class Request:
    """What to read.

    Parameters
    ----------
    columns : sequence of str, optional
        In the order wanted; by default all there are.
    condition : Expression, optional
        On the schema's columns.
    """

    columns: tuple[str, ...] | None = None
    condition: pc.Expression | None = None

    @property
    def own(self) -> tuple[str, ...]:
        """Those asked for that the schema does not know."""
        return tuple(name for name in self.columns or () if name not in NAMES)

    @property
    def wants_own(self) -> bool:
        """Whether columns of the producers' own matter."""
        return self.columns is None or bool(self.own)


def read(files: Sequence[File], request: Request, filesystem: Any = None) -> pa.Table:
    """The rows of all files that meet the condition.

    A file that cannot be read is skipped with a warning.

    Raises
    ------
    MissingColumnError
        If a column that is asked for is in none of the files.
    UsageError
        If the condition cannot be applied.
    """
    tables = _tables(files, request, filesystem)
    if request.wants_own:
        tables = [schema.unfold_extras(table) for table in tables]
    found = together(tables) if tables else empty(request)
    return _select(found, request)


def read_small(files: Sequence[File]) -> list[pa.Table]:
    """All rows of many small files of this machine, a table for each file.

    Each is read whole and decoded from memory, which costs less than half of what a data set of as many
    files does. A file that cannot be read has no rows here, and a warning tells of it.
    """
    parts = [files[begin : begin + AT_ONCE] for begin in range(0, len(files), AT_ONCE)]
    with ThreadPoolExecutor(READERS, thread_name_prefix="shards") as pool:
        tables = [table for found in pool.map(_decoded, parts) for table in found]
    return [
        _read_group([file], Request()) if table is None else table
        for file, table in zip(files, tables, strict=True)
    ]


def _decoded(files: Sequence[File]) -> list[pa.Table | None]:
    return [_plain(file) for file in files]


def _plain(file: File) -> pa.Table | None:
    """What is in a file that has exactly the columns of the schema; None for any other."""
    try:
        with open(file.path, "rb") as opened:
            data = opened.read()
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except _READABLE:
        return None
    plain = file.only is None and table.schema.equals(SCHEMA)
    return table.replace_schema_metadata(None) if plain else None


def empty(request: Request, own: Sequence[pa.Field] = ()) -> pa.Table:
    """No rows, but the columns and their types; ``own`` are those that the schema does not know."""
    known = {field.name: field for field in own}
    names = request.columns or (*NAMES, *known)
    fields = [SCHEMA.field(name) if name in NAMES else known.get(name) for name in names]
    return pa.schema([field for field in fields if field is not None]).empty_table()


def own_fields(files: Sequence[File], request: Request, filesystem: Any = None) -> tuple[pa.Field, ...]:
    """Those columns of the producers' own that the request includes, with a type that fits all files."""
    if not request.wants_own:
        return ()
    declared = tuple(dict.fromkeys(name for file in files for name in file.own))
    everything = Request((*declared, EXTRA))
    tables = [schema.unfold_extras(table) for table in _tables(files, everything, filesystem)]
    found = together(tables).schema if tables else pa.schema([])
    wanted = schema.extras(found) if request.columns is None else request.own
    missing = [name for name in wanted if name not in found.names]
    if missing and files:
        raise MissingColumnError(f"No file has a column {' or '.join(map(repr, missing))}.")
    return tuple(found.field(name) if name in found.names else pa.field(name, pa.null()) for name in wanted)


def batches(
    files: Sequence[File],
    request: Request,
    own: Sequence[pa.Field] = (),
    filesystem: Any = None,
    batch_size: int = 4096,
) -> Iterator[pa.Table]:
    """The same rows piece by piece, so that they need not fit into memory.

    Parameters
    ----------
    own : sequence of Field
        See :func:`own_fields`; every piece has these, of these types.
    """
    for file in files:
        for table in _pieces(file, request, filesystem, batch_size):
            if table.num_rows:
                yield _shaped(table, request, own)


def _pieces(file: File, request: Request, filesystem: Any, batch_size: int) -> Iterator[pa.Table]:
    if filesystem is not None:
        try:
            yield from _afar(file, request, filesystem, batch_size)
        except Exception as error:
            if problem := unanswered(file.path, error):
                raise problem from error
            raise
        return
    whole = _schema([file], request)
    scanner = ds.dataset([file.path], schema=whole, format="parquet").scanner(
        columns=_columns(request, [file]),
        filter=_condition(request, file, whole),
        batch_size=batch_size,
        fragment_readahead=1,
        batch_readahead=2,
    )
    for batch in scanner.to_batches():
        yield pa.Table.from_batches([batch])


def _afar(file: File, request: Request, filesystem: Any, batch_size: int) -> Iterator[pa.Table]:
    whole, columns = _schema([file], request, filesystem), _columns(request, [file])
    yield pa.schema([whole.field(name) for name in columns]).empty_table()
    condition = _condition(request, file, whole)
    yield from afar.pieces(file.path, whole, columns, condition, filesystem, batch_size)


def _shaped(table: pa.Table, request: Request, own: Sequence[pa.Field]) -> pa.Table:
    if request.wants_own:
        table = schema.unfold_extras(table)
    for field in own:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
        elif not table.schema.field(field.name).type.equals(field.type):
            table = _as_text(table, [field.name]) if pa.types.is_string(field.type) else table
            position = table.column_names.index(field.name)
            table = table.set_column(position, field, table.column(field.name).cast(field.type))
    return table.select(request.columns or [*NAMES, *(field.name for field in own)])


def _groups(files: Iterable[File], request: Request) -> list[list[File]]:
    """Files that can be read as one: the same columns, and nothing or the same left out."""
    groups: dict[Any, list[File]] = defaultdict(list)
    for file in files:
        own = file.own if request.wants_own else ()
        groups[own, id(file.only) if file.only is not None else None].append(file)
    return list(groups.values())


def _tables(files: Sequence[File], request: Request, filesystem: Any) -> list[pa.Table]:
    if filesystem is None:
        return [_read_group(group, request) for group in _groups(files, request)]
    found = afar.side_by_side(lambda file: _read_afar(file, request, filesystem), files)
    return [
        _left_out(file, request, table) if isinstance(table, BaseException) else table
        for file, table in zip(files, found, strict=True)
    ]


def _read_group(group: list[File], request: Request) -> pa.Table:
    try:
        return _to_table(group, request)
    except MemoryError:
        raise
    except _READABLE as error:
        moved = _moved(group[0]) if len(group) == 1 and isinstance(error, FileNotFoundError) else None
        if moved is not None:
            return _read_group([moved], request)
        if len(group) == 1:
            return _left_out(group[0], request, error)
    # one of them is damaged, gone, or has another type under the same name
    return together([_read_group([file], request) for file in group])


def _read_afar(file: File, request: Request, filesystem: Any) -> pa.Table | BaseException:
    """Its rows, or why it cannot be read."""
    try:
        return pa.concat_tables(_pieces(file, request, filesystem, afar.ROWS))
    except MemoryError:
        raise
    except _READABLE as error:
        return error


def _left_out(file: File, request: Request, error: BaseException) -> pa.Table:
    warnings.warn(f"{file.path} is left out: {_first_line(error)}", RuntimeWarning, stacklevel=5)
    return empty(request)


def _moved(file: File) -> File | None:
    """The file where it is by now, if it was moved."""
    there = [path for path in file.elsewhere if os.path.exists(path)]
    return replace(file, path=there[0], elsewhere=()) if there else None


def _to_table(group: list[File], request: Request) -> pa.Table:
    whole = _schema(group, request)
    condition = _condition(request, group[0], whole)
    files = ds.dataset([file.path for file in group], schema=whole, format="parquet")
    return files.to_table(columns=_columns(request, group), filter=condition)


def _condition(request: Request, file: File, whole: pa.Schema) -> pc.Expression | None:
    """What is asked of the rows of a file; where that makes no sense it is said at once."""
    if request.condition is not None:
        try:
            whole.empty_table().filter(request.condition)
        except pa.ArrowException as error:
            raise UsageError(f"The condition cannot be applied: {_first_line(error)}") from error
    return both(request.condition, file.only)


def _schema(group: list[File], request: Request, filesystem: Any = None) -> pa.Schema:
    fields = list(SCHEMA)
    if request.wants_own and group[0].own:
        inside = pq.read_schema(group[0].path, filesystem=filesystem)
        fields += [inside.field(name) for name in group[0].own]
    # nothing is said about missing values here: a file of another tool may lack a column altogether
    return pa.schema([field.with_nullable(True) for field in fields])


def _columns(request: Request, group: list[File]) -> list[str]:
    if request.columns is None:
        return [*NAMES, *group[0].own]
    names = [name for name in request.columns if name in NAMES or name in group[0].own]
    return [*names, EXTRA] if request.own and EXTRA not in names else names


def together(tables: list[pa.Table]) -> pa.Table:
    """All rows of tables that may differ in the columns of their producers' own."""
    with suppress(pa.ArrowInvalid):
        return pa.concat_tables(tables)  # thousands of equal schemas need not be brought together
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        as_text = [_as_text(table, schema.extras(table.schema)) for table in tables]
        return pa.concat_tables(as_text, promote_options="permissive")


def _as_text(table: pa.Table, names: Iterable[str]) -> pa.Table:
    """Columns of the producers' own as text, because they differ in more than the size of numbers."""
    for name in names:
        position = table.column_names.index(name)
        text = [None if value is None else str(value) for value in table.column(name).to_pylist()]
        table = table.set_column(position, name, pa.array(text, pa.string()))
    return table


def _select(table: pa.Table, request: Request) -> pa.Table:
    """The columns asked for, in that order, with the schema's promise of values kept."""
    if request.columns is None:
        own = schema.extras(table.schema)
        names = [*NAMES, *own]
    else:
        names = list(request.columns)
        missing = [name for name in request.own if name not in table.column_names]
        if missing and table.num_rows:
            raise MissingColumnError(f"No file has a column {' or '.join(map(repr, missing))}.")
        for name in missing:
            table = table.append_column(name, pa.nulls(table.num_rows))
    return table.select(names)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".") + "."
