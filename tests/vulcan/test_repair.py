"""What lies in a staging folder is told, and what killed processes left is put right."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from matforge.model import UsageError
from matforge.vulcan import layout
from matforge.vulcan.errors import BusyError
from matforge.vulcan.lease import StagingLease
from matforge.vulcan.ledger import OUTBOX_DIRNAME
from matforge.vulcan.repair import LEFTOVER_AGE_S, repair, status
from matforge.vulcan.writer import list_pending, move_to
from tests.vulcan.hub import LoopbackHub
from tests.vulcan.hub.faults import COMMIT
from tests.vulcan.staging import NOW, Clock, counts, forge, once_each, publish, run_ids, stage


def test_a_quiet_folder_has_no_problems(hub: LoopbackHub, tmp_path: Path) -> None:
    handle, clock = forge(tmp_path), Clock()
    stage(handle, 12)
    found = status(tmp_path, clock=clock)
    assert found.shards == {"pending": 12, "synced": 0, "failed": 0, "in_review": 0}
    assert len(found.pending) == 10
    assert (found.budget_left, found.problems, found.publisher) == (90, [], None)
    publish(handle, hub, clock)
    found = status(tmp_path, clock=clock)
    assert found.shards["synced"] == 12
    assert (found.budget_left, found.problems, found.open_batches) == (89, [], [])


def test_there_must_be_a_folder(tmp_path: Path) -> None:
    """D24: status on a folder that does not exist ends with 0 in the reference."""
    for look in (status, repair):
        with pytest.raises(UsageError, match="There is no staging folder"):
            look(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_everything_that_is_wrong_is_told(hub: LoopbackHub, tmp_path: Path) -> None:
    """D12, D24: orphans are reported; failed, synced and the budget are shown."""
    handle, clock = forge(tmp_path), Clock()
    stage(handle, 3)
    hub.faults.add(COMMIT, 429, headers={"Retry-After": "1000"})
    publish(handle, hub, clock, max_batch=1)
    shards = list_pending(tmp_path)
    shards[1].sidecar_path.unlink()
    shards[2].parquet_path.unlink()
    (tmp_path / "pending" / ".x.parquet.0123.tmp").touch()
    (tmp_path / "pending" / "strange.parquet").touch()
    (tmp_path / OUTBOX_DIRNAME / "000009-dead").mkdir()
    (tmp_path / "_commit_budget.json").write_text("[1, 2]")
    with StagingLease(tmp_path):
        found = status(tmp_path, clock=clock)
    text = "\n".join(found.problems)
    for words in (
        "is damaged", "is a sidecar without its shard", "was left by a process that was killed",
        "strange.parquet is not ours", "has no sidecar", "000009-dead belongs to no batch",
    ):  # fmt: skip
        assert words in text
    assert len(found.problems) == 6
    assert found.open_batches == [1]
    assert found.not_before == NOW + 1000
    assert found.publisher is not None
    assert str(os.getpid()) in found.publisher
    assert found.budget_left == 0


def test_a_batch_whose_shards_are_gone_is_told(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    stage(handle, 1)
    hub.faults.add(COMMIT, 503)
    publish(handle, hub, max_retries=0)
    list_pending(tmp_path)[0].parquet_path.unlink()
    assert "batch 1 is on its way, but 1 of its shards are gone" in "\n".join(status(tmp_path).problems)


def test_repair_puts_everything_right_and_then_there_is_nothing_to_say(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    """D12: the reference neither reports nor repairs an orphan, and never removes a .tmp file."""
    handle, clock = forge(tmp_path), Clock()
    runs = stage(handle, 5)
    shards = list_pending(tmp_path)
    os.truncate(shards[4].parquet_path, 100)  # its sidecar tells
    shards[0].sidecar_path.unlink()
    shards[1].sidecar_path.unlink()
    shards[1].parquet_path.write_bytes(shards[1].parquet_path.read_bytes()[:-9])
    shards[2].parquet_path.rename(tmp_path / "kept")
    old, young = (tmp_path / "pending" / f".x.parquet.{n}.tmp" for n in (1, 2))
    for path, age in ((old, LEFTOVER_AGE_S + 1), (young, 1)):
        path.touch()
        os.utime(path, (NOW - age, NOW - age))
    said = repair(tmp_path, dry_run=True, clock=clock)
    assert old.exists()
    assert repair(tmp_path, clock=clock) == said
    assert (old.exists(), young.exists()) == (False, True)
    assert shards[0].sidecar_path.is_file()
    assert not shards[2].sidecar_path.exists()
    assert counts(handle) == (2, 0, 2, 0)
    young.unlink()
    assert status(tmp_path, clock=clock).problems == []
    publish(handle, hub, clock)
    lost = {shards[number].run_id for number in (1, 2, 4)}
    assert run_ids(hub) == once_each([run for run in runs if run not in lost])


def test_published_shards_left_behind_are_moved(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    stage(handle, 1)
    publish(handle, hub)
    for path in layout.contents(tmp_path, "synced").shards:
        path.rename(tmp_path / "pending" / path.name)
    assert "was published with batch 1" in "\n".join(status(tmp_path).problems)
    repair(tmp_path)
    assert counts(handle) == (0, 1, 0, 0)


def test_on_request_failed_shards_are_pending_again_and_the_budget_is_reset(tmp_path: Path) -> None:
    handle = forge(tmp_path)
    stage(handle, 1)
    handle.sync(dry_run=True)
    moved = move_to(list_pending(tmp_path)[0], tmp_path, "failed")
    layout.error_of(moved.parquet_path).write_text("{}")
    repair(tmp_path, retry_failed=True, reset_budget=True)
    assert counts(handle) == (1, 0, 0, 0)
    assert not list((tmp_path / "failed").iterdir())
    assert handle.remaining_budget() == 90


def test_nothing_is_repaired_while_somebody_publishes(tmp_path: Path) -> None:
    stage(forge(tmp_path), 1)
    with StagingLease(tmp_path), pytest.raises(BusyError):
        repair(tmp_path)
