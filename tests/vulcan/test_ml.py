"""Splits of what is there."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from matforge.model import UsageError
from matforge.vulcan import FeatureSpec, SplitSpec, Vulcan, VulcanMLView, sources
from tests.vulcan.batches import GEOMETRY, forge, published, vacua

NAMES = ("train", "val", "test")
GEOMETRIES = [{"h11": 3, "h12": 2, "ks_id": ks, "triang_id": 0} for ks in (384564, 12345, 67890, 11111)]
"""In val, train, train or test: one of each at least."""
SPEC = FeatureSpec(["flux", "moduli_re", "tau_im", "is_susy"], list_max_len=14)


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> Vulcan:
    """Four geometries of six vacua each."""
    frames = [vacua(6, n, **({"is_susy": [True, False] * 3} if n else {})) for n in range(4)]
    return published(tmp_path_factory.mktemp("ml"), zip(GEOMETRIES, frames, strict=True))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Vulcan:
    """One geometry, in two shards."""
    frames = [(GEOMETRY, vacua(100)), (GEOMETRY, vacua(100, 1))]
    return published(tmp_path_factory.mktemp("alone"), frames)


def keys(frame: pd.DataFrame) -> list[float]:
    return sorted(frame["tau_im"])


@pytest.mark.parametrize("by", ["geometry", "row"])
@pytest.mark.parametrize("spec", [None, SPEC])
def test_the_splits_together_are_everything_once(alone: Vulcan, handle: Vulcan, by: str, spec: Any) -> None:
    for one in (alone, handle):
        view = one.ml_view(by=by)
        parts = [view.as_dataframe(name, feature_spec=spec) for name in NAMES]
        assert keys(pd.concat(parts)) == keys(one.query())
        kinds = [{name: str(kind) for name, kind in part.dtypes.items()} for part in parts]
        assert kinds[0] == kinds[1] == kinds[2]


def test_a_geometry_is_in_one_split_only(handle: Vulcan) -> None:
    view = handle.ml_view()
    table = view.split_assignments()
    assert dict(zip(table["geometry_id"], table["split"], strict=True))["045a4612c71c625b"] == "val"
    assert len(table) == table["geometry_id"].nunique() == 4
    for name in NAMES:
        ids = set(view.as_dataframe(name, feature_spec=SPEC)["geometry_id"])
        assert ids == set(table[table["split"] == name]["geometry_id"])


def test_a_single_geometry_can_be_split_by_row(alone: Vulcan) -> None:
    view = alone.ml_view(by="row", fractions=(0.5, 0.25, 0.25))
    sizes = {name: len(view.as_dataframe(name)) for name in NAMES}
    assert sum(sizes.values()) == 200
    assert min(sizes.values()) > 25
    assert len(view.split_assignments()) == 3
    assert "flux" not in view.as_dataframe("val", FeatureSpec(["tau_im"]))


def test_only_files_of_the_split_are_opened(handle: Vulcan) -> None:
    """D10: everything was read, then thrown away."""
    view = handle.ml_view()
    opened = {name: len(view.plan(name).files) for name in NAMES}
    assert sum(opened.values()) == 4
    assert opened["val"] == 1


def test_a_split_may_be_cut_down_by_conditions(handle: Vulcan) -> None:
    view = handle.ml_view(feature_spec=SPEC)
    ids = view.split_assignments()
    geometry = ids[ids["split"] == "train"]["geometry_id"].iloc[0]
    rows = view.as_dataframe("train", query_filters={"geometry_id": geometry, "is_susy": True})
    assert set(rows["geometry_id"]) == {geometry}
    assert len(rows) == 3
    assert len(view.as_dataframe("train", query_filters={"geometry_id": "045a4612c71c625b"})) == 0
    assert len(view.as_dataframe("train", query_filters={"where": pc.field("tau_im") > 9})) == 0


def test_an_empty_split_has_columns_of_the_right_shape(tmp_path: Path) -> None:
    """D10: its columns had no shape, and the truth values no type."""
    view = published(tmp_path, [(GEOMETRY, vacua(3))]).ml_view(feature_spec=SPEC)
    some, none = view.as_arrow("val"), view.as_arrow("test")
    assert (some.num_rows, none.num_rows) == (3, 0)
    assert some.schema == none.schema
    assert none.schema.field("flux").type == pa.list_(pa.int32(), 14)
    assert str(view.as_dataframe("val")["is_susy"].dtype) == "boolean"


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda v: v.as_dataframe("dev"), ValueError, "no split 'dev'"),
        (lambda v: v.as_dataframe("train", FeatureSpec(["fluxx"])), KeyError, "fluxx"),
        (lambda v: v.as_dataframe("train", ["flux"]), UsageError, "feature_spec is a FeatureSpec"),
        (lambda v: v.as_dataframe("train", None, {"columns": ["flux"]}), UsageError, "with a FeatureSpec"),
        (lambda v: v.as_dataframe("train", None, {"ksid": 1}), TypeError, "no filter 'ksid'"),
    ],
)
def test_what_cannot_be_asked_is_told(
    handle: Vulcan, call: Any, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        call(handle.ml_view())


@pytest.mark.parametrize(
    "arguments", [{"fractions": (0.5, 0.5)}, {"fractions": (1, 1, -1)}, {"splits": "abc"}, {"by": "x"}]
)
def test_what_is_no_split_is_refused(handle: Vulcan, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"[Ss]plits"):
        handle.ml_view(**arguments)


def test_names_fractions_and_salt_are_those_asked_for(tmp_path: Path, handle: Vulcan) -> None:
    assert handle.ml_view(splits=("a", "b", "c"), salt="x").spec == SplitSpec(names=("a", "b", "c"), salt="x")
    own = forge(tmp_path, splits=SplitSpec(salt="mine"))
    assert own.ml_view().spec.salt == "mine"
    assert own.ml_view(salt="other").spec.salt == "other"
    assert "train" in repr(own.ml_view())


def test_parts_and_own_files_give_the_same_split(handle: Vulcan, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = handle.ml_view().as_dataframe("train", SPEC)
    monkeypatch.setattr(sources, "FEW", 0)
    monkeypatch.setattr(sources, "MANY", 1)
    found = VulcanMLView(handle.reader("local")).as_dataframe("train", SPEC)
    assert keys(found) == keys(expected)


def test_a_split_streams(handle: Vulcan) -> None:
    """D10: all of it was loaded into memory, and an empty split lost its types."""
    datasets = pytest.importorskip("datasets", reason="the extra 'datasets' is not installed")
    view = handle.ml_view(feature_spec=SPEC)
    stream = view.as_hf_dataset("train")
    assert isinstance(stream, datasets.IterableDataset)
    rows = list(stream)
    assert sorted(row["tau_im"] for row in rows) == keys(view.as_dataframe("train"))
    assert all(len(row["flux"]) == 14 for row in rows)
    assert [row["tau_im"] for row in pickle.loads(pickle.dumps(stream))] == [row["tau_im"] for row in rows]
    nothing = view.as_hf_dataset("train", query_filters={"ks_id": 5})
    assert list(nothing) == []
    assert nothing.features == stream.features
    assert list(view.as_hf_dataset("train", query_filters={"where": pc.field("tau_im") > 9})) == []


def test_a_split_streams_by_row_too(alone: Vulcan) -> None:
    pytest.importorskip("datasets", reason="the extra 'datasets' is not installed")
    view = alone.ml_view(by="row")
    assert sorted(row["tau_im"] for row in view.as_hf_dataset("val")) == keys(view.as_dataframe("val"))


@pytest.mark.parametrize("parts", [False, True])
def test_columns_of_ones_own_stream_with_one_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: bool
) -> None:
    pytest.importorskip("datasets", reason="the extra 'datasets' is not installed")
    if parts:
        monkeypatch.setattr(sources, "FEW", 0)
        monkeypatch.setattr(sources, "MANY", 1)
    frames = [vacua(2), vacua(2, 1, score=[1, 2], label="a"), vacua(2, 2, score=[0.5, 1.5])]
    view = published(tmp_path, [(GEOMETRY, frame) for frame in frames]).ml_view()
    rows = list(view.as_hf_dataset("val", FeatureSpec(["score", "tau_im"])))
    assert sorted(row["score"] for row in rows if row["score"] is not None) == [0.5, 1.0, 1.5, 2.0]
    whole = view.as_hf_dataset("val")
    assert {"score", "label"} <= set(whole.features)
    assert [row["label"] for row in whole if row["label"]] == ["a", "a"]
    with pytest.raises(KeyError, match="'scores'"):
        view.as_hf_dataset("val", FeatureSpec(["scores"]))


def test_a_split_fits_into_memory_if_asked(handle: Vulcan) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra 'datasets' is not installed")
    whole = handle.ml_view(feature_spec=SPEC).as_hf_dataset("val", streaming=False)
    assert isinstance(whole, datasets.Dataset)
    assert len(whole) == 6


def test_without_the_library_the_extra_is_named(handle: Vulcan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'matforge\[datasets\]'"):
        handle.ml_view().as_hf_dataset("train")
