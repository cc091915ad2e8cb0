"""``du`` and ``clean``: told before it is done, and never what somebody may still need."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matforge import MatForgeError, Pipeline
from matforge.engine.cache import FOLDER
from matforge.engine.footprint import PARTS, measure
from matforge.engine.journal import Journal
from matforge.engine.lock import RunLock
from matforge.engine.store import JOURNAL_NAME, LOCK_NAME, RunStore
from tests.cli.conftest import Done


def finished(base: Path, layout: str = "full") -> tuple[Path, dict[str, Any]]:
    """A run of three functions and a command, and its references."""
    pipe = Pipeline(base, workers=1, layout=layout)
    make = pipe.chore("make", cache=True)(lambda n: print("making", n) or np.arange(n))
    total = pipe.chore("total")(lambda values: int(values.sum()))
    refs: dict[str, Any] = {"make": make(1000), "unused": make(2000)}
    refs["total"] = total(refs["make"])
    refs["command"] = pipe.exec(["echo", "told"])
    future = pipe.submit(quiet=True)
    future.result(60)
    return future.run_dir, refs


@pytest.mark.parametrize("layout", ["full", "packed"])
def test_what_is_told_adds_up_to_what_there_is(
    tmp_path: Path, here: Callable[..., Done], layout: str
) -> None:
    run_dir, _ = finished(tmp_path, layout)
    (run_dir / "mine.txt").write_bytes(b"x" * 777)
    told = json.loads(here("du", tmp_path, "--json").out)
    (run,) = told["runs"]
    really = sum(p.stat().st_size for p in run_dir.rglob("*") if p.is_file())
    assert run["bytes"] == really == sum(run["parts"].values())
    assert set(run["parts"]) == set(PARTS)
    assert run["parts"]["results"] > 24_000
    assert run["parts"]["streams"] == len("making 1000\n" + "making 2000\n" + "told\n")
    assert run["parts"]["other"] >= 777
    assert run["kinds"]["make"] > 24_000 > run["kinds"]["total"] > 0
    assert told["caches"][0]["bytes"] + told["caches"][0]["shared_with_runs"] > 24_000


def test_a_person_reads_the_same(tmp_path: Path, here: Callable[..., Done]) -> None:
    run_dir, _ = finished(tmp_path)
    said = here("du", run_dir)
    assert said.code == 0
    assert "results" in said.out
    assert "chores make" in said.out
    assert "cache" not in said.out
    assert "cache of" in here("du", tmp_path).out
    (tmp_path / "empty").mkdir()
    assert "no run" in here("du", tmp_path / "empty").out
    assert here("du", tmp_path / "nowhere").code == 2


def test_nothing_is_removed_without_a_word(tmp_path: Path, here: Callable[..., Done]) -> None:
    run_dir, _ = finished(tmp_path)
    before = sorted(run_dir.rglob("*"))
    shown = here("clean", run_dir, "--streams", "--results-of", "make", "--dry-run")
    assert shown.code == 0
    assert "out/chore-make-0001/result.pickle" in shown.out
    asked = here("clean", run_dir, "--streams")
    assert asked.code == 2
    assert "--yes" in asked.err
    assert sorted(run_dir.rglob("*")) == before


def test_only_results_that_have_served_are_removed_and_whoever_asks_is_told(
    tmp_path: Path, here: Callable[..., Done]
) -> None:
    run_dir, refs = finished(tmp_path)
    done = here("clean", run_dir, "--results-of", "make", "--yes")
    assert done.code == 0
    assert "1 stay, because no chore has used them" in done.err
    assert refs["unused"].result().sum() == sum(range(2000))
    assert refs["total"].result() == sum(range(1000))
    with pytest.raises(MatForgeError, match=r"make-0001/result.pickle was removed by `matforge clean`"):
        refs["make"].result()
    assert here("clean", run_dir, "--results-of", "make", "--yes").out == "There is nothing to remove.\n"
    assert not (run_dir / LOCK_NAME).exists()


def test_streams_of_commands_are_results_and_stay(tmp_path: Path, here: Callable[..., Done]) -> None:
    run_dir, refs = finished(tmp_path)
    assert here("clean", run_dir, "--streams", "--yes").code == 0
    assert Path(refs["command"].result().stdout).read_text() == "told\n"
    assert not (run_dir / "out" / refs["make"].chore_id / "stdout").exists()


def test_files_of_attempts_that_did_not_count_are_removed(tmp_path: Path, here: Callable[..., Done]) -> None:
    run_dir, refs = finished(tmp_path)
    folder = run_dir / "out" / refs["make"].chore_id
    for name in ("result.pickle.e1a7", "stdout.e1a7", "result.pickle.e2a1.new", "mine.e1"):
        (folder / name).write_text("left")
    assert measure(run_dir).parts["leftovers"] == 12
    assert here("clean", tmp_path, "--yes").code == 0
    assert sorted(p.name for p in folder.glob("*.e*")) == ["mine.e1"]
    (folder / "result.pickle").rename(folder / "result.pickle.e1a1")  # as a power failure may leave it
    assert here("clean", tmp_path, "--yes").out == "There is nothing to remove.\n"
    (folder / "result.pickle.e1a1").rename(folder / "result.pickle")
    assert refs["make"].result().sum() == sum(range(1000))


def test_packed_results_stay_and_it_is_said(tmp_path: Path, here: Callable[..., Done]) -> None:
    run_dir, refs = finished(tmp_path, "packed")
    done = here("clean", run_dir, "--results-of", "make", "--yes")
    assert "packed with others" in done.err
    assert refs["make"].result().sum() == sum(range(1000))


def test_a_run_that_somebody_drives_is_left_alone(tmp_path: Path, here: Callable[..., Done]) -> None:
    import time

    run_dir, _ = finished(tmp_path)
    lock = RunLock(run_dir / LOCK_NAME)
    lock.acquire(time.time())
    try:
        refused = here("clean", run_dir, "--streams", "--yes")
    finally:
        lock.release()
    assert refused.code == 75
    assert "is being run by" in refused.err
    assert (run_dir / "out" / "chore-make-0001" / "stdout").exists()


def test_results_of_a_run_that_has_not_ended_stay(tmp_path: Path, here: Callable[..., Done]) -> None:
    run_dir, _ = finished(tmp_path)
    lines = (run_dir / JOURNAL_NAME).read_bytes().splitlines(keepends=True)
    (run_dir / JOURNAL_NAME).write_bytes(b"".join(lines[:-1]))
    refused = here("clean", run_dir, "--results-of", "make", "--yes")
    assert refused.code == 2
    assert "has not come to its end" in refused.err


def test_a_name_that_no_chore_has_is_refused_with_the_nearest(
    tmp_path: Path, here: Callable[..., Done]
) -> None:
    run_dir, _ = finished(tmp_path)
    refused = here("clean", run_dir, "--results-of", "mak", "--yes")
    assert refused.code == 2
    assert "'make'" in refused.err


def test_the_cache_of_a_folder_is_emptied(tmp_path: Path, here: Callable[..., Done]) -> None:
    _, refs = finished(tmp_path)
    assert (tmp_path / FOLDER).is_dir()
    assert here("clean", tmp_path, "--cache", "--dry-run").code == 0
    assert (tmp_path / FOLDER).is_dir()
    assert here("clean", tmp_path, "--cache", "--yes").code == 0
    assert not (tmp_path / FOLDER).exists()
    assert refs["make"].result().sum() == sum(range(1000))
    assert "has no cache" in here("clean", tmp_path, "--cache", "--yes").out


def test_a_large_packed_run_is_measured_by_the_heads_of_its_records(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    Journal(run_dir / JOURNAL_NAME).close()
    store = RunStore(run_dir, layout="packed")
    for n in range(20_000):
        store.put_result(f"chore-a-{n:05d}", b"r" * 10)
        store.put_metadata(f"chore-a-{n:05d}", None, {})
    store.close()
    found = measure(run_dir)
    assert (found.parts["results"], found.kinds["a"]) == (200_000, 240_000)
    os.truncate(run_dir / "segments" / "1-driver.seg", 1_000_001)
    assert measure(run_dir).total == 1_000_001
