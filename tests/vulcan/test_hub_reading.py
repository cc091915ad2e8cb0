"""What was published is read back from the Hub, by us and by other tools."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pandas as pd
import pytest

from matforge.model import MatForgeError
from matforge.vulcan import FeatureSpec, SplitSpec, Vulcan, VulcanMLView, VulcanReader
from matforge.vulcan.errors import RefusedError
from tests.vulcan.batches import REPO, forge, vacua
from tests.vulcan.hub import LoopbackHub

GEOMETRIES = [{"h11": 3, "h12": 2, "ks_id": ks, "triang_id": 0} for ks in (384564, 12345, 67890, 11111)]


def sync(handle: Vulcan, hub: LoopbackHub, **options: Any) -> None:
    report = handle.sync(token="hf_x", endpoint=hub.endpoint, **options)
    assert report.errors == []
    assert handle.list_pending() == []


def remote(hub: LoopbackHub, revision: str | None = None) -> VulcanReader:
    return VulcanReader.from_hf(REPO, revision, "hf_x", endpoint=hub.endpoint)


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """The same rows, in any order."""
    keys = ["run_id", "tau_im"]
    assert len(one) == len(other)
    names = sorted(set(one) if len(one) else set(one) & set(other))
    pd.testing.assert_frame_equal(*(f.sort_values(keys)[names].reset_index(drop=True) for f in (one, other)))


@pytest.fixture(params=["compact", "apart", "by row"])
def published(request: pytest.FixtureRequest, tmp_path: Path, hub: LoopbackHub) -> Vulcan:
    """Four geometries published, one with a column of its producer's own."""
    handle = forge(tmp_path, splits=SplitSpec(by="row")) if request.param == "by row" else forge(tmp_path)
    for number, geometry in enumerate(GEOMETRIES):
        own = {"score": [1, 2, 3, 4, 5]} if number == 1 else {}
        handle.write(vacua(5, number, is_susy=True, **own), geometry, tadpole_charge=12)
    sync(handle, hub, compact=request.param != "apart")
    return handle


def test_both_sources_have_the_same_rows(published: Vulcan, hub: LoopbackHub) -> None:
    reader = remote(hub)
    same(reader.query(), published.query())
    assert sorted(reader.query(columns=["score"])["score"].dropna()) == [1, 2, 3, 4, 5]
    ours, theirs = published.catalog(), reader.catalog()
    assert sorted(zip(ours["run_id"], ours["n_rows"], strict=True)) == sorted(
        zip(theirs["run_id"], theirs["n_rows"], strict=True)
    )
    assert theirs.attrs["n_skipped"] == 0


def test_filters_and_runs_find_the_same(published: Vulcan, hub: LoopbackHub) -> None:
    reader = remote(hub)
    for filters in ({"ks_id": 12345}, {"ks_id": [384564, 1]}, {"is_susy": False}, {"tau_im": (1.5, None)}):
        same(reader.query(**filters), published.query(**filters))
    run_id = published.catalog()["run_id"][0]
    same(reader.fetch_run(run_id), published.reader().fetch_run(run_id))


def test_the_splits_of_the_repository_are_those_of_the_view(published: Vulcan, hub: LoopbackHub) -> None:
    reader = remote(hub)
    view = VulcanMLView(reader, feature_spec=FeatureSpec(["flux", "tau_im"], list_max_len=12))
    local = published.ml_view(by=view.spec.by, feature_spec=view.feature_spec)
    for name in ("train", "val", "test"):
        assert sorted(view.as_dataframe(name)["tau_im"]) == sorted(local.as_dataframe(name)["tau_im"])


def test_nothing_but_what_is_needed_is_downloaded(tmp_path: Path, hub: LoopbackHub) -> None:
    handle = forge(tmp_path)
    for number, geometry in enumerate(GEOMETRIES):
        handle.write(vacua(20_000, number), geometry, tadpole_charge=12)
    sync(handle, hub)
    reader = remote(hub)
    reader.catalog()
    before = len(hub.log)
    assert len(reader.query(ks_id=384564, columns=["tau_im"])) == 20_000
    asked = [entry for entry in list(hub.log)[before:] if "resolve" in entry.path]
    assert {unquote(entry.path).partition("split=")[2][:4] for entry in asked} == {"val/"}


def test_a_repository_that_is_not_there_is_one_sentence(hub: LoopbackHub) -> None:
    with pytest.raises(MatForgeError, match="me/other@main cannot be listed"):
        VulcanReader.from_hf("me/other", token="hf_x", endpoint=hub.endpoint).query()


def test_a_hub_that_refuses_is_one_sentence(published: Vulcan, hub: LoopbackHub) -> None:
    hub.faults.add(r"matforge\.json", 403, times=-1)
    with pytest.raises(MatForgeError, match=r"me/forge@main cannot be read: .*403"):
        VulcanMLView(remote(hub))


@pytest.mark.parametrize("seen", [True, False], ids=["listed before", "new"])
def test_a_hub_that_refuses_files_is_told_and_no_row_is_left_out(
    published: Vulcan, hub: LoopbackHub, seen: bool
) -> None:
    """The answer was empty, with a warning for each file."""
    reader = remote(hub)
    if seen:
        reader.catalog()
    hub.faults.add("resolve.*parquet", 403, times=-1)
    with pytest.raises(RefusedError, match=r"part-.*cannot be read: 403|run_.*cannot be read: 403"):
        reader.query()
    hub.faults.clear()
    assert len(reader.query()) == 20


def test_a_hub_that_refuses_files_is_told_while_they_are_streamed(
    published: Vulcan, hub: LoopbackHub
) -> None:
    view = VulcanMLView(remote(hub))
    rows = iter(view.as_hf_dataset("train", FeatureSpec(["tau_im"])))
    hub.faults.add("resolve.*parquet", 403, times=-1)
    with pytest.raises(RefusedError, match="cannot be read: 403"):
        list(rows)


def test_a_file_that_was_removed_meanwhile_is_left_out(published: Vulcan, hub: LoopbackHub) -> None:
    reader = remote(hub)
    (first, *_) = reader.source.files(reader.source.entries())
    gone = {"X-Error-Code": "EntryNotFound"}
    hub.faults.add(re.escape(quote(Path(first.path).name)), 404, headers=gone, times=-1)
    with pytest.warns(RuntimeWarning, match=f"{re.escape(Path(first.path).name)} is left out"):
        assert len(reader.query(columns=["tau_im"])) < 20


def test_a_hub_that_cannot_be_reached_is_one_sentence() -> None:
    with pytest.raises(MatForgeError, match="me/forge@main cannot be read: the Hub could not be reached"):
        VulcanReader.from_hf(REPO, token="hf_x", endpoint="http://127.0.0.1:9").query()


def test_other_tools_stream_what_was_published(published: Vulcan, hub: LoopbackHub) -> None:
    """D11: raw shards with different columns could not be streamed."""
    rows = VulcanMLView(remote(hub)).as_hf_dataset("train", FeatureSpec(["tau_im"]))
    expected = VulcanMLView(remote(hub)).as_dataframe("train")
    assert sorted(row["tau_im"] for row in rows) == sorted(expected["tau_im"])
