"""Rows out of files of a file system that is written in Python, as that of the Hub is.

Arrow reads with threads of its own, and these let go of what Python has given them some time after the
read; if the interpreter is ending by then, it aborts. So everything that is Python's is touched here by
the calling thread only, and by the few that are started here and waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

READERS = 8
"""Files that are read at a time: the network is slower than this machine."""
ROWS = 65_536
"""Of a piece, where all of them are wanted at once."""
_A = TypeVar("_A")
_B = TypeVar("_B")


def side_by_side(work: Callable[[_A], _B], what: Sequence[_A]) -> list[_B]:
    """Do the same with several files at a time; the results are in their order."""
    if len(what) < 2:
        return [work(one) for one in what]
    with ThreadPoolExecutor(READERS, thread_name_prefix="afar") as pool:
        return list(pool.map(work, what))


def named_in(condition: pc.Expression | None, schema: pa.Schema) -> list[str]:
    """Columns that a condition, which can be applied to that schema, looks at."""
    if condition is None:
        return []
    none, found = schema.empty_table(), []
    for name in schema.names:
        try:
            none.drop_columns([name]).filter(condition)
        except pa.ArrowException:
            found.append(name)
    return found


def pieces(
    path: str,
    schema: pa.Schema,
    columns: Sequence[str],
    condition: pc.Expression | None,
    filesystem: Any,
    rows: int = ROWS,
) -> Iterator[pa.Table]:
    """The rows of one file that meet the condition, in tables of at most so many.

    Only the columns and the row groups that matter are read. A column of the schema that the file lacks is
    null throughout.

    Raises
    ------
    ArrowException, OSError
        If it cannot be read.
    """
    names = list(dict.fromkeys([*columns, *named_in(condition, schema)]))
    wanted = pa.schema([schema.field(name) for name in names])
    with filesystem.open_input_file(path) as opened:
        fragment = ds.ParquetFileFormat().make_fragment(opened)
        part = fragment if condition is None else fragment.subset(filter=condition, schema=schema)
        groups = [group.id for group in part.row_groups]
        file = pq.ParquetFile(opened, metadata=fragment.metadata, pre_buffer=False)
        there = [name for name in names if name in file.schema_arrow.names]
        for batch in file.iter_batches(rows, row_groups=groups, columns=there, use_threads=False):
            found = ds.dataset(_fitting(batch, wanted)).to_table(
                columns=list(columns), filter=condition, use_threads=False
            )
            if found.num_rows:
                yield found


def _fitting(batch: pa.RecordBatch, wanted: pa.Schema) -> pa.Table:
    there = set(batch.schema.names)
    arrays = [
        batch.column(field.name).cast(field.type) if field.name in there else pa.nulls(len(batch), field.type)
        for field in wanted
    ]
    return pa.Table.from_arrays(arrays, schema=wanted)
