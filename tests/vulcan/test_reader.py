"""Queries: the right rows, the right types, and nothing opened that need not be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matforge.model import UsageError
from matforge.vulcan import Vulcan, VulcanReader, rows, sources
from matforge.vulcan.layout import PARTS_DIRNAME, PENDING_DIRNAME, SYNCED_DIRNAME
from matforge.vulcan.schema import NAMES
from matforge.vulcan.writer import list_shards
from tests.vulcan.batches import GEOMETRY, REPO, forge, publish, published, vacua

GEOMETRIES = [{"h11": 3, "h12": 2, "ks_id": ks, "triang_id": 0} for ks in (384564, 12345, 67890, 11111)]


@pytest.fixture
def handle(tmp_path: Path) -> Vulcan:
    """Four geometries; truth values are known of the first, a column of one's own of the second."""
    frames = [vacua(4, 0, is_susy=[True, False, True, True], solver_name="newton"), vacua(4, 1, score=2.5),
              vacua(4, 2), vacua(4, 3, is_susy=False)]  # fmt: skip
    return published(tmp_path, zip(GEOMETRIES, frames, strict=True))


@pytest.fixture(params=["own files", "parts"])
def reader(request: pytest.FixtureRequest, handle: Vulcan, monkeypatch: pytest.MonkeyPatch) -> VulcanReader:
    """A reader that opens the shards themselves, and one that reads many at once."""
    if request.param == "parts":
        monkeypatch.setattr(sources, "FEW", 0)
        monkeypatch.setattr(sources, "MANY", 1)
    return VulcanReader.from_local(handle.staging_dir)


def test_all_rows_are_there_once(reader: VulcanReader) -> None:
    rows = reader.query()
    assert len(rows) == 16
    assert rows.groupby("ks_id").size().to_dict() == {384564: 4, 12345: 4, 67890: 4, 11111: 4}
    assert list(rows)[: len(NAMES)] == list(NAMES)
    assert sorted(rows["score"].dropna()) == [2.5] * 4
    expected = vacua(4, 2)
    found = rows[rows["ks_id"] == 67890]
    assert [list(flux) for flux in found["flux"]] == expected["flux"].tolist()
    assert found["tau_im"].tolist() == expected["tau_im"].tolist()


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"ks_id": 384564}, 4),
        ({"ks_id": np.int64(384564)}, 4),
        ({"ks_id": [384564, 12345]}, 8),
        ({"ks_id": {384564, 1}}, 4),
        ({"ks_id": (12345, 67890)}, 8),
        ({"ks_id": (None, 12345)}, 8),
        ({"ks_id": []}, 0),
        ({"ks_id": None}, 16),
        ({"conifold_id": -1}, 16),
        ({"cicy_id": 7}, 0),
        ({"h12": 2, "solver_name": "newton", "is_susy": True}, 3),
        ({"geometry_id": "045a4612c71c625b"}, 4),
        ({"created_at": (datetime(2020, 1, 1, tzinfo=UTC), None)}, 16),
        ({"tadpole_charge": (12, 12)}, 16),
        ({"where": pc.field("tau_im") > 5}, 0),
        ({"where": pc.field("is_susy").is_null()}, 8),
    ],
)
def test_filters_find_what_they_say(reader: VulcanReader, filters: dict[str, Any], count: int) -> None:
    """D8: only some keys could be asked for, and no ranges."""
    assert len(reader.query(**filters)) == count


@pytest.mark.parametrize(("value", "count"), [(True, 3), (False, 5)])
def test_a_row_without_a_value_meets_no_condition_on_it(
    reader: VulcanReader, value: bool, count: int
) -> None:
    """D7: all rows of a shard without the column were returned for either value."""
    assert len(reader.query(is_susy=value)) == count
    assert len(reader.query(solver_name="other")) == 0


def test_only_files_that_can_match_are_opened(handle: Vulcan) -> None:
    reader = VulcanReader.from_local(handle.staging_dir)
    files, _ = reader.plan({"ks_id": 12345, "is_susy": True})
    assert len(files) == 1
    for path in (handle.staging_dir / SYNCED_DIRNAME).glob("h12_*"):
        if path.name != Path(files[0].path).name:
            path.unlink()  # a query that opened one of these would fail or warn
    reader.source._catalog._marks["synced"].mtime_ns = (
        (handle.staging_dir / SYNCED_DIRNAME).stat().st_mtime_ns
    )  # type: ignore[attr-defined]
    assert len(reader.query(ks_id=12345)) == 4


@pytest.mark.parametrize(
    ("filters", "error", "sentence"),
    [
        ({"ksid": 1}, TypeError, "no filter 'ksid'; known are run_id"),
        ({"flux": [1]}, TypeError, "no filter 'flux'"),
        ({"ks_id": "384564"}, UsageError, "ks_id is a whole number, so it cannot be compared with '384564'"),
        ({"ks_id": 1.5}, UsageError, "whole number"),
        ({"ks_id": 2**40}, UsageError, "never is"),
        ({"is_susy": 1}, UsageError, "True or False"),
        ({"run_id": 7}, UsageError, "text"),
        ({"ks_id": (1, 2, 3)}, UsageError, "no range"),
        ({"solver_name": ("a", "b")}, UsageError, "no range"),
        ({"columns": "flux"}, UsageError, "columns is a list"),
        ({"columns": ["flux", "flux"]}, UsageError, "columns is a list"),
        ({"columns": ["fluxx"]}, KeyError, "column 'fluxx'"),
        ({"columns": ["fluxx"], "ks_id": 5}, KeyError, "column 'fluxx'"),  # also where nothing is found
        ({"where": "tau_im > 2"}, UsageError, "pyarrow.compute expression"),
        ({"where": pc.field("fluxx") > 1}, UsageError, "condition cannot be applied"),
        ({"where": pc.field("flux") > 1}, UsageError, "condition cannot be applied"),
    ],
)
def test_what_cannot_be_asked_is_told(
    reader: VulcanReader, filters: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    """D8: a number as text found nothing, without a word."""
    with pytest.raises(error, match=sentence):
        reader.query(**filters)


def test_a_shard_that_is_published_while_it_is_read_is_read_all_the_same(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    handle = forge(tmp_path)
    for number in range(3):
        handle.write(vacua(4, number), GEOMETRY, tadpole_charge=12)
    files, request = handle.reader("local").plan({})
    publish(handle)
    assert rows.read(files, request).num_rows == 12
    assert [str(one.message) for one in recwarn if "left out" in str(one.message)] == []


def test_a_shard_that_came_back_counts_once(handle: Vulcan) -> None:
    one = list_shards(handle.staging_dir, SYNCED_DIRNAME)[0]
    shutil.copy(one.parquet_path, handle.staging_dir / PENDING_DIRNAME)  # a late rsync
    assert len(handle.query(source="local")) == 16
    assert len(handle.query(source="pending")) == 4


def test_a_run_is_named_by_text(reader: VulcanReader) -> None:
    with pytest.raises(UsageError, match="run_id is text, not 3"):
        reader.fetch_run(3)  # type: ignore[arg-type]


def test_columns_come_in_the_order_asked_for(reader: VulcanReader) -> None:
    rows = reader.query(columns=["tau_im", "score", "run_id"])
    assert list(rows) == ["tau_im", "score", "run_id"]
    assert rows["score"].notna().sum() == 4
    assert list(reader.read_columns(["mass2"])) == ["mass2"]


@pytest.mark.parametrize("columns", [None, ["is_susy", "flux", "seed"]])
def test_an_answer_without_rows_has_the_same_columns_and_types(reader: VulcanReader, columns: Any) -> None:
    """D8: nothing found meant a frame without columns, and the next line of the tutorial failed."""
    some, none = reader.query(columns=columns, ks_id=67890), reader.query(columns=columns, ks_id=5)
    assert len(none) == 0
    assert none.dtypes.to_dict() == some.dtypes.to_dict()


def test_an_optional_column_has_one_type_whatever_is_missing(reader: VulcanReader) -> None:
    """D8, D10: a column that one shard lacks was an error, or a column of objects."""
    for ks_id in (384564, 67890):
        kinds = reader.query(ks_id=ks_id)[["is_susy", "seed", "n_iterations", "residual"]].dtypes
        assert kinds.astype(str).tolist() == ["boolean", "Int64", "Int32", "float64"]


def test_what_is_fetched_is_ones_own(reader: VulcanReader) -> None:
    """D8: editing a frame changed what was fetched later."""
    shard = reader.catalog().iloc[0]
    first = reader.fetch_run(shard["run_id"])
    first.loc[:, "tau_im"] = 0.0
    with pytest.raises(ValueError, match="read-only"):
        first["flux"].iloc[0][:] = 99
    again = reader.fetch_shard(shard["path_in_repo"])
    assert (again["tau_im"] > 0).all()
    with pytest.raises(FileNotFoundError, match="no shard with run_id 'x'"):
        reader.fetch_run("x")


def test_no_more_than_so_many_shards_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matforge.vulcan.reader.CACHED_SHARDS", 2)
    reader = published(tmp_path, [(g, vacua(2)) for g in GEOMETRIES]).reader()
    for run_id in reader.catalog()["run_id"]:
        assert len(reader.fetch_run(run_id)) == 2
    assert len(reader._shards) == 2


def test_own_columns_of_different_types_are_read_as_text(tmp_path: Path) -> None:
    handle = published(
        tmp_path, [(GEOMETRY, vacua(2, label=[1, 2])), (GEOMETRY, vacua(2, 1, label=["a", "b"]))]
    )
    assert sorted(handle.query(columns=["label"])["label"]) == ["1", "2", "a", "b"]
    numbers = published(tmp_path / "n", [(GEOMETRY, vacua(1, x=[1])), (GEOMETRY, vacua(1, 1, x=[2.5]))])
    assert sorted(numbers.query(columns=["x"])["x"]) == [1.0, 2.5]


def test_pending_shards_can_be_read_too(tmp_path: Path) -> None:
    handle = published(tmp_path, [(GEOMETRY, vacua(4))])
    handle.write(vacua(5, 1), GEOMETRY, tadpole_charge=1)
    assert [len(handle.query(source=s)) for s in ("synced", "pending", "local")] == [4, 5, 9]
    with pytest.raises(UsageError, match="A source is synced, pending, local or hub"):
        handle.reader("elsewhere")


def test_rows_are_read_from_parts_until_their_shard_is_gone(
    handle: Vulcan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D25: thousands of small files were opened for every query."""
    monkeypatch.setattr(sources, "FEW", 0)
    monkeypatch.setattr(sources, "MANY", 3)
    before = handle.query()
    parts = list((handle.staging_dir / PARTS_DIRNAME).iterdir())
    assert len(parts) == 1
    files, _ = VulcanReader.from_local(handle.staging_dir).plan({})
    assert [Path(file.path) for file in files] == parts
    gone = sorted((handle.staging_dir / SYNCED_DIRNAME).glob("h12_*"))[0]
    run_id = gone.stem.partition("run_")[2]
    gone.unlink()
    assert len(handle.query()) == 12
    assert run_id not in set(handle.query()["run_id"])
    handle.write(vacua(3, 9), GEOMETRY, tadpole_charge=1)
    publish(handle)
    assert len(handle.query()) == 15
    parts[0].write_bytes(b"garbage")
    assert len(VulcanReader.from_local(handle.staging_dir).query()) == 15
    assert len(before) == 16


def test_parts_without_living_shards_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FEW", 0)
    monkeypatch.setattr(sources, "MANY", 1)
    handle = published(tmp_path, [(GEOMETRY, vacua(4))])
    handle.query()
    for path in (handle.staging_dir / SYNCED_DIRNAME).iterdir():
        path.unlink()
    handle.write(vacua(5, 1), GEOMETRY, tadpole_charge=1)
    publish(handle)
    assert len(handle.query()) == 5
    assert len(list((handle.staging_dir / PARTS_DIRNAME).iterdir())) == 1


def test_a_damaged_shard_does_not_keep_the_others_out_of_parts(
    handle: Vulcan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "FEW", 0)
    monkeypatch.setattr(sources, "MANY", 3)
    folder = handle.staging_dir / SYNCED_DIRNAME
    bad, bare = sorted(folder.glob("h12_*"))[:2]
    data = bytearray(bad.read_bytes())
    data[100:3000] = bytes(2900)  # its footer is whole
    bad.write_bytes(data)
    (folder / f"_{bare.name}.meta.json").unlink()
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match=rf"{bad.name} is left out"):
            assert len(VulcanReader.from_local(handle.staging_dir).query()) == 12
    files, _ = VulcanReader.from_local(handle.staging_dir).plan({})
    assert [Path(file.path).parent.name for file in files] == [PARTS_DIRNAME, SYNCED_DIRNAME]


def test_a_shard_that_vanishes_while_it_is_read_is_left_out(handle: Vulcan) -> None:
    reader = VulcanReader.from_local(handle.staging_dir)
    files, request = reader.plan({})
    Path(files[0].path).unlink()

    with pytest.warns(RuntimeWarning, match="left out"):
        assert rows.read(files, request).num_rows == 12


Predicate = Callable[[pd.DataFrame], Any]


@settings(deadline=None, max_examples=25)
@given(
    ks=st.lists(st.sampled_from([384564, 12345, 5]), max_size=3),
    low=st.floats(1, 2) | st.none(),
    susy=st.sampled_from([None, True, False]),
)
def test_a_query_equals_filtering_by_hand(
    shared: Vulcan, ks: list[int], low: float | None, susy: bool | None
) -> None:
    everything = shared.query()
    mask = pd.Series(True, everything.index)
    filters: dict[str, Any] = {"is_susy": susy}
    if ks:
        filters["ks_id"] = ks
        mask &= everything["ks_id"].isin(ks)
    if low is not None:
        filters["tau_im"] = (low, None)
        mask &= everything["tau_im"] >= low
    if susy is not None:
        mask &= (everything["is_susy"] == susy).fillna(False)
    found = shared.query(**filters)
    assert sorted(found["tau_im"]) == sorted(everything[mask.astype(bool)]["tau_im"])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Vulcan:
    """Some shards that no test changes."""
    frames = [vacua(6, n, **({"is_susy": [True, False] * 3} if n % 2 else {})) for n in range(4)]
    return published(tmp_path_factory.mktemp("shared"), zip(GEOMETRIES, frames, strict=True))


def test_readers_say_what_they_read(handle: Vulcan) -> None:
    assert str(handle.staging_dir) in repr(handle.reader())
    assert "me/forge@v1" in repr(VulcanReader.from_hf(REPO, "v1"))
    with pytest.raises(UsageError, match="owner/name"):
        VulcanReader.from_hf("nothing")
    assert forge(handle.staging_dir.parent).reader("hub").source.repo == REPO  # type: ignore[attr-defined]
