"""Reading a run beside its driver: alive, ended or killed, in either layout."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matforge.chore import ChoreSpec
from matforge.engine.history import (
    chore_ids,
    failed_chores,
    files_of,
    find_runs,
    is_consequence,
    read_stories,
    seed_of,
    standing,
    story_of,
    streams_of,
)
from matforge.engine.journal import JournalError
from matforge.engine.lock import RunLock
from matforge.engine.store import JOURNAL_NAME, LOCK_NAME
from matforge.executors.protocol import Task
from matforge.executors.simulated import Outcome
from matforge.model import ChoreState, Failure, FailureKind, MatForgeError, UsageError
from matforge.strategy import FutureProcessingStrategy, Spawn, View
from tests.harness import call, killed_after, play, records, ref, resume, scratch

BOOM = Failure(FailureKind.EXCEPTION, "boom", traceback="Traceback ...", stderr="oh no\n")
CALLS = [call("fit", 1), call("bad", 2), call("after", ref("bad", 2)), call("after", ref("fit", 1))]


def behave(task: Task) -> Outcome:
    return Outcome(failure=BOOM) if task.name == "bad" else Outcome(report={"n": 1})


@pytest.fixture(params=["full", "packed"])
def run_dir(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A finished run with a failure and a chore that failed because of it."""
    folder = scratch()
    session, _ = play(folder, CALLS, behave, layout=request.param)
    session.wait(60)
    yield session.run_dir
    shutil.rmtree(folder)


def test_a_chore_that_completed_is_told_with_its_attempt_and_report(run_dir: Path) -> None:
    story = story_of(run_dir, "chore-fit-0001")
    assert (story.state, story.failure, story.report) == (ChoreState.COMPLETED, None, {"n": 1})
    assert story.chore is not None
    assert story.chore.name == "fit"
    assert story.result is not None
    (attempt,) = story.attempts
    assert (attempt["epoch"], attempt["number"], attempt["outcome"]) == (1, 1, "completed")


def without_times(attempt: dict[str, Any]) -> dict[str, Any]:
    """The journal rounds times."""
    return {key: attempt[key] for key in ("epoch", "number", "outcome", "host", "slot", "max_rss")}


def test_the_attempts_are_those_of_the_metadata(run_dir: Path) -> None:
    for name in ("chore-fit-0001", "chore-bad-0002", "chore-after-0003"):
        path = run_dir / "out" / name / "metadata.json"
        if path.exists():
            told = json.loads(path.read_text())
            story = story_of(run_dir, name)
            shown = [
                {k: a[k] for k in ("epoch", "number", "outcome", "host", "slot")} for a in story.attempts
            ]
            kept = [
                {k: a[k] for k in ("epoch", "number", "outcome", "host", "slot")} for a in told["attempts"]
            ]
            assert shown == kept
            assert told["state"] == (story.state.value if story.state else None)
    assert (run_dir / "out" / "chore-bad-0002" / "metadata.json").exists(), "failed chores have a folder"


def test_failures_are_told_in_order_with_their_root(run_dir: Path) -> None:
    bad, after = failed_chores(run_dir)
    assert (bad.id, bad.failure) == ("chore-bad-0002", BOOM)
    assert (after.id, after.attempts) == ("chore-after-0003", [])
    assert after.failure is not None
    assert after.failure.root == "chore-bad-0002"
    assert [is_consequence(s.failure) for s in (bad, after) if s.failure] == [False, True]


def test_an_unknown_chore_is_refused_with_the_nearest(run_dir: Path) -> None:
    with pytest.raises(UsageError, match="chore-fit-0001"):
        story_of(run_dir, "chore-fti-0001")


def test_the_seed_is_that_which_the_chore_gets_in_this_run(tmp_path: Path) -> None:
    for seed in (0, 7):
        session, _ = play(tmp_path, [call("fit", 1)], seed=seed, layout="full")
        session.wait(60)
        told = json.loads((session.run_dir / "out" / "chore-fit-0001" / "metadata.json").read_text())
        chore = story_of(session.run_dir, "chore-fit-0001").chore
        assert chore is not None
        assert seed_of(session.run_dir, chore) == told["seed"]


def test_chores_of_an_answer_that_was_taken_in_slices_are_known(tmp_path: Path) -> None:
    class Many(FutureProcessingStrategy):
        def on_start(self, view: View) -> list[Spawn]:
            return [Spawn(ChoreSpec((n,), qualname="fit")) for n in range(1200)]

    session, _ = play(tmp_path, [call("fit", 1)], strategy=Many(), workers=8, layout="packed")
    session.wait(60)
    ids = chore_ids(session.run_dir)
    assert len(ids) == len(set(ids)) == 1201
    assert story_of(session.run_dir, ids[-1]).state is ChoreState.COMPLETED


def test_all_ids_are_known_in_the_order_of_the_run(run_dir: Path) -> None:
    assert chore_ids(run_dir) == ["chore-fit-0001", "chore-bad-0002", "chore-after-0003", "chore-after-0004"]
    assert chore_ids(run_dir / "nowhere") == []


def test_a_run_killed_after_any_record_can_be_looked_at(run_dir: Path, tmp_path: Path) -> None:
    known: set[str] = set()
    for count in range(1, len(records(run_dir)) + 1):
        copy = killed_after(run_dir, count, tmp_path / str(count))
        ids = chore_ids(copy)
        assert known <= set(ids)
        known = set(ids)
        stories = read_stories(copy, ids)
        assert list(stories) == ids
        ended = {r["id"]: r["s"] for r in records(copy) if r["e"] == "end"}
        assert {s.id: s.state.value for s in stories.values() if s.state} == ended
        assert [s.id for s in failed_chores(copy)] == [i for i, s in ended.items() if s == "failed"]


def test_attempts_of_a_resumed_run_carry_the_epoch_they_ran_in(run_dir: Path, tmp_path: Path) -> None:
    count = next(i for i, r in enumerate(records(run_dir)) if r["e"] == "end")
    copy = killed_after(run_dir, count, tmp_path / "killed")
    session, _ = resume(copy, behave)
    session.wait(60)
    assert story_of(copy, "chore-fit-0001").attempts[0]["epoch"] == 2


def test_the_end_of_a_record_that_is_being_written_is_not_looked_at(run_dir: Path) -> None:
    path = run_dir / JOURNAL_NAME
    os.truncate(path, path.stat().st_size - 5)
    assert story_of(run_dir, "chore-fit-0001").state is ChoreState.COMPLETED


def test_a_damaged_record_is_told_with_its_offset(run_dir: Path) -> None:
    path = run_dir / JOURNAL_NAME
    data = path.read_bytes()
    place = data.index(b'"id":"chore-fit-0001"')
    path.write_bytes(data[:place] + b'"iD"' + data[place + 4 :])
    offset = data.rindex(b"\n", 0, place) + 1
    with pytest.raises(JournalError, match=f"damaged at byte {offset}"):
        story_of(run_dir, "chore-fit-0001")


def test_looking_changes_nothing(run_dir: Path) -> None:
    def portrait() -> dict[str, tuple[int, int]]:
        return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in run_dir.rglob("*")}

    before = portrait()
    standing(run_dir)
    failed_chores(run_dir)
    story_of(run_dir, "chore-bad-0002")
    assert portrait() == before


# ---------------------------------------------------------------- streams


def test_the_streams_of_an_attempt_that_runs_are_the_latest_ones(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "chore-a-0001"
    folder.mkdir(parents=True)
    for n, name in enumerate(("stdout.e1a1", "stdout.e1a2", "stderr.e1a2")):
        (folder / name).write_text(name)
        os.utime(folder / name, (n, n))
    assert {k: p.name for k, p in streams_of(tmp_path, "chore-a-0001").items()} == {
        "stdout": "stdout.e1a2", "stderr": "stderr.e1a2",
    }  # fmt: skip
    (folder / "stdout").write_text("accepted")
    assert streams_of(tmp_path, "chore-a-0001")["stdout"].name == "stdout"
    assert files_of(tmp_path, "chore-b-0002") == []


# ---------------------------------------------------------------- standing


def test_a_run_that_has_ended_stands_as_its_driver_left_it(run_dir: Path) -> None:
    document = standing(run_dir)
    assert document["workflow"]["state"] == "failed"
    assert document["workflow"]["driver"] is None
    assert document["kinds"]["after"] == {"added": 2, "completed": 1, "failed": 1, "cancelled": 0}


def say_it_runs(run_dir: Path) -> None:
    path = run_dir / "status.json"
    document = json.loads(path.read_text())
    document["workflow"].update(state="running", finished_at=None)
    path.write_text(json.dumps(document))


def test_a_run_whose_driver_was_killed_is_interrupted_and_says_how_to_go_on(run_dir: Path) -> None:
    say_it_runs(run_dir)
    workflow = standing(run_dir)["workflow"]
    assert workflow["state"] == "interrupted"
    assert f"matforge resume {run_dir}" in workflow["note"]


def test_a_run_that_nobody_can_go_on_with_is_not_said_to_go_on(run_dir: Path) -> None:
    count = next(n for n, record in enumerate(records(run_dir)) if record["e"] == "submitted")
    for kept, last in ((count + 1, "resume"), (count, "start it again"), (0, "start it again")):
        copy = killed_after(run_dir, kept, run_dir.with_name(f"killed-after-{kept}"))
        say_it_runs(copy)
        assert last in standing(copy)["workflow"]["note"]
        if last == "resume":
            resume(copy, behave)[0].wait(60)
        else:
            with pytest.raises(MatForgeError, match="was ended before"):
                resume(copy, behave)


def test_a_living_run_has_a_driver_and_its_time_goes_on(run_dir: Path) -> None:
    say_it_runs(run_dir)
    lock = RunLock(run_dir / LOCK_NAME)
    lock.acquire(time.time())
    workflow = standing(run_dir)["workflow"]
    lock.release()
    assert workflow["state"] == "running"
    assert workflow["driver"]["pid"] == os.getpid()
    assert workflow["elapsed_seconds"] > 1e6, "the simulated clock began long ago"


def test_a_run_that_was_killed_before_its_first_status_is_interrupted(run_dir: Path) -> None:
    (run_dir / "status.json").unlink()
    assert standing(run_dir)["workflow"]["state"] == "interrupted"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MatForgeError, match=r"has no status\.json"):
        standing(tmp_path)


# ---------------------------------------------------------------- runs below a folder


def test_runs_are_found_to_the_depth_that_was_asked_for(tmp_path: Path) -> None:
    for name in ("a", "deep/b", "deep/deeper/c", ".hidden/d", "a/out/e"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / JOURNAL_NAME).touch()
    (tmp_path / "loop").symlink_to(tmp_path)

    def names(depth: int) -> list[str]:
        return [str(p.relative_to(tmp_path)) for p in find_runs(tmp_path, depth)]

    assert names(0) == []
    assert names(1) == ["a"]
    assert names(3) == ["a", "deep/b", "deep/deeper/c"]
    assert list(find_runs(tmp_path / "a", 0)) == [tmp_path / "a"]
    assert list(find_runs(tmp_path / "nowhere", 3)) == []
