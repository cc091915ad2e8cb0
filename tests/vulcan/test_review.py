"""Pull-request mode: one request, and shards that wait until it is merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from matforge.vulcan import layout
from matforge.vulcan.ledger import Ledger
from tests.vulcan.hub import LoopbackHub
from tests.vulcan.hub.faults import COMMIT
from tests.vulcan.staging import REPO, Clock, counts, forge, once_each, publish, run_ids, stage

OPEN = r"^POST /api/datasets/.*/discussions$"


def test_all_batches_go_into_one_pull_request_and_main_is_untouched(hub: LoopbackHub, tmp_path: Path) -> None:
    """D23: in the reference one for each batch."""
    handle = forge(tmp_path)
    runs = stage(handle, 3)
    report = publish(handle, hub, create_pr=True, max_batch=1)
    repository = hub.repositories[REPO]
    assert (report.pull_request, report.n_in_review, report.n_committed, report.n_commits) == (1, 3, 0, 3)
    assert list(repository.pulls) == [1]
    assert repository.history() == []
    assert len(repository.history("refs/pr/1")) == 3
    assert sorted(row["run_id"] for row in repository.rows("refs/pr/1")) == once_each(runs)
    assert counts(handle) == (0, 0, 0, 3)
    assert Ledger(tmp_path).read().batches[0].pull_request == 1


def test_shards_are_synced_when_the_request_is_merged(hub: LoopbackHub, tmp_path: Path) -> None:
    """D23: in the reference they are in synced/ although nothing was merged."""
    handle = forge(tmp_path)
    runs = stage(handle, 2)
    publish(handle, hub, create_pr=True)
    assert publish(handle, hub, create_pr=True).n_commits == 0
    assert counts(handle) == (0, 0, 0, 2)
    oid = hub.repositories[REPO].merge(1)
    report = publish(handle, hub, create_pr=True)
    assert (report.n_committed, report.n_commits, report.pull_request) == (2, 0, None)
    assert counts(handle) == (0, 2, 0, 0)
    assert {batch.commit for batch in Ledger(tmp_path).read().batches} == {oid}
    assert run_ids(hub) == once_each(runs)


def test_the_next_shards_go_into_the_request_that_is_open_and_after_it_into_a_new_one(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    handle = forge(tmp_path)
    runs = stage(handle, 1)
    publish(handle, hub, create_pr=True)
    runs += stage(handle, 1, first=1)
    assert publish(handle, hub, create_pr=True).pull_request == 1
    hub.repositories[REPO].merge(1)
    runs += stage(handle, 1, first=2)
    assert publish(handle, hub, create_pr=True).pull_request == 2
    hub.repositories[REPO].merge(2)
    publish(handle, hub)
    assert run_ids(hub) == once_each(runs)
    assert json.loads(hub.repositories[REPO].files()["matforge.json"])["sources"].popitem()[1]["shards"] == 3


def test_a_request_closed_without_merging_puts_its_shards_into_failed(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    handle = forge(tmp_path)
    runs = stage(handle, 2)
    publish(handle, hub, create_pr=True)
    hub.repositories[REPO].close(1)
    report = publish(handle, hub, create_pr=True)
    assert (report.n_failed, counts(handle)) == (2, (0, 0, 2, 0))
    notes = [path for path in (tmp_path / "failed").iterdir() if path.name.endswith(layout.ERROR_SUFFIX)]
    assert "pull request 1 was closed" in json.loads(notes[0].read_text())["why"]
    for path in layout.contents(tmp_path, "failed").shards:
        path.rename(tmp_path / "pending" / path.name)
    assert publish(handle, hub).n_committed == 2
    assert run_ids(hub) == once_each(runs)


@pytest.mark.parametrize("how", [{"status": 504}, {"drop": True}])
def test_a_lost_answer_opens_no_second_request(
    how: dict[str, object], hub: LoopbackHub, tmp_path: Path
) -> None:
    """D23: in the reference two for one batch."""
    handle = forge(tmp_path)
    stage(handle, 1)
    hub.faults.add(OPEN, after=True, **how)
    hub.faults.add(COMMIT, after=True, **how)
    report = publish(handle, hub, create_pr=True)
    assert list(hub.repositories[REPO].pulls) == [1]
    assert (report.n_in_review, report.n_commits) == (1, 1)
    assert len(hub.repositories[REPO].history("refs/pr/1")) == 1


def test_a_batch_that_did_not_reach_a_request_is_sent_again_or_goes_back(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    handle, clock = forge(tmp_path), Clock()
    runs = stage(handle, 2)
    hub.faults.add(COMMIT, 503)
    publish(handle, hub, clock, create_pr=True, max_batch=1, max_retries=0)
    assert counts(handle) == (2, 0, 0, 0)
    hub.repositories[REPO].close(1)  # before it got there
    report = publish(handle, hub, clock, create_pr=True)
    assert (report.pull_request, report.n_in_review, report.n_failed) == (2, 2, 0)
    hub.repositories[REPO].merge(2)
    publish(handle, hub, clock)
    assert run_ids(hub) == once_each(runs)
