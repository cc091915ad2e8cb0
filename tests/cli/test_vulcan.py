"""The commands that publish."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matforge.vulcan.lease import StagingLease
from tests.vulcan.hub import LoopbackHub
from tests.vulcan.hub.faults import COMMIT
from tests.vulcan.staging import REPO, counts, forge, once_each, run_ids, stage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        server.create(REPO)
        yield server


def environment(hub: LoopbackHub, folder: Path, **variables: str) -> dict[str, str]:
    ours = ("MATFORGE_VULCAN", "STRINGFORGE", "HF_HUB_DISABLE_PROGRESS_BARS")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "MATFORGE_VULCAN_STAGING_DIR": str(folder),
        "MATFORGE_VULCAN_REPO": REPO,
        "MATFORGE_VULCAN_TOKEN": "hf_test",
        **variables,
    }


def vulcan(
    hub: LoopbackHub, folder: Path, *arguments: str, module: str = "matforge.vulcan", **variables: str
) -> Any:
    quick = ["--no-pictures"] if "sync" in arguments else []  # drawing takes longer than all the rest
    command = [sys.executable, "-m", module, *arguments, *quick]
    return subprocess.run(
        command, env=environment(hub, folder, **variables), capture_output=True, text=True, timeout=60
    )


def test_what_is_staged_is_counted_published_and_listed(hub: LoopbackHub, tmp_path: Path) -> None:
    runs = stage(forge(tmp_path), 12)
    looked = vulcan(hub, tmp_path, "status")
    assert looked.returncode == 0
    assert f"staging dir: {tmp_path}\npending shards: 12\n" in looked.stdout
    assert "... and 2 more" in looked.stdout
    done = vulcan(hub, tmp_path, "sync", "--max-batch", "6")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("committed=12 failed=0 remaining=0 commits=2 rows=48")
    assert run_ids(hub) == once_each(runs)
    looked = vulcan(hub, tmp_path, "vulcan", "status", "--json", module="matforge")
    assert json.loads(looked.stdout)["shards"]["synced"] == 12
    assert json.loads(looked.stdout)["budget_left"] == 88


def test_the_budget_of_the_environment_counts(hub: LoopbackHub, tmp_path: Path) -> None:
    """D24: the reference's command ignores the variable."""
    stage(forge(tmp_path), 6)
    done = vulcan(hub, tmp_path, "sync", "--max-batch", "1", MATFORGE_VULCAN_BUDGET="3")
    assert done.returncode == 75
    assert "remaining=3 commits=3" in done.stdout
    assert "the budget of 3 commits is spent" in done.stderr
    assert hub.count(COMMIT) == 3


def test_each_way_to_end_has_its_exit_code(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    stage(handle, 1)
    assert vulcan(hub, tmp_path, "sync", "--dry-run").returncode == 0
    assert vulcan(hub, tmp_path, "sync", MATFORGE_VULCAN_REPO="").returncode == 2
    assert vulcan(hub, tmp_path, "sync", "--repo", "not a repo!!").returncode == 2
    assert vulcan(hub, tmp_path, "sync", "--every", "soon").returncode == 2
    missing = vulcan(hub, tmp_path, "sync", "--repo", "me/forge", HF_ENDPOINT=f"{hub.endpoint}/nowhere")
    assert missing.returncode == 3
    assert "The Hub refuses me/forge" in missing.stderr
    assert "Traceback" not in missing.stderr
    unread = vulcan(hub, tmp_path, "query", "--source", "hub", "--repo", "me/other")
    assert (unread.returncode, unread.stdout) == (3, "")
    assert unread.stderr.startswith("matforge: me/other@main cannot be listed: ")
    assert unread.stderr.count("\n") == 1
    with StagingLease(tmp_path):
        busy = vulcan(hub, tmp_path, "sync")
    assert busy.returncode == 75
    assert "is being published by" in busy.stderr
    path = next((tmp_path / "pending").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:50])
    assert vulcan(hub, tmp_path, "sync").returncode == 1
    assert vulcan(hub, tmp_path / "none", "status").returncode == 2
    repaired = vulcan(hub, tmp_path, "repair", "--retry-failed")
    assert repaired.returncode == 0
    assert "is pending again" in repaired.stdout


def test_sync_goes_on_until_it_is_told_to_end(hub: LoopbackHub, tmp_path: Path) -> None:
    handle = forge(tmp_path)
    runs = stage(handle, 2)
    process = subprocess.Popen(
        [sys.executable, "-m", "matforge.vulcan", "sync", "--every", "0.2s", "--no-pictures"],
        env=environment(hub, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("committed=2")
        runs += stage(handle, 1, first=9)
        deadline = time.monotonic() + 30
        while counts(handle)[1] < 3 and time.monotonic() < deadline:
            process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, errors) == (0, "")
    assert run_ids(hub) == once_each(runs)
    assert not (tmp_path / "_sync.lock").exists()


def test_asked_twice_it_ends_in_the_middle_and_the_next_one_goes_on(hub: LoopbackHub, tmp_path: Path) -> None:
    runs, arrived, free = stage(forge(tmp_path), 2), threading.Event(), threading.Event()

    def hang() -> None:
        arrived.set()
        free.wait(60)

    hub.faults.add(COMMIT, 503, hook=hang, after=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "matforge.vulcan", "sync", "--no-pictures"],
        env=environment(hub, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert arrived.wait(60)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):  # it waits for the answer
            process.wait(1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    finally:
        free.set()
        process.kill()
        process.wait()
    assert process.returncode == 75
    assert "the next sync goes on" in errors
    assert vulcan(hub, tmp_path, "sync").returncode == 0
    assert run_ids(hub) == once_each(runs)


def test_a_folder_that_is_not_there_is_told(hub: LoopbackHub, tmp_path: Path) -> None:
    done = vulcan(hub, tmp_path / "typo", "sync")
    assert done.returncode == 0
    assert "There is no staging folder" in done.stderr


def test_asked_to_end_while_it_waits_for_the_hub_it_ends_at_once(hub: LoopbackHub, tmp_path: Path) -> None:
    stage(forge(tmp_path), 1)
    process: subprocess.Popen[str]
    hub.faults.add(COMMIT, 429, headers={"Retry-After": "200"})
    process = subprocess.Popen(
        [sys.executable, "-m", "matforge.vulcan", "sync", "--no-pictures"],
        env=environment(hub, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not hub.count(COMMIT) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 75
    assert "remaining=1" in output
    assert "rate limited: 429" in errors
