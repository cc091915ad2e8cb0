"""Results with large buffers: written from where they lie, read without what nobody asked for."""

from __future__ import annotations

import mmap
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matforge.engine import results
from matforge.engine.locations import DamagedError, read
from matforge.engine.sketch import sketch
from matforge.model import Location

COUNT = results.LARGE // 8


def written(folder: Path, value: Any, name: str = "result.pickle") -> Location:
    with (folder / name).open("wb", buffering=0) as file:
        return results.write(file, name, results.dump(value))


def test_a_result_without_large_buffers_is_a_plain_pickle() -> None:
    value = {"energy": 1.5, "array": np.arange(10)}
    assert results.dump(value) == pickle.dumps(value, protocol=5)


@settings(max_examples=30, deadline=None)
@given(
    extra=st.lists(st.integers(0, 5000), max_size=4),
    order=st.sampled_from("CF"),
    plain=st.dictionaries(st.text(max_size=5), st.integers()),
)
def test_what_is_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, extra: list[int], order: Any, plain: dict[str, int]
) -> None:
    folder = tmp_path_factory.mktemp("results")
    arrays = [np.asarray(np.arange(COUNT + n).reshape(1, -1), order=order) for n in extra]
    where = written(folder, (plain, arrays))
    for found, again in (results.load(folder, where), results.load_part(folder, where, [slice(None)])):
        assert found == plain
        assert all(np.array_equal(a, b) for a, b in zip(arrays, again, strict=True))


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_travel_out_of_band_too(tmp_path: Path, kind: Any) -> None:
    value = kind(os.urandom(results.LARGE))
    assert len(results.dump(value)) > 1
    where = written(tmp_path, value)
    found = results.load(tmp_path, where)
    assert type(found) is kind
    assert found == value


def test_memory_that_is_not_contiguous_is_copied_as_before(tmp_path: Path) -> None:
    value = np.arange(4 * COUNT)[::2]
    assert np.array_equal(results.load(tmp_path, written(tmp_path, value)), value)


def test_buffers_are_not_copied_when_they_are_written() -> None:
    value = np.zeros(COUNT)
    view = results.dump([value])[-1]
    value[7] = 5.0
    assert np.frombuffer(view)[7] == 5.0


def test_what_is_read_may_be_changed_and_the_file_stays_as_it_is(tmp_path: Path) -> None:
    where = written(tmp_path, {"a": np.arange(COUNT)})
    for value in (results.load(tmp_path, where)["a"], results.load_part(tmp_path, where, ["a"])):
        value[:] = -1
    assert results.load(tmp_path, where)["a"][5] == 5
    assert results.load_part(tmp_path, where, ["a", 5]) == 5


def test_a_slice_of_an_array_larger_than_memory_is_read(tmp_path: Path) -> None:
    """A sparse file of 256 GiB: reading it as a whole would end in no memory, or in no time."""
    length = 1 << 38
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | results.NORESERVE)
    pieces = results.dump(np.frombuffer(memory, dtype=np.uint8))
    assert isinstance(pieces, list)
    with (tmp_path / "r").open("wb") as file:
        file.write(b"".join(pieces[:-1]))
        start = file.tell()
        file.truncate(start + length)
        file.seek(start + (1 << 37))
        file.write(b"\7")
    where = Location("r", 0, start + length, 0)
    assert results.load_part(tmp_path, where, [slice((1 << 37) - 1, (1 << 37) + 2)]).tolist() == [0, 7, 0]
    shown = sketch(results.view(tmp_path, where) or b"")
    assert "array of uint8" in shown


def test_every_damaged_byte_is_found_by_whoever_reads_all(tmp_path: Path) -> None:
    where = written(tmp_path, np.zeros(COUNT))
    path = tmp_path / where.path
    good = path.read_bytes()
    for at in (0, 5, 9, 30, 60, 300, results.ALIGNMENT, len(good) - 1):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(DamagedError, match="checksum differs"):
            results.load(tmp_path, where)
        with pytest.raises(DamagedError):
            read(tmp_path, where)


def test_a_damaged_head_is_found_by_whoever_reads_a_part(tmp_path: Path) -> None:
    where = written(tmp_path, np.zeros(COUNT))
    path = tmp_path / where.path
    good = path.read_bytes()
    end = good.index(bytes(64), 64)  # where the padding begins
    for at in range(end):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(DamagedError):
            results.load_part(tmp_path, where, [0])


@pytest.mark.parametrize("length", [0, 3, 10, 100, 5000, results.LARGE])
def test_a_file_that_was_cut_is_refused_with_its_length(tmp_path: Path, length: int) -> None:
    where = written(tmp_path, np.zeros(COUNT))
    os.truncate(tmp_path / where.path, length)
    with pytest.raises(DamagedError, match="ends at byte"):
        results.load(tmp_path, where)
    with pytest.raises(DamagedError, match=r"bytes instead of|ends at byte"):
        results.load_part(tmp_path, where, [0])


def test_a_missing_file_is_said_in_one_sentence(tmp_path: Path) -> None:
    where = Location("gone", 0, results.LARGE + 1, 0)
    for read_it in (lambda: results.load(tmp_path, where), lambda: results.view(tmp_path, where)):
        with pytest.raises(DamagedError, match="gone cannot be read"):
            read_it()


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    where = written(tmp_path, np.zeros(COUNT))
    with (tmp_path / where.path).open("r+b") as file:
        file.seek(4)
        file.write(b"\x09\x00")
    with pytest.raises(DamagedError, match="version 9, which this MatForge does not know"):
        results.load_part(tmp_path, where, [0])
