"""What whoever watches a run reads: MatEnsemble's schema 2, replaced whole, and not too often."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from matforge.engine.status import (
    FAILURES_KEPT,
    Counters,
    StatusWriter,
    last_sequence,
    read_status,
    timestamp,
)
from matforge.model import Failure, FailureKind, MatForgeError, RunState

NOW = 1.7e9
WORKFLOW = {"id": "matforge_workflow-1", "name": "n", "campaign": "c"}
ALLOCATION = {"nodes": 1, "cores_per_node": 2, "gpus_per_node": 0, "total_cores": 2, "total_gpus": 0}


def writer(tmp_path: Path, **options: Any) -> StatusWriter:
    """A writer of a run that began at ``NOW``."""
    made = StatusWriter(tmp_path, WORKFLOW, NOW, **options)
    made.allocation = ALLOCATION
    return made


def history(tmp_path: Path) -> list[dict[str, Any]]:
    """The lines of status_history.jsonl."""
    return [json.loads(line) for line in (tmp_path / "status_history.jsonl").read_text().splitlines()]


def test_the_document_has_the_keys_of_schema_2_and_cancelled_beside_them(tmp_path: Path) -> None:
    status = writer(tmp_path)
    status.failed("chore-a-0001", Failure(FailureKind.EXIT_CODE, "it said 3", stderr="oh\n"), NOW + 1)
    status.failed("chore-b-0002", Failure(FailureKind.DEPENDENCY_FAILED, "so", root="chore-a-0001"), NOW + 1)
    status.state = RunState.RUNNING
    status.write(Counters(1, 2, 3, 4, 5, 6, 7, 8), NOW + 2.5, force=True)
    assert read_status(tmp_path) == {
        "schema_version": 2,
        "workflow": {
            **WORKFLOW,
            "state": "running",
            "started_at": "2023-11-14T22:13:20.000+00:00",
            "updated_at": "2023-11-14T22:13:22.500+00:00",
            "finished_at": None,
            "elapsed_seconds": 2.5,
        },
        "allocation": ALLOCATION,
        "current": {
            "sequence": 1, "pending": 3, "ready": 1, "blocked": 2, "running": 3, "completed": 4, "failed": 5,
            "cancelled": 6, "free_cores": 7, "free_gpus": 8,
        },
        "failures": [
            {"chore_id": "chore-a-0001", "timestamp": "2023-11-14T22:13:21.000+00:00", "reason": "exit code",
             "upstream": None, "message": "it said 3", "stderr": "oh\n"},
            {"chore_id": "chore-b-0002", "timestamp": "2023-11-14T22:13:21.000+00:00",
             "reason": "dependency failed", "upstream": "chore-a-0001", "message": "so", "stderr": ""},
        ],
        "history_file": "status_history.jsonl",
        "kinds": {},
    }  # fmt: skip


def test_the_history_has_one_object_a_line(tmp_path: Path) -> None:
    status = writer(tmp_path)
    status.state = RunState.RUNNING
    status.write(Counters(ready=2), NOW, force=True)
    status.state = RunState.COMPLETED
    status.write(Counters(completed=2), NOW + 9, force=True)
    first, last = history(tmp_path)
    assert list(first) == [
        "sequence", "timestamp", "elapsed_seconds", "state", "pending", "ready", "blocked", "running",
        "completed", "failed", "cancelled", "free_cores", "free_gpus",
    ]  # fmt: skip
    assert (first["sequence"], first["state"], first["pending"]) == (1, "running", 2)
    assert (last["sequence"], last["state"], last["completed"]) == (2, "completed", 2)
    assert last["elapsed_seconds"] == 9


@pytest.mark.parametrize("state", [RunState.COMPLETED, RunState.FAILED, RunState.INTERRUPTED])
def test_a_run_that_has_ended_says_when(tmp_path: Path, state: RunState) -> None:
    status = writer(tmp_path)
    status.state = state
    status.write(Counters(), NOW + 60, force=True)
    workflow = read_status(tmp_path)["workflow"]
    assert (workflow["state"], workflow["finished_at"]) == (state.value, timestamp(NOW + 60))


def test_it_is_written_no_more_often_than_asked_and_only_if_something_changed(tmp_path: Path) -> None:
    status = writer(tmp_path, log_delay=5.0)
    assert status.write(Counters(ready=1), NOW)
    assert not status.write(Counters(ready=2), NOW + 4.9)
    assert status.changed(Counters(ready=2))
    assert status.due() == NOW + 5
    assert status.write(Counters(ready=2), NOW + 5)
    assert not status.changed(Counters(ready=2))
    assert not status.write(Counters(ready=2), NOW + 100)
    assert status.write(Counters(ready=2), NOW + 100, force=True)
    assert [line["sequence"] for line in history(tmp_path)] == [1, 2, 3]


def test_a_clock_that_is_set_back_gives_no_negative_time(tmp_path: Path) -> None:
    writer(tmp_path).write(Counters(), NOW - 100, force=True)
    assert read_status(tmp_path)["workflow"]["elapsed_seconds"] == 0


def test_only_so_many_failures_are_shown(tmp_path: Path) -> None:
    status = writer(tmp_path)
    for number in range(FAILURES_KEPT + 50):
        status.failed(f"chore-{number}", Failure(FailureKind.EXCEPTION, "boom"), NOW)
    status.write(Counters(failed=FAILURES_KEPT + 50), NOW, force=True)
    document = read_status(tmp_path)
    half = FAILURES_KEPT // 2
    wanted = [*range(half), *range(FAILURES_KEPT + 50 - half, FAILURES_KEPT + 50)]
    assert [f["chore_id"] for f in document["failures"]] == [f"chore-{number}" for number in wanted]
    assert document["current"]["failed"] == FAILURES_KEPT + 50


def test_further_keys_may_be_added(tmp_path: Path) -> None:
    status = writer(tmp_path)
    status.extra["strategy_errors"] = ["ValueError: no idea"]
    status.write(Counters(), NOW, force=True)
    assert read_status(tmp_path)["strategy_errors"] == ["ValueError: no idea"]


def test_a_reader_never_sees_half_a_document(tmp_path: Path) -> None:
    status = writer(tmp_path, log_delay=0.0)
    status.write(Counters(), NOW, force=True)
    stop = threading.Event()
    seen: list[int] = []

    def watch() -> None:
        while not stop.is_set():
            seen.append(read_status(tmp_path)["current"]["sequence"])

    thread = threading.Thread(target=watch)
    thread.start()
    for number in range(300):
        status.write(Counters(completed=number), NOW + number, force=True)
    stop.set()
    thread.join(30)
    assert seen == sorted(seen)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["status.json", "status_history.jsonl"]


def test_the_count_goes_on_where_the_last_driver_ended(tmp_path: Path) -> None:
    assert last_sequence(tmp_path) == 0
    status = writer(tmp_path)
    for _ in range(4):
        status.write(Counters(), NOW, force=True)
    assert last_sequence(tmp_path) == 4
    (tmp_path / "status.json").write_text("{}")
    assert last_sequence(tmp_path) == 0


def test_a_status_that_is_not_there_or_not_readable_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(MatForgeError, match=r"has no status\.json; is it the directory of a run\?"):
        read_status(tmp_path)
    for text in ("{", "[]", "{}", '{"workflow": {}, "current": 1}'):
        (tmp_path / "status.json").write_text(text)
        with pytest.raises(MatForgeError, match=r"status\.json cannot be read"):
            read_status(tmp_path)
    os.unlink(tmp_path / "status.json")
    (tmp_path / "status.json").mkdir()
    with pytest.raises(MatForgeError, match=r"status\.json cannot be read"):
        read_status(tmp_path)
