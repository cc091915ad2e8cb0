"""The cache's files: what is damaged is not found, and runs that write at once do not mix."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from matforge.engine.cache import Cache
from matforge.engine.locations import location_of
from matforge.model import Location

KEY = "ab" * 32


def result(folder: Path, data: bytes, name: str = "r", before: bytes = b"") -> Location:
    (folder / name).write_bytes(before + data)
    return location_of(name, data, len(before))


@pytest.mark.parametrize("before", [b"", b"header of a segment"])
def test_what_is_kept_is_found_with_who_made_it(tmp_path: Path, before: bytes) -> None:
    cache = Cache(tmp_path)
    assert cache.find(KEY) is None
    where = result(tmp_path, b"the result", before=before)
    assert cache.keep(KEY, tmp_path, where, report={"n": 1}, made={"function": "f"})
    entry = cache.find(KEY)
    assert entry is not None
    assert (entry.report, entry.made) == ({"n": 1}, {"function": "f"})
    assert (entry.length, entry.crc) == (where.length, where.crc)
    assert cache.read(entry) == b"the result"
    assert cache.place(entry, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == b"the result"
    assert not [p for p in cache.path.rglob("*") if p.name.endswith(".new")]


def test_a_result_with_a_file_of_its_own_takes_no_space_of_its_own(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.keep(KEY, tmp_path, result(tmp_path, b"x" * 100))
    assert (tmp_path / "r").stat().st_nlink == 2


def test_every_damaged_object_is_a_miss_and_is_made_anew(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    where = result(tmp_path, b"the result", before=b"-")
    cache.keep(KEY, tmp_path, where)
    entry = cache.find(KEY)
    assert entry is not None
    (path,) = (p for p in (cache.path / "objects").rglob("*") if p.is_file())
    for bad in (b"", b"the", b"the result and more", b"the Result"):
        path.write_bytes(bad)
        assert cache.read(entry) is None
        assert not cache.place(entry, tmp_path / "again")
        assert not (tmp_path / "again").exists()
    assert cache.keep(KEY, tmp_path, where)
    assert cache.read(entry) == b"the result"
    path.unlink()
    assert cache.read(entry) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 99}', "null", '{"version": 1}'])
def test_a_damaged_entry_is_a_miss(tmp_path: Path, text: str) -> None:
    cache = Cache(tmp_path)
    cache.keep(KEY, tmp_path, result(tmp_path, b"x"))
    (path,) = cache.path.rglob("*.json")
    path.write_text(text)
    assert cache.find(KEY) is None


def test_an_entry_cut_at_every_byte_is_a_miss(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.keep(KEY, tmp_path, result(tmp_path, b"x"))
    (path,) = cache.path.rglob("*.json")
    text = path.read_text()
    for end in range(len(text)):
        path.write_text(text[:end])
        assert cache.find(KEY) is None
    assert json.loads(text)["version"] == 1


def test_a_damaged_result_is_not_kept(tmp_path: Path) -> None:
    where = result(tmp_path, b"the result")
    (tmp_path / "r").write_bytes(b"the Result")
    assert not Cache(tmp_path).keep(KEY, tmp_path, where)
    os.truncate(tmp_path / "r", 3)
    assert not Cache(tmp_path).keep(KEY, tmp_path, where)
    assert Cache(tmp_path).find(KEY) is None


def test_many_that_fill_one_entry_at_once_leave_one_that_is_whole(tmp_path: Path) -> None:
    """With different results, which is the worst case: functions that are not deterministic."""
    places = [result(tmp_path, b"%d" % n * 5000, f"r{n}") for n in range(8)]
    barrier = threading.Barrier(8)

    def fill(where: Location) -> None:
        barrier.wait(10)
        for _ in range(20):
            Cache(tmp_path).keep(KEY, tmp_path, where, made={"chore": where.path})

    threads = [threading.Thread(target=fill, args=(where,)) for where in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    entry = Cache(tmp_path).find(KEY)
    assert entry is not None
    assert Cache(tmp_path).read(entry) == (tmp_path / entry.made["chore"]).read_bytes()
