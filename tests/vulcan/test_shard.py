"""What a shard says of itself, and when it is not believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matforge.vulcan import ShardRecord, StagedShard, layout
from matforge.vulcan.identity import GeometryId
from matforge.vulcan.layout import ShardName
from matforge.vulcan.shard import (
    DamagedShardError,
    ShardGoneError,
    WrongRepositoryError,
    load,
    read_footer,
    read_record,
)
from tests.vulcan.batches import GEOMETRY, REPO, forge, vacua


@pytest.fixture
def shard(tmp_path: Path) -> StagedShard:
    """A staged shard, as another process sees it."""
    staged = forge(tmp_path).write(vacua(score=1.5), GEOMETRY, tadpole_charge=12, solver="newton")
    return StagedShard(staged.parquet_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(data)


def foreign(path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), path)


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage")


@pytest.mark.parametrize("damage", [cut, flip, foreign, garbage])
@pytest.mark.parametrize("sidecar", [True, False])
def test_a_damaged_shard_is_found_before_it_is_published(
    shard: StagedShard, damage: Callable[[Path], None], sidecar: bool
) -> None:
    """D13: a file cut short was uploaded and marked as published."""
    if not sidecar:
        shard.sidecar_path.unlink()
    damage(shard.parquet_path)
    with pytest.raises(DamagedShardError, match="run_"):
        load(shard.parquet_path, REPO)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"provenance": {}}',
        '{"provenance": 3, "repo": 1, "sha256": 2, "n_bytes": 3}',
    ],
)
def test_a_sidecar_that_is_of_no_use_is_not_needed(shard: StagedShard, text: str) -> None:
    """D12: a sidecar with '{}' ended status and sync, one with bad JSON hid its shard."""
    before = shard.record
    shard.sidecar_path.write_text(text)
    again = StagedShard(shard.parquet_path)
    assert again.n_rows == 4
    assert again.record.geometry == before.geometry
    assert load(shard.parquet_path, REPO)[0] == before


def test_where_a_shard_goes_is_computed_not_believed(shard: StagedShard) -> None:
    """D14: a path in a sidecar was used as it stood."""
    document = json.loads(shard.sidecar_path.read_text())
    shard.sidecar_path.write_text(json.dumps({**document, "path_in_repo": "../../README.md"}))
    assert StagedShard(shard.parquet_path).record.path_in_repo == shard.path_in_repo
    assert load(shard.parquet_path)[0].path_in_repo == shard.path_in_repo


def test_the_sidecar_of_another_shard_is_not_believed(shard: StagedShard, tmp_path: Path) -> None:
    other = forge(tmp_path).write(vacua(7), GEOMETRY, tadpole_charge=12)
    shard.sidecar_path.write_bytes(other.sidecar_path.read_bytes())
    assert StagedShard(shard.parquet_path).n_rows == 4


def test_a_shard_of_another_repository_is_refused(shard: StagedShard) -> None:
    """D14: a shard staged for one repository was published in another."""
    assert load(shard.parquet_path, REPO)[0].repo == REPO
    with pytest.raises(WrongRepositoryError, match="staged for me/forge, not for me/other"):
        load(shard.parquet_path, "me/other")


def test_a_shard_under_another_name_is_refused(shard: StagedShard) -> None:
    renamed = shard.parquet_path.with_name("h12_2__h11_3__bucket_0__run_other.parquet")
    shard.parquet_path.rename(renamed)
    with pytest.raises(DamagedShardError, match="holds the shard h12_2__h11_3"):
        load(renamed)
    with pytest.raises(DamagedShardError, match="not named like a shard"):
        _ = StagedShard(renamed.with_name("x.parquet")).run_id


def test_a_shard_that_is_gone_is_said_to_be_gone(shard: StagedShard) -> None:
    """D18: a shard deleted meanwhile ended the whole run."""
    shard.parquet_path.unlink()
    with pytest.raises(ShardGoneError, match="not there"):
        load(shard.parquet_path)
    shard.sidecar_path.unlink()
    with pytest.raises(ShardGoneError, match="not there"):
        read_record(shard.parquet_path)


@pytest.mark.parametrize(
    "blob",
    [
        b"[]",
        b"null",
        b"{",
        b'{"run_id": "a"}',
        b'{"run_id":1,"n_rows":4,"geometry":{"h11":1}}',
        b'{"run_id":"a","n_rows":4,"geometry":{"h11":null}}',
        b'{"run_id":"a","n_rows":5,"geometry":{"h11":1}}',
    ],
)
def test_provenance_of_no_use_is_one_clear_error(tmp_path: Path, blob: bytes) -> None:
    """D9: a list, or a geometry without numbers, ended the reading of all shards."""
    path = tmp_path / "h12_-1__h11_1__bucket_0__run_a.parquet"
    table = pa.table({"a": [1, 2, 3, 4]}).replace_schema_metadata({b"matforge.vulcan.provenance": blob})
    pq.write_table(table, path)
    with pytest.raises(DamagedShardError, match="run_a"):
        read_footer(path)


def test_shards_of_the_older_tool_are_read(tmp_path: Path) -> None:
    shard = forge(tmp_path).write(vacua(), GEOMETRY, tadpole_charge=12)
    blob = json.dumps(dict(shard.record.provenance)).encode()
    table = (
        pq.ParquetFile(shard.parquet_path)
        .read()
        .replace_schema_metadata({b"stringforge.vulcan.provenance": blob, b"schema_version": b"1"})
    )
    pq.write_table(table, shard.parquet_path)
    shard.sidecar_path.unlink()
    record, rows = load(shard.parquet_path, REPO)
    assert (record.repo, record.run_id, rows.num_rows) == (None, shard.run_id, 4)


@settings(deadline=None)
@given(
    st.integers(-1, 2**31 - 1), st.integers(0, 2**31 - 1),
    st.from_regex(r"[A-Za-z0-9]([-_]?[A-Za-z0-9]){0,79}", fullmatch=True),
)  # fmt: skip
def test_names_can_be_read_back(h12: int, h11: int, run_id: str) -> None:
    name = ShardName.of(GeometryId.of({"h12": h12, "h11": h11}), run_id)
    assert ShardName.parse(name.local) == name
    assert len(layout.beside(layout.sidecar_of(Path(name.local))).name) <= 255


def test_a_record_survives_the_list_in_a_file_of_many(shard: StagedShard) -> None:
    record = shard.record
    again = ShardRecord.from_dict(json.loads(json.dumps(record.as_dict())))
    assert (again.run_id, again.geometry, again.n_rows, again.sha256) == (
        record.run_id, record.geometry, record.n_rows, record.sha256,
    )  # fmt: skip
    assert read_footer(shard.parquet_path).own_columns == record.own_columns == ("score",)
