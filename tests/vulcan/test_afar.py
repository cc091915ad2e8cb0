"""Files of a file system that is written in Python: the same rows, and no thread that outlives the read."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem

from matforge.model import UsageError
from matforge.vulcan import afar, rows
from matforge.vulcan.layout import SYNCED_DIRNAME
from matforge.vulcan.rows import File, Request
from tests.vulcan.batches import GEOMETRY, published, vacua


class Watched:
    """An open file that notes who reads it."""

    def __init__(self, opened: Any, readers: Counter[type[threading.Thread]], total: Counter[str]) -> None:
        self._opened, self._readers, self._bytes = opened, readers, total

    def read(self, size: int = -1) -> bytes:
        self._readers[type(threading.current_thread())] += 1
        data: bytes = self._opened.read(size)
        self._bytes["read"] += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)


class WatchedFiles(FSSpecHandler):  # type: ignore[misc]
    """Files of this machine as those of the Hub are opened."""

    def __init__(self) -> None:
        super().__init__(LocalFileSystem())
        self.readers: Counter[type[threading.Thread]] = Counter()
        self.bytes: Counter[str] = Counter()

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(Watched(self.fs.open(path, "rb"), self.readers, self.bytes), mode="r")


@pytest.fixture
def files(tmp_path: Path) -> list[File]:
    """Five files, one with a column of its own."""
    batches = [(GEOMETRY, vacua(40, n, **({"score": list(range(40))} if n == 1 else {}))) for n in range(5)]
    handle = published(tmp_path, batches)
    paths = sorted((handle.staging_dir / SYNCED_DIRNAME).glob("h12_*.parquet"))
    own = {path: ("score",) for path in paths if "score" in pq.read_schema(path).names}
    assert len(own) == 1
    return [File(str(path), own.get(path, ())) for path in paths]


REQUESTS = [
    Request(),
    Request(("tau_im", "flux")),
    Request(("score", "tau_im")),
    Request(("flux",), pc.field("tau_im") > 1.5),
    Request(None, (pc.field("tau_im") > 1.5) & pc.field("is_susy").is_null()),
    Request(("tau_im",), pc.field("tau_im") > 5),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
def test_the_same_is_read_by_no_thread_but_those_that_are_waited_for(
    files: list[File], request_: Request
) -> None:
    """Arrow's own let go of it late: a command that ended just then was aborted."""
    watched = WatchedFiles()
    there = PyFileSystem(watched)
    whole = rows.read(files, request_, there)
    assert sorted(map(repr, whole.to_pylist())) == sorted(map(repr, rows.read(files, request_).to_pylist()))
    own = rows.own_fields(files, request_, there)
    assert own == rows.own_fields(files, request_)
    pieces = list(rows.batches(files, request_, own, there, batch_size=7))
    locally = list(rows.batches(files, request_, own, batch_size=7))
    assert [piece.to_pylist() for piece in pieces if len(piece) > 0] == [
        piece.to_pylist() for piece in locally
    ]
    assert all(0 < piece.num_rows <= 7 for piece in pieces)
    assert watched.readers.total() >= len(files)
    assert set(watched.readers) <= {threading.Thread, type(threading.main_thread())}


def test_only_the_groups_of_rows_and_the_columns_that_matter_are_read(tmp_path: Path) -> None:
    path = str(tmp_path / "many.parquet")
    number, text = list(range(10_000)), [f"{n:0100d}" for n in range(10_000)]
    table = pa.table({"number": number, "text": text, "more": text})
    pq.write_table(table, path, row_group_size=1000, use_dictionary=False, compression="none")
    watched = WatchedFiles()
    wanted = pc.field("number") >= 8500
    found = pa.concat_tables(afar.pieces(path, table.schema, ["text"], wanted, PyFileSystem(watched)))
    assert found.equals(table.slice(8500).select(["text"]))
    assert 2 * 1000 * 100 < watched.bytes["read"] < 3 * 1000 * 100


def test_a_column_that_a_file_lacks_is_null_and_one_of_another_size_fits(tmp_path: Path) -> None:
    path = str(tmp_path / "other.parquet")
    pq.write_table(pa.table({"a": pa.array([1, 2], pa.int64())}), path)
    wanted = pa.schema([("a", pa.int32()), ("b", pa.string())])
    (found,) = afar.pieces(path, wanted, ["b", "a"], None, PyFileSystem(WatchedFiles()))
    assert found.equals(pa.table({"b": pa.nulls(2, pa.string()), "a": pa.array([1, 2], pa.int32())}))


def test_what_a_condition_looks_at_is_known() -> None:
    schema = pa.schema([(name, pa.int64()) for name in "abcd"])
    assert afar.named_in((pc.field("a") > 1) | pc.field("d").is_null(), schema) == ["a", "d"]
    assert afar.named_in(None, schema) == []


@pytest.mark.parametrize("there", [None, PyFileSystem(WatchedFiles())], ids=["here", "afar"])
def test_a_file_whose_column_is_of_no_fitting_type_is_left_out(files: list[File], there: Any) -> None:
    """It was tried for ever."""
    table = pq.read_table(files[0].path)
    position = table.column_names.index("tau_im")
    strange = pa.array([{"x": 1}] * len(table))
    pq.write_table(table.set_column(position, "tau_im", strange), files[0].path)
    for some in (files, files[:1]):
        with pytest.warns(RuntimeWarning, match=rf"{Path(files[0].path).name} is left out"):
            assert rows.read(some, Request(("tau_im",)), there).num_rows == 40 * (len(some) - 1)


@pytest.mark.parametrize("there", [None, PyFileSystem(WatchedFiles())], ids=["here", "afar"])
def test_a_condition_that_makes_no_sense_is_told_and_no_file_is_blamed(files: list[File], there: Any) -> None:
    for where in (pc.field("fluxx") > 1, pc.field("flux") > 1, pc.field("is_susy") == "yes"):
        with pytest.raises(UsageError, match="condition cannot be applied"):
            rows.read(files, Request(None, where), there)
        with pytest.raises(UsageError, match="condition cannot be applied"):
            list(rows.batches(files, Request(None, where), (), there))
