"""Staging: whole or not at all, and never over another."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from matforge.model import UsageError
from matforge.vulcan import StagedShard, layout
from matforge.vulcan.schema import SCHEMA
from matforge.vulcan.shard import ShardGoneError, load
from matforge.vulcan.writer import (
    FAILED_DIRNAME,
    PENDING_DIRNAME,
    SYNCED_DIRNAME,
    StagingError,
    list_pending,
    list_shards,
    move_to,
)
from tests.vulcan import forked
from tests.vulcan.batches import GEOMETRY, REPO, files_below, forge, vacua

ROOT = Path(__file__).parents[2]


def run_forked(*arguments: object) -> Any:
    """The program beside, in a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "tests.vulcan.forked", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_a_shard_holds_the_batch_and_its_provenance(tmp_path: Path) -> None:
    shard = forge(tmp_path).write(
        vacua(), GEOMETRY, tadpole_charge=12, solver={"name": "newton"}, provenance={"seed": 42, "note": "x"}
    )
    assert shard.parquet_path.parent == tmp_path / "staging" / PENDING_DIRNAME
    assert shard.parquet_path.name == shard.path_in_repo.replace("/", "__")
    assert shard.path_in_repo == f"h12_2/h11_3/bucket_0/run_{shard.run_id}.parquet"
    assert shard.n_rows == 4
    sidecar = json.loads(shard.sidecar_path.read_text())
    file = pq.ParquetFile(shard.parquet_path)
    blob = json.loads(file.metadata.metadata[b"matforge.vulcan.provenance"])
    assert sidecar["provenance"] == blob
    assert set(blob) == {"schema_version", "run_id", "geometry", "solver", "provenance", "n_rows"}
    assert blob["provenance"] == {"seed": 42, "note": "x"}
    assert file.metadata.metadata[b"schema_version"] == b"1"
    assert {sidecar["path_in_repo"], sidecar["run_id"], sidecar["n_rows"], sidecar["repo"]} == {
        shard.path_in_repo, shard.run_id, 4, REPO
    }  # fmt: skip
    record, table = load(shard.parquet_path, REPO)
    assert record == shard.record
    assert table.schema == SCHEMA
    assert set(table["run_id"].to_pylist()) == {shard.run_id}
    assert set(table["geometry_id"].to_pylist()) == {"045a4612c71c625b"}


def test_every_write_adds_a_shard(tmp_path: Path) -> None:
    """D2: ten writes within one second were one shard."""
    handle = forge(tmp_path)
    staged = [handle.write(vacua(), GEOMETRY, tadpole_charge=12, provenance={"seed": 1}) for _ in range(10)]
    assert len({shard.run_id for shard in staged}) == len(handle.list_pending()) == 10


def test_a_crowd_of_writers_loses_nothing(tmp_path: Path) -> None:
    """D2: six processes in one second left one shard. Under one id of the caller's they leave one."""
    found = run_forked("crowd", tmp_path)
    assert found == {"bad": 0, "shards": forked.PROCESSES * forked.WRITES + 1}


def test_a_writer_killed_at_any_step_leaves_a_whole_shard_or_none(tmp_path: Path) -> None:
    """D12: a kill between two renames left a file that nobody ever saw again."""
    seen = run_forked("kill", "write", tmp_path)
    assert len(seen) > 10
    for one in seen:
        assert one["after"]["pending"] in ([], [4])
        assert one["after"]["strange"] == []
        assert one["again"] == 0
        assert (one["finally"]["pending"], one["finally"]["pending_sidecars"]) == ([4], 1)
    assert [one["ended"] for one in seen] == [-9] * (len(seen) - 1) + [0]
    assert {tuple(one["after"]["pending"]) for one in seen} == {(), (4,)}


def test_the_bytes_are_on_the_disk_before_they_have_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D12: nothing was synced, so a power failure could leave empty files under good names."""
    order: list[str] = []
    for name in ("fdatasync", "link"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, call=call: (order.append(name), call(*a))[1])
    forge(tmp_path).write(vacua(), GEOMETRY, tadpole_charge=12)
    assert order == ["fdatasync", "link"]


def test_a_folder_without_links_is_staged_into_by_renaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    handle = forge(tmp_path)
    first = handle.write(vacua(), GEOMETRY, tadpole_charge=12, run_id="one")
    assert handle.write(vacua(), GEOMETRY, tadpole_charge=12, run_id="one") == first
    moved = move_to(first, handle.staging_dir, SYNCED_DIRNAME)
    assert moved.sidecar_path.is_file()
    assert len(files_below(tmp_path)) == 2


def test_a_move_killed_at_any_step_leaves_the_shard_in_one_place(tmp_path: Path) -> None:
    seen = run_forked("kill", "move", tmp_path)
    assert len(seen) > 4
    for one in seen:
        assert sorted(one["after"]["pending"] + one["after"]["synced"]) == [4]
        assert (one["finally"]["pending"], one["finally"]["synced"]) == ([], [4])
        assert one["finally"]["synced_sidecars"] == 1


def test_what_a_killed_writer_leaves_is_listed(tmp_path: Path) -> None:
    """D12: leftovers and orphans were passed over for ever."""
    handle = forge(tmp_path)
    shard = handle.write(vacua(), GEOMETRY, tadpole_charge=12)
    layout.beside(shard.parquet_path).write_bytes(b"half")
    other = handle.write(vacua(), GEOMETRY, tadpole_charge=12)
    other.parquet_path.unlink()
    (shard.parquet_path.parent / "notes.txt").write_text("mine")
    found = layout.contents(handle.staging_dir, PENDING_DIRNAME)
    assert found.shards == [shard.parquet_path]
    assert found.orphan_sidecars == [other.sidecar_path]
    assert [path.suffix for path in found.leftovers] == [".tmp"]
    assert [path.name for path in found.foreign] == ["notes.txt"]


def test_a_folder_of_shards_is_a_data_set_for_other_tools(tmp_path: Path) -> None:
    """D26: the sidecars made it none."""
    handle = forge(tmp_path)
    for _ in range(3):
        shard = handle.write(vacua(), GEOMETRY, tadpole_charge=12)
    layout.beside(shard.parquet_path).write_bytes(b"half")
    assert ds.dataset(shard.parquet_path.parent).to_table().num_rows == 12


def test_shards_of_any_two_batches_have_the_same_columns(tmp_path: Path) -> None:
    """D11: columns that a batch lacked were left out, and the shards could not be streamed together."""
    handle = forge(tmp_path)
    one = handle.write(vacua(), GEOMETRY, tadpole_charge=12)
    other = handle.write(vacua(is_susy=True, mass2=[[1.0]] * 4), GEOMETRY, tadpole_charge=12, solver="newton")
    schemas = [pq.read_schema(shard.parquet_path) for shard in (one, other)]
    assert schemas[0] == schemas[1]


def test_under_an_id_of_the_callers_the_same_batch_is_staged_once(tmp_path: Path) -> None:
    handle = forge(tmp_path)
    first = handle.write(vacua(), GEOMETRY, tadpole_charge=12, run_id="batch-7")
    assert handle.write(vacua(), GEOMETRY, tadpole_charge=12, run_id="batch-7") == first
    with pytest.raises(UsageError, match="run id 'batch-7' is taken"):
        handle.write(vacua(number=1), GEOMETRY, tadpole_charge=12, run_id="batch-7")
    for state in (FAILED_DIRNAME, SYNCED_DIRNAME):
        moved = move_to(handle.list_pending()[0], handle.staging_dir, state)
        assert handle.write(vacua(), GEOMETRY, tadpole_charge=12, run_id="batch-7") == moved
        assert handle.list_pending() == []
        move_to(moved, handle.staging_dir, PENDING_DIRNAME)
    (first.parquet_path).write_bytes(b"broken")
    with pytest.raises(UsageError, match="taken by a damaged shard"):
        handle.write(vacua(), GEOMETRY, tadpole_charge=12, run_id="batch-7")


def test_a_shard_without_its_sidecar_is_whole_and_gets_it_back(tmp_path: Path) -> None:
    handle = forge(tmp_path)
    shard = handle.write(vacua(score=1.5), GEOMETRY, tadpole_charge=12, run_id="one")
    shard.sidecar_path.unlink()
    assert [(s.run_id, s.n_rows) for s in handle.list_pending()] == [("one", 4)]
    again = handle.write(vacua(score=1.5), GEOMETRY, tadpole_charge=12, run_id="one")
    assert again.sidecar_path.is_file()
    assert again.record == shard.record


def test_staging_needs_no_network_and_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert forge(tmp_path).write(vacua(), GEOMETRY, tadpole_charge=12).n_rows == 4


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    handle = forge(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StagingError, match=r"\.parquet cannot be written: file too large"):
            handle.write(vacua(), GEOMETRY, tadpole_charge=12)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_below(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    """D19: a raw error of the operating system."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StagingError, match="cannot be written: a part of the path is a file"):
        forge(tmp_path, staging_dir=tmp_path / "file" / "staging").write(vacua(), GEOMETRY, tadpole_charge=1)


def test_moving_takes_the_sidecar_along(tmp_path: Path) -> None:
    handle = forge(tmp_path)
    shard = handle.write(vacua(), GEOMETRY, tadpole_charge=12)
    moved = move_to(shard, handle.staging_dir, SYNCED_DIRNAME)
    assert moved.sidecar_path.is_file()
    assert not shard.sidecar_path.exists()
    assert list_pending(handle.staging_dir) == []
    assert list_shards(handle.staging_dir, SYNCED_DIRNAME) == [moved]
    with pytest.raises(ShardGoneError, match="not there"):
        move_to(shard, handle.staging_dir, SYNCED_DIRNAME)
    assert move_to(moved, handle.staging_dir, SYNCED_DIRNAME) == moved
    with pytest.raises(UsageError, match="pending, synced, failed"):
        move_to(moved, handle.staging_dir, "elsewhere")


def test_moving_never_replaces_another_shard(tmp_path: Path) -> None:
    handle = forge(tmp_path)
    shard = handle.write(vacua(), GEOMETRY, tadpole_charge=12)
    copy = handle.staging_dir / SYNCED_DIRNAME / shard.parquet_path.name
    copy.parent.mkdir()
    copy.write_bytes(b"another")
    with pytest.raises(StagingError, match="another shard of the same name"):
        move_to(shard, handle.staging_dir, SYNCED_DIRNAME)
    assert copy.read_bytes() == b"another"
    shutil.copy(shard.parquet_path, copy)
    move_to(shard, handle.staging_dir, SYNCED_DIRNAME)
    assert not shard.parquet_path.exists()


def test_rejected_shards_can_be_put_back_by_hand(tmp_path: Path) -> None:
    handle = forge(tmp_path)
    shard = handle.write(vacua(), GEOMETRY, tadpole_charge=12)
    move_to(shard, handle.staging_dir, FAILED_DIRNAME)
    command = f"mv {handle.staging_dir}/failed/* {handle.staging_dir}/pending/"
    subprocess.run(command, shell=True, check=True)
    assert handle.list_pending() == [shard]
    assert shard.sidecar_path.is_file()


def test_large_batches_are_packed_well(tmp_path: Path) -> None:
    shard = forge(tmp_path).write(vacua(20_000, is_susy=True), GEOMETRY, tadpole_charge=12)
    file = pq.ParquetFile(shard.parquet_path)
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert os.path.getsize(shard.parquet_path) / 20_000 < 60
    assert load(shard.parquet_path)[1].num_rows == 20_000


def test_equal_shards_are_equal(tmp_path: Path) -> None:
    shard = forge(tmp_path).write(vacua(), GEOMETRY, tadpole_charge=12)
    assert StagedShard(shard.parquet_path) == shard
    assert {shard: 1}[StagedShard(shard.parquet_path)] == 1
    assert shard.parquet_path.name in repr(shard)
