"""The catalogue: what there is, without opening it again and again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from matforge.vulcan import Vulcan, VulcanReader, catalog, shard
from matforge.vulcan.catalog import LocalCatalog
from matforge.vulcan.layout import CATALOG_NAME, SYNCED_DIRNAME
from matforge.vulcan.reader import SchemaVersionError
from tests.vulcan.batches import GEOMETRY, forge, publish, published, vacua

OTHER = {"h11": 3, "h12": 2, "ks_id": 12345, "triang_id": 0}


@pytest.fixture
def handle(tmp_path: Path) -> Vulcan:
    """Three published shards of two geometries."""
    return published(tmp_path, [(GEOMETRY, vacua(4)), (OTHER, vacua(5)), (GEOMETRY, vacua(6, number=1))])


def fresh(handle: Vulcan) -> VulcanReader:
    """A reader that knows nothing yet."""
    return VulcanReader.from_local(handle.staging_dir)


def opened(handle: Vulcan, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that the next catalogue looks at."""
    seen: list[str] = []
    look = shard.read_record

    def watched(path: Path, size: int | None = None) -> shard.ShardRecord:
        seen.append(path.name)
        return look(path, size)

    monkeypatch.setattr(catalog, "read_record", watched)
    fresh(handle).catalog()
    monkeypatch.setattr(catalog, "read_record", look)
    return seen


def age(handle: Vulcan, state: str = SYNCED_DIRNAME) -> None:
    """Let the folder's last change lie some time back."""
    os.utime(handle.staging_dir / state, (1e9, 1e9))


def test_there_is_one_row_for_each_shard(handle: Vulcan) -> None:
    found = fresh(handle).catalog()
    assert found["n_rows"].sum() == 15
    assert set(found["ks_id"]) == {384564, 12345}
    assert found["h11"].tolist() == [3, 3, 3]
    assert list(found)[:3] == ["path_in_repo", "run_id", "geometry_id"]
    assert found.attrs["n_skipped"] == 0
    assert handle.catalog().equals(found)


def test_a_shard_is_looked_at_once(handle: Vulcan, monkeypatch: pytest.MonkeyPatch) -> None:
    """D25: every query read the footers of all shards."""
    assert len(opened(handle, monkeypatch)) == 3
    assert opened(handle, monkeypatch) == []
    new = handle.write(vacua(7), GEOMETRY, tadpole_charge=1)
    publish(handle)
    assert opened(handle, monkeypatch) == [new.parquet_path.name]


def test_a_folder_that_did_not_change_is_not_even_listed(
    handle: Vulcan, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(handle)
    fresh(handle).catalog()
    monkeypatch.setattr(os, "scandir", lambda path: pytest.fail(f"{path} was listed"))
    assert len(fresh(handle).catalog()) == 3
    assert len(fresh(handle).query(ks_id=12345)) == 5


def test_a_catalogue_with_nothing_new_in_it_is_not_written_again(handle: Vulcan) -> None:
    path = handle.staging_dir / CATALOG_NAME

    def written() -> int:
        fresh(handle).catalog()
        return path.stat().st_ino

    first = written()
    os.utime(handle.staging_dir / SYNCED_DIRNAME)  # it may change any moment, so it is listed every time
    assert [written(), written()] == [first, first]
    age(handle)
    settled = written()
    assert settled != first
    assert written() == settled


def test_what_just_changed_is_listed_again(handle: Vulcan) -> None:
    reader = fresh(handle)
    assert len(reader.catalog()) == 3
    handle.write(vacua(7), GEOMETRY, tadpole_charge=1)
    publish(handle)
    assert len(reader.catalog()) == 4
    shutil.rmtree(handle.staging_dir / SYNCED_DIRNAME)
    assert len(reader.catalog()) == 0


def test_a_shard_keeps_its_place_in_the_catalogue_when_it_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = forge(tmp_path)
    handle.write(vacua(), GEOMETRY, tadpole_charge=1)
    assert len(VulcanReader.from_local(handle.staging_dir, source="pending").catalog()) == 1
    publish(handle)
    assert opened(handle, monkeypatch) == []
    assert len(fresh(handle).catalog()) == 1
    assert len(VulcanReader.from_local(handle.staging_dir, source="pending").catalog()) == 0
    assert len(VulcanReader.from_local(handle.staging_dir, source="local").catalog()) == 1


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_catalogue_that_is_of_no_use_is_made_again(handle: Vulcan, content: bytes | None) -> None:
    expected = fresh(handle).catalog()
    path = handle.staging_dir / CATALOG_NAME
    if content is None:
        pq.write_table(pa.table({"a": [1]}), path)
    else:
        path.write_bytes(content)
    assert fresh(handle).catalog().equals(expected)
    assert pq.read_table(path).num_rows == 3


def test_what_cannot_be_read_is_left_out_with_a_warning(handle: Vulcan) -> None:
    """D9: one shard with odd provenance ended the reading of all, and a foreign file was read as one."""
    folder = handle.staging_dir / SYNCED_DIRNAME
    bad = sorted(folder.glob("h12_*"))[0]
    bad.write_bytes(bad.read_bytes()[:-50])
    pq.write_table(pa.table({"flux": [1]}), folder / "foreign.parquet")
    (folder / "notes.txt").write_text("mine")
    age(handle)
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="left out") as seen:
            found = fresh(handle).catalog()
        assert len(found) == 2
        assert found.attrs["n_skipped"] == 2
        assert any("not named like a shard" in str(one.message) for one in seen)
    with pytest.warns(RuntimeWarning, match="left out"):
        assert len(fresh(handle).query()) == int(found["n_rows"].sum())


def test_another_version_of_the_schema_is_told_if_asked(handle: Vulcan) -> None:
    fresh(handle).catalog(strict=True)
    path = handle.write(vacua(), GEOMETRY, tadpole_charge=1).parquet_path
    text = path.with_name(f"_{path.name}.meta.json").read_text()
    path.with_name(f"_{path.name}.meta.json").write_text(
        text.replace('"schema_version":"1"', '"schema_version":"9"')
    )
    publish(handle)
    assert len(fresh(handle).catalog()) == 4
    with pytest.raises(ValueError, match="schema version '9', not '1'") as raised:
        fresh(handle).catalog(strict=True)
    assert isinstance(raised.value, SchemaVersionError)


def test_a_folder_that_cannot_be_written_can_be_read(handle: Vulcan, monkeypatch: pytest.MonkeyPatch) -> None:
    """D19, the reading half."""

    def refuse(*arguments: object, **keywords: object) -> None:
        raise PermissionError(13, "Permission denied")

    (handle.staging_dir / CATALOG_NAME).unlink(missing_ok=True)
    monkeypatch.setattr(os, "replace", refuse)
    assert len(fresh(handle).catalog()) == 3
    assert len(fresh(handle).query()) == 15
    assert not (handle.staging_dir / CATALOG_NAME).exists()


def test_refreshing_looks_at_everything_again(handle: Vulcan) -> None:
    reader = fresh(handle)
    before = reader.catalog()
    assert reader.catalog(refresh=True).equals(before)


def test_a_publisher_can_bring_it_up_to_date(handle: Vulcan, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.refresh(handle.staging_dir)
    assert opened(handle, monkeypatch) == []


def test_entries_have_one_type_however_few_there_are(tmp_path: Path) -> None:
    empty = LocalCatalog(tmp_path, ("synced",)).entries()
    assert empty.schema == catalog.ENTRY_SCHEMA
    assert isinstance(VulcanReader.from_local(tmp_path).catalog(), pd.DataFrame)
