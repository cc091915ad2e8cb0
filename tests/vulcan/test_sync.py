"""Publishing: every staged row gets to the Hub exactly once, whatever the Hub does."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from matforge.model import MatForgeError, UsageError
from matforge.vulcan import layout, publisher
from matforge.vulcan.errors import BusyError, RefusedError
from matforge.vulcan.lease import StagingLease
from matforge.vulcan.ledger import LEDGER_DIRNAME, OUTBOX_DIRNAME, Ledger
from matforge.vulcan.repair import status
from matforge.vulcan.schema import PROVENANCE_KEY
from matforge.vulcan.splits import SplitSpec
from matforge.vulcan.writer import list_pending, move_to
from tests.vulcan.hub import LoopbackHub
from tests.vulcan.hub.faults import COMMIT
from tests.vulcan.hub.repository import Blob
from tests.vulcan.staging import (
    REPO,
    Clock,
    counts,
    forge,
    names,
    once_each,
    publish,
    run_ids,
    stage,
    vacua,
)


def test_staged_shards_are_published_in_few_files_and_rows_are_there_once(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    handle = forge(tmp_path)
    runs = stage(handle, 6)
    report = publish(handle, hub)
    assert (report.n_committed, report.n_rows, report.n_commits, report.n_remaining) == (6, 24, 1, 0)
    assert report.ok
    assert report.commit_oids == [hub.repositories[REPO].at().oid]
    assert run_ids(hub) == once_each(runs)
    paths = list(hub.repositories[REPO].files(".parquet"))
    assert len(paths) <= 3
    assert all(path.startswith("data/split=") and "/h12=2/h11=3/part-" in path for path in paths)
    assert counts(handle) == (0, 6, 0, 0)
    assert not list((tmp_path / OUTBOX_DIRNAME).iterdir())
    assert not [path for path in hub.repositories[REPO].files() if path.endswith(".meta.json")]


def test_the_caller_says_how_many_shards_a_commit_takes(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    runs = stage(handle, 5)
    report = publish(handle, hub, max_batch=2)
    assert (report.n_committed, report.n_commits) == (5, 3)
    titles = [commit.title for commit in reversed(hub.repositories[REPO].history())]
    assert titles == [f"vulcan: {n} shards, {4 * n} rows" for n in (2, 2, 1)]
    assert run_ids(hub) == once_each(runs)


@pytest.mark.parametrize(("name", "most"), [("BATCH_SHARDS", 2), ("BATCH_BYTES", 10_000)])
def test_a_commit_takes_no_more_than_fits_into_memory(
    name: str, most: int, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, name, most)
    handle = forge(tmp_path)
    runs = stage(handle, 5)
    sizes = [shard.parquet_path.stat().st_size for shard in list_pending(tmp_path)]
    assert 2 * max(sizes) <= 10_000 < 3 * min(sizes)
    assert publish(handle, hub).n_commits == 3
    assert [len(batch.shards) for batch in Ledger(tmp_path).read().batches] == [2, 2, 1]
    assert run_ids(hub) == once_each(runs)


def test_a_published_row_has_the_values_that_were_staged(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    frame = vacua(3).assign(my_own=[1, None, 3])
    handle.write(frame, {"h11": 3, "h12": 2, "ks_id": 7}, tadpole_charge=12)
    publish(handle, hub)
    rows = {tuple(row["flux"]): row for row in hub.repositories[REPO].rows()}
    for _, wanted in frame.iterrows():
        found = rows[tuple(wanted["flux"])]
        assert found["moduli_re"] == wanted["moduli_re"]
        assert found["tau_im"] == wanted["tau_im"]
        assert (found["ks_id"], found["tadpole_charge"], found["cicy_id"]) == (7, 12, -1)
    assert sorted(str(row["extra_data"]) for row in rows.values()) == [
        "None", '{"my_own": 1.0}', '{"my_own": 3.0}',
    ]  # fmt: skip


def test_without_compaction_each_shard_keeps_its_own_path(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    runs = stage(handle, 3)
    publish(handle, hub, compact=False)
    paths = sorted(hub.repositories[REPO].files(".parquet"))
    assert sorted(path.rpartition("/")[2] for path in paths) == sorted(f"run_{run}.parquet" for run in runs)
    assert all(path.startswith("h12_2/h11_3/bucket_") for path in paths)


def test_a_shard_with_columns_of_its_own_is_published_apart_with_the_columns_of_all(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    """D11: files of different columns cannot be read together."""
    handle = forge(tmp_path)
    handle.write(vacua(2).assign(mine="x"), {"h11": 3, "h12": 2, "ks_id": 7}, tadpole_charge=12)
    stage(handle, 1)
    publish(handle, hub, compact=False)
    footers = [
        pq.read_metadata(io.BytesIO(data)) for data in hub.repositories[REPO].files(".parquet").values()
    ]
    assert footers[0].schema.names == footers[1].schema.names
    assert all(PROVENANCE_KEY.encode() in footer.metadata for footer in footers)
    assert [row["extra_data"] for row in hub.repositories[REPO].rows()].count('{"mine": "x"}') == 2


def test_nothing_staged_is_nothing_asked(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path / "never made")
    assert publish(handle, hub).n_commits == 0
    assert not (tmp_path / "never made").exists()
    stage(handle, 1)
    publish(handle, hub)
    asked = len(hub.log)
    assert publish(handle, hub).n_commits == 0
    assert len(hub.log) == asked


# ---------------------------------------------------------------- the budget


def test_a_spent_budget_leaves_the_rest_pending_and_says_when_to_come_back(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    handle, clock = forge(tmp_path, budget=2, window_s=600), Clock()
    runs = stage(handle, 6)
    report = publish(handle, hub, clock, max_batch=2)
    assert (report.n_committed, report.n_commits, report.n_remaining) == (4, 2, 2)
    assert report.not_before == clock.now + 600
    assert "budget of 2 commits is spent" in report.stopped
    assert publish(handle, hub, clock, max_batch=2).n_commits == 0
    clock.now += 601
    assert publish(handle, hub, clock, max_batch=2).n_committed == 2
    assert run_ids(hub) == once_each(runs)


def test_every_commit_request_takes_a_slot_those_that_fail_too(hub: LoopbackHub, tmp_path: Path) -> None:
    """D22: retries cost no slot in the reference."""
    handle, clock = forge(tmp_path), Clock()
    stage(handle, 1)
    hub.faults.add(COMMIT, 503, times=3)
    assert publish(handle, hub, clock).n_committed == 1
    assert hub.count(COMMIT) == 4
    stamps = json.loads((tmp_path / "_commit_budget.json").read_text())["timestamps"]
    assert len(stamps) == 4


def test_a_dry_run_takes_slots_and_changes_nothing_else(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    stage(handle, 4)
    before = names(handle, "pending")
    report = handle.sync(max_batch=2, dry_run=True)
    assert (report.n_commits, report.n_committed, report.n_failed, report.n_remaining) == (2, 4, 0, 0)
    assert report.commit_oids == [None, None]
    assert handle.remaining_budget() == 88
    assert names(handle, "pending") == before
    assert hub.log == []


def test_a_dry_run_tells_of_damaged_shards_and_leaves_them(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    stage(handle, 2)
    damaged = list_pending(tmp_path)[0].parquet_path
    damaged.write_bytes(damaged.read_bytes()[:100])
    report = handle.sync(dry_run=True)
    assert damaged.name in report.errors[0]
    assert counts(handle) == (2, 0, 0, 0)


# ---------------------------------------------------------------- the Hub's failures


@pytest.mark.parametrize("status", [500, 502, 503, 504, 409])
def test_a_passing_trouble_is_tried_again(status: int, hub: LoopbackHub, tmp_path: Path) -> None:
    """D20: in the reference these go straight to failed/."""
    handle, clock = forge(tmp_path), Clock()
    runs = stage(handle, 2)
    hub.faults.add(COMMIT, status, times=2)
    report = publish(handle, hub, clock)
    assert (report.n_committed, report.n_commits, report.n_failed) == (2, 1, 0)
    assert clock.slept == [1.0, 2.0]
    assert run_ids(hub) == once_each(runs)


def test_a_dropped_connection_is_tried_again(hub: LoopbackHub, tmp_path: Path) -> None:
    """D20: in the reference a dropped connection goes straight to failed/."""
    handle = forge(tmp_path)
    runs = stage(handle, 2)
    hub.faults.add(COMMIT, drop=True, times=2)
    assert publish(handle, hub).n_committed == 2
    assert run_ids(hub) == once_each(runs)


@pytest.mark.parametrize("how", [{"status": 504}, {"status": 500}, {"drop": True}])
def test_a_commit_whose_answer_was_lost_is_settled_by_object_ids(
    how: dict[str, Any], hub: LoopbackHub, tmp_path: Path
) -> None:
    """D20: in the reference the files are on the Hub and failed/ here."""
    handle, clock = forge(tmp_path), Clock()
    runs = stage(handle, 3)
    hub.faults.add(COMMIT, after=True, **how)
    report = publish(handle, hub, clock)
    assert (report.n_committed, report.n_commits) == (3, 1)
    assert hub.count(COMMIT) == 1
    assert clock.slept == []
    assert report.commit_oids == [hub.repositories[REPO].at().oid]
    assert run_ids(hub) == once_each(runs)


def test_trouble_that_does_not_pass_leaves_everything_for_the_next_sync(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    handle, clock = forge(tmp_path), Clock()
    runs = stage(handle, 2)
    trouble = hub.faults.add(COMMIT, 503, times=-1)
    report = publish(handle, hub, clock, max_retries=2)
    assert (report.n_committed, report.n_failed, report.n_remaining) == (0, 0, 2)
    assert report.stopped.startswith("transient: 503")
    assert counts(handle) == (2, 0, 0, 0)
    trouble.times = 0
    stage(handle, 1, first=10)
    assert publish(handle, hub, clock).n_committed == 3
    assert run_ids(hub)[:4] == once_each(runs)[:4]
    assert len(run_ids(hub)) == 12


@pytest.mark.slow  # the client tries for 23 s by itself
def test_a_hub_that_does_not_listen_moves_nothing(tmp_path: Path) -> None:
    """D20: in the reference a refused connection goes straight to failed/."""
    handle, clock = forge(tmp_path), Clock()
    stage(handle, 1)
    report = handle.sync(endpoint="http://127.0.0.1:9", clock=clock, sleep=clock.sleep, max_retries=0)
    assert report.stopped.startswith("transient: the Hub could not be reached")
    assert counts(handle) == (1, 0, 0, 0)


def test_a_rate_limit_in_words_is_noted_and_the_next_sync_does_not_even_ask(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    """D22: in the reference four requests in seven seconds, then failed/."""
    handle, clock = forge(tmp_path), Clock()
    runs = stage(handle, 2)
    hub.faults.add(COMMIT, 429, message="You have exceeded the quota, retry in 43 minutes")
    report = publish(handle, hub, clock)
    assert hub.count(COMMIT) == 1
    assert report.not_before == clock.now + 43 * 60
    assert counts(handle) == (2, 0, 0, 0)
    asked = len(hub.log)
    clock.now += 60
    again = publish(handle, hub, clock)
    assert len(hub.log) == asked
    assert again.not_before == report.not_before
    assert "43 minutes" in again.stopped
    clock.now += 43 * 60
    assert publish(handle, hub, clock).n_committed == 2
    assert run_ids(hub) == once_each(runs)
    assert not (tmp_path / "_sync_state.json").exists()


def test_a_clock_that_was_set_back_does_not_keep_a_sync_waiting(hub: LoopbackHub, tmp_path: Path) -> None:
    handle, clock = forge(tmp_path), Clock()
    runs = stage(handle, 2)
    hub.faults.add(COMMIT, 429, message="retry in 43 minutes")
    publish(handle, hub, clock)
    clock.now -= 10 * 24 * 3600
    assert status(tmp_path, clock=clock).not_before is None
    assert publish(handle, hub, clock).n_committed == 2
    assert run_ids(hub) == once_each(runs)


def test_a_short_rate_limit_is_waited_for(hub: LoopbackHub, tmp_path: Path) -> None:
    """D22: the wait that the Hub asks for is kept, in whatever form it is told."""
    handle, clock = forge(tmp_path), Clock()
    stage(handle, 1)
    hub.faults.add(COMMIT, 429, headers={"Retry-After": "17"})
    hub.faults.add(COMMIT, 429, headers={"Retry-After": "Tue, 14 Nov 2023 22:14:00 GMT"})  # NOW + 40
    hub.faults.add(COMMIT, 429, headers={"RateLimit": '"api";r=0;t=55'})
    assert publish(handle, hub, clock).n_committed == 1
    assert clock.slept == [17.0, 23.0, 55.0]


def test_a_wait_of_an_hour_is_not_slept(hub: LoopbackHub, tmp_path: Path) -> None:
    """D22: Retry-After 3600 would sleep uncapped in the reference."""
    handle, clock = forge(tmp_path), Clock()
    stage(handle, 1)
    hub.faults.add(COMMIT, 429, headers={"Retry-After": "3600"})
    assert publish(handle, hub, clock).not_before == clock.now + 3600
    assert clock.slept == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_stops_at_once_and_moves_nothing(status: int, hub: LoopbackHub, tmp_path: Path) -> None:
    """D21: in the reference everything pending goes to failed/, a slot for each batch."""
    handle = forge(tmp_path)
    stage(handle, 4)
    hub.faults.add(COMMIT, status, times=-1, message="no")
    with pytest.raises(RefusedError, match=f"The Hub refuses me/forge: {status}") as refused:
        publish(handle, hub, max_batch=1)
    assert hub.count(COMMIT) == 1
    assert counts(handle) == (4, 0, 0, 0)
    assert refused.value.report.n_remaining == 4


def test_a_repository_that_is_not_there_costs_no_slot(hub: LoopbackHub, tmp_path: Path) -> None:
    """D21: a typo in the name."""
    handle = forge(tmp_path, repo="me/fogre")
    stage(handle, 1)
    with pytest.raises(RefusedError, match="me/fogre"):
        publish(handle, hub)
    assert handle.remaining_budget() == 90
    assert counts(handle) == (1, 0, 0, 0)


def test_a_wrong_token_is_told_as_such(hub: LoopbackHub, tmp_path: Path) -> None:
    """D21: credentials."""
    hub.token = "hf_another"
    handle = forge(tmp_path)
    stage(handle, 1)
    with pytest.raises(RefusedError, match="401"):
        publish(handle, hub)


def test_what_was_done_before_a_refusal_is_reported(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    stage(handle, 2)
    fault = hub.faults.add(COMMIT, 403, times=0)

    def after_the_first() -> None:
        fault.times = -1

    hub.faults.add(COMMIT, 504, after=True, hook=after_the_first)
    with pytest.raises(RefusedError) as refused:
        publish(handle, hub, max_batch=1)
    assert refused.value.report.n_committed == 1
    assert counts(handle) == (1, 1, 0, 0)


def test_only_the_shard_that_the_hub_rejects_goes_to_failed(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    runs = stage(handle, 8)
    poisoned = list_pending(tmp_path)[5]

    repository = hub.repositories[REPO]
    commit = repository.commit

    def refuse(revision: str, title: str, changes: Any, *rest: Any) -> Any:
        from tests.vulcan.hub.repository import Refused

        if any(blob and poisoned.run_id.encode() in blob.data for p, blob in changes.items() if "part-" in p):
            raise Refused(400, "your file is not good")
        return commit(revision, title, changes, *rest)

    repository.commit = refuse  # type: ignore[method-assign]
    report = publish(handle, hub)
    assert names(handle, "failed") == [poisoned.parquet_path.name]
    assert (report.n_committed, report.n_failed) == (7, 1)
    note = json.loads(layout.error_of(tmp_path / "failed" / poisoned.parquet_path.name).read_text())
    assert "your file is not good" in note["why"]
    assert run_ids(hub) == once_each([run for run in runs if run != poisoned.run_id])


def test_a_hub_that_rejects_everything_is_not_believed(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    stage(handle, 8)
    hub.faults.add(COMMIT, 400, times=-1, message="out of space")
    with pytest.raises(RefusedError, match="one shard after the other"):
        publish(handle, hub)
    assert len(names(handle, "failed")) == 2
    assert len(names(handle, "pending")) == 6


# ---------------------------------------------------------------- crashes


class Killed(BaseException):
    """Ends the process, as far as the code under test can tell."""


def killed_at(monkeypatch: pytest.MonkeyPatch, where: str, nth: int, after: bool) -> None:
    """Be killed at the n-th call of a function, before or after it does its work."""
    module, _, name = where.rpartition(".")
    calls = 0
    import importlib

    try:
        owner: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        home, _, cls = module.rpartition(".")
        owner = getattr(importlib.import_module(home), cls)
    real = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth and not after:
            raise Killed
        result = real(*args, **kwargs)
        if calls == nth:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("where", "nth"),
    [
        ("matforge.vulcan.publisher.compact", 1),
        ("matforge.vulcan.ledger.Ledger.freeze", 1),
        ("matforge.vulcan.hub.HubRepository.upload", 1),
        ("matforge.vulcan.budget.CommitBudget.take", 1),
        ("matforge.vulcan.hub.HubRepository.commit", 1),
        ("matforge.vulcan.ledger.Ledger.settle", 1),
        ("matforge.vulcan.shelf.move_to", 1),
        ("matforge.vulcan.shelf.move_to", 2),
        ("matforge.vulcan.hub.HubRepository.commit", 2),
        ("os.replace", 1),
        ("os.link", 1),
        ("os.link", 2),
        ("os.rename", 1),
    ],
)
def test_killed_at_any_step_the_next_sync_ends_with_every_row_there_once(
    where: str, nth: int, after: bool, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D12, D15: nothing is lost, doubled, or left where nobody looks."""
    handle = forge(tmp_path)
    runs = stage(handle, 4)
    with monkeypatch.context() as patch:
        killed_at(patch, where, nth, after)
        with pytest.raises(Killed):
            publish(handle, hub, max_batch=2)
    more = stage(handle, 1, first=20)
    publish(handle, hub)
    assert run_ids(hub) == once_each(runs + more)
    assert counts(handle) == (0, 5, 0, 0)
    assert not list((tmp_path / OUTBOX_DIRNAME).iterdir())
    leftovers = [p for p in tmp_path.rglob("*") if p.suffix == ".tmp"]
    assert not leftovers


def test_an_outbox_that_was_lost_is_made_again(hub: LoopbackHub, tmp_path: Path) -> None:
    handle, clock = forge(tmp_path), Clock()
    runs = stage(handle, 3)
    hub.faults.add(COMMIT, 503, times=1)
    publish(handle, hub, clock, max_retries=0)
    shutil.rmtree(tmp_path / OUTBOX_DIRNAME)
    assert publish(handle, hub, clock).n_committed == 3
    assert run_ids(hub) == once_each(runs)
    assert len(Ledger(tmp_path).read().batches) == 1


def test_a_batch_of_which_everything_was_deleted_is_given_up(hub: LoopbackHub, tmp_path: Path) -> None:
    """D18: a shard deleted in the middle of a sync aborts it in the reference."""
    handle, clock = forge(tmp_path), Clock()
    stage(handle, 2)
    hub.faults.add(COMMIT, 503, times=1)
    publish(handle, hub, clock, max_retries=0)
    shutil.rmtree(tmp_path / OUTBOX_DIRNAME)
    list_pending(tmp_path)[0].parquet_path.unlink()
    report = publish(handle, hub, clock)
    assert report.n_committed == 1
    assert [batch.outcome for batch in Ledger(tmp_path).read().batches] == ["dissolved", "committed"]


def test_a_shard_deleted_meanwhile_is_not_missed(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D18: the run goes on, and no orphan stays."""
    handle = forge(tmp_path)
    runs = stage(handle, 3)
    gone = list_pending(tmp_path)[1]
    contents = layout.contents

    def late(staging_dir: Path, state: str) -> layout.Contents:
        found = contents(staging_dir, state)
        gone.parquet_path.unlink(missing_ok=True)
        gone.sidecar_path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(layout, "contents", late)
    report = publish(handle, hub)
    assert (report.n_committed, report.ok) == (2, True)
    assert run_ids(hub) == once_each([run for run in runs if run != gone.run_id])


def test_a_shard_that_comes_back_after_it_was_published_is_not_published_again(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    handle = forge(tmp_path)
    runs = stage(handle, 2)
    shutil.copytree(tmp_path / "pending", tmp_path / "copy")
    publish(handle, hub)
    shutil.copytree(tmp_path / "copy", tmp_path / "pending", dirs_exist_ok=True)  # a late rsync
    assert publish(handle, hub).n_commits == 0
    assert run_ids(hub) == once_each(runs)
    assert counts(handle) == (0, 2, 0, 0)


def test_failed_shards_moved_back_by_hand_are_published(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    runs = stage(handle, 2)
    for shard in list_pending(tmp_path):
        move_to(shard, tmp_path, "failed")
    (tmp_path / "failed" / "_x.parquet.error.json").write_text("{}")
    for path in (tmp_path / "failed").iterdir():
        os.replace(path, tmp_path / "pending" / path.name)
    assert publish(handle, hub).n_committed == 2
    assert run_ids(hub) == once_each(runs)


# ---------------------------------------------------------------- two at once


def test_the_second_of_two_syncs_is_told_who_is_at_work(hub: LoopbackHub, tmp_path: Path) -> None:
    """D15: in the reference both upload, and one dies."""
    handle = forge(tmp_path)
    stage(handle, 1)
    with (
        StagingLease(tmp_path),
        pytest.raises(BusyError, match=f"is being published by process {os.getpid()}"),
    ):
        publish(handle, hub)
    assert publish(handle, hub).n_committed == 1


def test_a_publisher_that_was_thought_dead_freezes_nothing(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D15: it was stopped while it compacted, and another took over."""
    from matforge.vulcan import publisher

    handle = forge(tmp_path)
    runs = stage(handle, 3)
    real = publisher.compact

    def overtaken(*args: Any) -> Any:
        monkeypatch.setattr(publisher, "compact", real)
        parts = real(*args)
        (tmp_path / layout.LOCK_NAME).unlink()
        assert publish(handle, hub).n_committed == 3
        return parts

    monkeypatch.setattr(publisher, "compact", overtaken)
    report = publish(handle, hub)
    assert report.n_committed == 0
    assert "taken over" in report.stopped
    assert run_ids(hub) == once_each(runs)


def test_even_without_the_lock_two_publishers_do_not_freeze_the_same_shard(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D15: the lock may fail for an instant; the ledger does not."""
    from matforge.vulcan import publisher

    handle = forge(tmp_path)
    runs = stage(handle, 3)
    real = publisher.compact

    def overtaken(*args: Any) -> Any:
        monkeypatch.setattr(publisher, "compact", real)
        parts = real(*args)
        lock = (tmp_path / layout.LOCK_NAME).read_bytes()
        (tmp_path / layout.LOCK_NAME).unlink()
        assert publish(handle, hub).n_committed == 3
        (tmp_path / layout.LOCK_NAME).write_bytes(lock)
        return parts

    monkeypatch.setattr(publisher, "compact", overtaken)
    assert publish(handle, hub).n_committed == 0
    assert run_ids(hub) == once_each(runs)


# ---------------------------------------------------------------- what may not be published


def test_a_truncated_shard_is_not_uploaded(hub: LoopbackHub, tmp_path: Path) -> None:
    """D13: the reference uploads it and marks it synced."""
    handle = forge(tmp_path)
    runs = stage(handle, 2)
    damaged = list_pending(tmp_path)[0]
    damaged.parquet_path.write_bytes(damaged.parquet_path.read_bytes()[:-7])
    report = publish(handle, hub)
    assert (report.n_committed, report.n_failed) == (1, 1)
    assert names(handle, "failed") == [damaged.parquet_path.name]
    assert run_ids(hub) == once_each([run for run in runs if run != damaged.run_id])
    assert counts(handle) == (0, 1, 1, 0)


@pytest.mark.parametrize("path", ["README.md", "../../x"])
def test_where_a_shard_goes_is_computed_never_believed(path: str, hub: LoopbackHub, tmp_path: Path) -> None:
    """D14: the reference believes the sidecar's path_in_repo."""
    handle = forge(tmp_path)
    runs = stage(handle, 1)
    sidecar = list_pending(tmp_path)[0].sidecar_path
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "path_in_repo": path}))
    for compact in (True, False):
        publish(handle, hub, compact=compact)
    assert run_ids(hub) == once_each(runs)
    assert path not in hub.repositories[REPO].files(".parquet")


@pytest.mark.parametrize("content", ["{}", "not JSON", "[1]", ""])
def test_a_sidecar_that_cannot_be_read_stops_nothing(content: str, hub: LoopbackHub, tmp_path: Path) -> None:
    """D12: the reference skips it for ever, or dies."""
    handle = forge(tmp_path)
    runs = stage(handle, 2)
    list_pending(tmp_path)[0].sidecar_path.write_text(content)
    list_pending(tmp_path)[1].sidecar_path.unlink()
    assert publish(handle, hub).n_committed == 2
    assert run_ids(hub) == once_each(runs)


def test_a_shard_of_another_repository_stays_and_is_named(hub: LoopbackHub, tmp_path: Path) -> None:
    """D14: in the reference it is published to whichever repository comes first."""
    hub.create("me/other")
    ours, theirs = forge(tmp_path), forge(tmp_path, repo="me/other")
    runs, other_runs = stage(ours, 2), stage(theirs, 1, first=5)
    report = publish(ours, hub)
    assert (report.n_committed, report.n_remaining) == (2, 1)
    assert "was staged for me/other, not for me/forge" in report.errors[0]
    assert run_ids(hub) == once_each(runs)
    assert publish(theirs, hub).n_committed == 1
    assert run_ids(hub, "me/other") == once_each(other_runs)


def test_files_that_are_not_ours_are_left_alone(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    stage(handle, 1)
    (tmp_path / "pending" / "notes.parquet").write_bytes(b"")
    (tmp_path / "pending" / "README.md").write_text("mine")
    assert publish(handle, hub).ok
    assert (tmp_path / "pending" / "README.md").exists()
    assert hub.repositories[REPO].files("notes.parquet") == {}


def test_a_folder_that_cannot_be_written_is_one_sentence(hub: LoopbackHub, tmp_path: Path) -> None:
    """D19: a raw error in the reference."""
    handle = forge(tmp_path)
    stage(handle, 1)
    (tmp_path / LEDGER_DIRNAME).write_text("in the way")
    with pytest.raises(MatForgeError, match=r"_ledger.* cannot be written"):
        publish(handle, hub)
    assert counts(handle) == (1, 0, 0, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch": 0}, {"max_batch": 2.5}, {"max_retries": -1}, {"budget": 0}, {"budget": -5},
        {"repo": "not a repo!!"}, {"window_s": 0}, {"window_s": float("nan")},
        {"create_pr": True, "revision": "other"},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_before_anything(
    options: dict[str, Any], hub: LoopbackHub, tmp_path: Path
) -> None:
    """D24: budgets of 0 and impossible names are accepted by the reference."""
    handle = forge(tmp_path)
    stage(handle, 1)
    with pytest.raises(UsageError):
        publish(handle, hub, **options)
    assert hub.log == []
    assert not (tmp_path / LEDGER_DIRNAME).exists()


# ---------------------------------------------------------------- splits


def test_the_first_commit_freezes_how_the_repository_is_split(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    stage(handle, 12)
    publish(handle, hub, max_batch=1, splits=SplitSpec(salt="pepper"))
    frozen = json.loads(hub.repositories[REPO].files()["matforge.json"])["splits"]
    assert frozen == SplitSpec(salt="pepper").as_dict()
    stage(handle, 12, first=50)
    publish(handle, hub, max_batch=1)
    where = {
        row["geometry_id"]: path.split("split=")[1].split("/")[0]
        for path in hub.repositories[REPO].files(".parquet")
        for row in _rows(hub, path)
    }
    spec = SplitSpec(salt="pepper")
    assert where == {geometry: spec.of_geometry(geometry) for geometry in where}
    assert len(set(where.values())) > 1
    stage(handle, 1, first=90)
    with pytest.raises(UsageError, match="are frozen as"):
        publish(handle, hub, splits=SplitSpec(salt="salt"))


def _rows(hub: LoopbackHub, path: str) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(hub.repositories[REPO].files()[path])).to_pylist()  # type: ignore[no-any-return]


def test_a_set_of_one_geometry_is_split_by_rows(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    geometry = {"h11": 272, "h12": 2, "ks_id": 5}
    runs = [handle.write(vacua(50, seed=k), geometry, tadpole_charge=9).run_id for k in range(2)]
    publish(handle, hub, max_batch=1)
    splits = {path.split("/")[1] for path in hub.repositories[REPO].files(".parquet")}
    assert splits == {"split=train", "split=val", "split=test"}
    assert run_ids(hub) == once_each(runs, 50)


def test_an_index_that_cannot_be_read_is_not_guessed(hub: LoopbackHub, tmp_path: Path) -> None:
    from tests.vulcan.hub.repository import Blob

    hub.repositories[REPO].commit("main", "vandalism", {"matforge.json": Blob(b"{", False)})
    handle = forge(tmp_path)
    stage(handle, 1)
    with pytest.raises(RefusedError, match="restore it from the history"):
        publish(handle, hub)
    assert counts(handle) == (1, 0, 0, 0)


@pytest.mark.slow  # the client tries for 23 s by itself
def test_an_index_that_cannot_be_asked_for_is_not_taken_for_none(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    stage(handle, 1)
    publish(handle, hub, splits=SplitSpec(salt="pepper"))
    stage(handle, 1, first=5)
    hub.faults.add(r"^HEAD .*/matforge\.json", 503, times=-1)
    report = publish(handle, hub, max_retries=0)
    assert (report.n_commits, report.n_remaining) == (0, 1)
    assert report.stopped.startswith("transient")
    hub.faults.clear()
    assert publish(handle, hub).n_committed == 1
    frozen = json.loads(hub.repositories[REPO].files()["matforge.json"])["splits"]
    assert frozen["salt"] == "pepper"


def test_the_end_is_clean_when_asked_for_in_the_middle(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    runs = stage(handle, 4)
    report = publish(handle, hub, max_batch=1, stopping=lambda: hub.count(COMMIT) >= 2)
    assert (report.n_committed, report.n_remaining) == (2, 2)
    assert report.stopped == "it was asked to end"
    assert publish(handle, hub).n_committed == 2
    assert run_ids(hub) == once_each(runs)


PREUPLOAD = r"^POST /api/datasets/.*/preupload/"


@pytest.mark.parametrize("pattern", [PREUPLOAD, COMMIT])
def test_what_a_person_writes_while_a_sync_goes_on_is_kept(
    pattern: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    """A commit is made on what the repository holds then, and nothing else."""
    handle = forge(tmp_path)
    runs = stage(handle, 3)
    repository = hub.repositories[REPO]

    def edit() -> None:
        repository.commit("main", "by hand", {"README.md": Blob(b"# Words of a person\n", False)})

    hub.faults.add(pattern, 503, headers={"Retry-After": "0"}, hook=edit)
    report = publish(handle, hub, max_batch=1)
    assert report.ok
    assert run_ids(hub) == once_each(runs)
    card = repository.files()["README.md"].decode()
    assert "# Words of a person" in card
    assert "load_dataset" in card
    assert hub.count("/commit/") == 4


def test_of_two_folders_that_publish_first_at_once_one_decides_the_splits(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    slow, fast = forge(tmp_path / "slow"), forge(tmp_path / "fast")
    runs = stage(slow, 1) + stage(fast, 3, first=5)  # of one geometry, and so by row; of three
    hub.faults.add(PREUPLOAD, 503, headers={"Retry-After": "0"}, hook=lambda: publish(fast, hub))
    report = publish(slow, hub)
    assert (report.ok, report.n_committed, counts(slow)) == (True, 1, (0, 1, 0, 0))
    assert run_ids(hub) == once_each(runs)
    index = json.loads(hub.repositories[REPO].files()["matforge.json"])
    assert index["splits"]["by"] == "geometry"
    assert sum(source["shards"] for source in index["sources"].values()) == 4
    spec = SplitSpec.from_dict(index["splits"])
    for path, data in hub.repositories[REPO].files(".parquet").items():
        ids = set(pq.read_table(io.BytesIO(data))["geometry_id"].to_pylist())
        assert {spec.of_geometry(one) for one in ids} == {path.split("/")[1].removeprefix("split=")}
