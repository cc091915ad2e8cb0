"""Several repositories."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matforge.model import UsageError
from matforge.vulcan.hashing import VulcanRing, repository_for
from tests.vulcan.hub import LoopbackHub
from tests.vulcan.staging import Clock, forge, once_each, run_ids, vacua

REPOS = ["me/a", "me/b", "me/c"]


@given(geometry=st.text(min_size=1), repos=st.permutations(REPOS))
def test_the_same_geometry_goes_to_the_same_repository_in_whatever_order_they_are_named(
    geometry: str, repos: list[str]
) -> None:
    assert repository_for(geometry, repos) == repository_for(geometry, REPOS)


def test_another_repository_moves_its_share_and_no_more() -> None:
    geometries = [f"{k:016x}" for k in range(3000)]
    before = {g: repository_for(g, REPOS) for g in geometries}
    after = {g: repository_for(g, [*REPOS, "me/d"]) for g in geometries}
    moved = [g for g in geometries if before[g] != after[g]]
    assert {after[g] for g in moved} == {"me/d"}
    assert 0.2 < len(moved) / len(geometries) < 0.3
    assert min(Counter(before.values()).values()) > 850


@pytest.mark.parametrize("repos", [[], ["me/a", "me/a"]])
def test_there_must_be_something_to_choose_from(repos: list[str]) -> None:
    with pytest.raises(UsageError):
        repository_for("0", repos)


def test_a_ring_stages_and_publishes_each_geometry_where_it_belongs(hub: LoopbackHub, tmp_path: Path) -> None:
    handles = [forge(tmp_path / repo, repo=repo) for repo in REPOS]
    ring, clock = VulcanRing(handles), Clock()
    runs: dict[str, list[str]] = {repo: [] for repo in REPOS}
    for repo in REPOS:
        hub.create(repo)
    for k in range(12):
        geometry = {"h11": 3, "h12": 2, "ks_id": k}
        shard = ring.write(vacua(2, seed=k), geometry, tadpole_charge=4)
        runs[ring.forge_for(geometry).repo].append(shard.run_id)
    reports = ring.sync(endpoint=hub.endpoint, clock=clock, sleep=clock.sleep)
    assert sum(report.n_committed for report in reports.values()) == 12
    assert {repo: run_ids(hub, repo) for repo in REPOS} == {
        r: once_each(found, 2) for r, found in runs.items()
    }


def test_handles_of_a_ring_share_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        VulcanRing([forge(tmp_path), forge(tmp_path, repo="me/a")])
    with pytest.raises(UsageError):
        VulcanRing([forge(tmp_path / "a"), forge(tmp_path / "b")])
