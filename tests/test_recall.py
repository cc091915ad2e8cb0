"""``cache=True``: results are shared between the runs of a folder."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest

import matforge
from matforge import Pipeline, WithReport, opening
from matforge.chore import Call
from matforge.engine import salvage
from matforge.engine.cache import FOLDER, Cache
from matforge.engine.history import story_of
from matforge.engine.journal import Journal
from matforge.engine.locations import location_of
from matforge.engine.run import Run
from matforge.engine.store import RunStore
from matforge.future import RunFuture
from matforge.model import Attempt, Resources, Usage, UsageError
from matforge.packing import pack
from matforge.policy import Policy
from matforge.recall import Recall
from matforge.steering import Entry
from tests.harness import killed_after, records


def calls(folder: Path) -> int:
    """How often functions that leave a mark were called."""
    return len(list(folder.glob("mark-*")))


def marker(folder: Path) -> Callable[[], None]:
    def mark() -> None:
        import os
        import secrets

        open(os.path.join(folder, f"mark-{secrets.token_hex(8)}"), "x").close()

    return mark


def run_once(
    base: Path,
    layout: str = "full",
    *,
    factor: int = 2,
    cache: Any = True,
    seed: int = 0,
    large: bool = False,
) -> tuple[RunFuture, list[Any]]:
    """Two cached chores, the second of which needs the first, in a run of their own."""
    mark = marker(base)
    pipe = Pipeline(base, workers=2, layout=layout, seed=seed)

    @pipe.chore(cache=cache)
    def first(n: int) -> Any:
        mark()
        value = np.arange(n * 100_000 if large else n)
        return WithReport(value, {"n": n})

    @pipe.chore(cache=cache)
    def second(values: Any) -> Any:
        mark()
        return int(values.sum()) * factor

    made = first(4)
    total = second(made)
    future = pipe.submit(quiet=True)
    future.result(60)
    return future, [int(made.result().sum()), total.result()]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("layout", ["full", "packed"])
def test_the_next_run_takes_what_the_first_has_made(tmp_path: Path, layout: str, large: bool) -> None:
    _, made = run_once(tmp_path, layout, large=large)
    assert calls(tmp_path) == 2
    for again in ("full", "packed"):
        future, taken = run_once(tmp_path, again, large=large)
        assert taken == made
        assert calls(tmp_path) == 2
        status = json.loads((future.run_dir / "status.json").read_text())
        assert status["current"]["completed"] == 2
        story = story_of(future.run_dir, "chore-first-0001")
        assert [a["outcome"] for a in story.attempts] == ["cached"]
        assert story.report == {"n": 4}


def test_a_changed_function_misses_and_what_comes_before_it_does_not(tmp_path: Path) -> None:
    run_once(tmp_path, factor=2)
    _, values = run_once(tmp_path, factor=3)
    assert values == [6, 18]
    assert calls(tmp_path) == 3


def test_a_declared_version_misses(tmp_path: Path) -> None:
    run_once(tmp_path, cache="v1")
    run_once(tmp_path, cache="v2")
    assert calls(tmp_path) == 4


def test_without_the_word_nothing_is_shared_and_nothing_is_made(tmp_path: Path) -> None:
    run_once(tmp_path, cache=False)
    run_once(tmp_path, cache=False)
    assert calls(tmp_path) == 4
    assert not (tmp_path / FOLDER).exists()


def test_a_damaged_cache_is_a_miss(tmp_path: Path) -> None:
    run_once(tmp_path)
    for path in (tmp_path / FOLDER / "objects").rglob("*"):
        if path.is_file():
            path.unlink()
            path.write_bytes(b"damaged")
    assert run_once(tmp_path)[1] == [6, 12]
    assert calls(tmp_path) == 4
    assert run_once(tmp_path)[1] == [6, 12]
    assert calls(tmp_path) == 4


def test_the_cached_results_of_a_run_outlive_the_cache(tmp_path: Path) -> None:
    import shutil

    run_once(tmp_path)
    future, _ = run_once(tmp_path)
    shutil.rmtree(tmp_path / FOLDER)
    again = opening.reopen(future.run_dir, quiet=True)
    again.wait(60)
    assert again.read_result("chore-second-0002") == 12
    assert calls(tmp_path) == 2


def test_a_run_that_is_killed_at_any_record_resumes_without_calling_anything(tmp_path: Path) -> None:
    run_once(tmp_path)
    future, _ = run_once(tmp_path)
    for count in range(records_before_the_end(future.run_dir), len(records(future.run_dir))):
        copy = killed_after(future.run_dir, count, tmp_path / f"killed-{count}")
        session = opening.reopen(copy, quiet=True)
        session.wait(60)
        assert session.read_result("chore-second-0002") == 12
    assert calls(tmp_path) == 2


def records_before_the_end(run_dir: Path) -> int:
    """Records without which the script would have to be run again."""
    return next(i for i, r in enumerate(records(run_dir)) if r["e"] == "submitted") + 1


SCRIPT = """
import a_helper
from matforge import Pipeline

pipe = Pipeline({base!r}, workers=1, layout={layout!r})
double = pipe.chore("double", cache=True)(a_helper.double)
model = pipe.chore("model", cache=True)(lambda: a_helper.Model())
use = pipe.chore("use", cache=True)(lambda model: model.predict())
call = pipe.chore("call", cache=True)(lambda function, x: function(x))
made = [double(3), use(model()), use(a_helper.Model()), call(a_helper.double, 3)]
pipe.submit(quiet=True).result()
print([one.result() for one in made])
"""
HELPER = """
def double(x):
    return 2 * x
class Model:
    def predict(self):
        return 10
"""


@pytest.mark.parametrize("layout", ["full", "packed"])
def test_changed_code_behind_an_argument_or_a_result_misses(tmp_path: Path, layout: str) -> None:
    def run(helper: str) -> str:
        (tmp_path / "a_helper.py").write_text(helper)
        (tmp_path / "script.py").write_text(SCRIPT.format(base=str(tmp_path / "runs"), layout=layout))
        # Python takes compiled code for current if the file has its size and second; slots write it, too
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, str(tmp_path / "script.py")]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    def attempts() -> list[str]:
        run_dir = max((tmp_path / "runs").glob("matforge*"), key=lambda path: path.stat().st_mtime_ns)
        return ["cached" if "k" in r else "made" for r in records(run_dir) if r["e"] == "end"]

    assert run(HELPER) == "[6, 10, 10, 6]\n"
    assert run(f"# the same\n{HELPER}") == "[6, 10, 10, 6]\n"
    assert attempts() == 5 * ["cached"]
    assert run(HELPER.replace("2 * x", "3 * x").replace("10", "11")) == "[9, 11, 11, 9]\n"


def test_a_resume_with_changed_code_leaves_nothing_under_the_name_of_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "changing_helper.py").write_text("def f(x):\n    return x + 1\n")
    pipe = Pipeline(tmp_path / "runs", workers=1)
    add = pipe.chore("add", cache=True)(importlib.import_module("changing_helper").f)
    add(1)
    future = pipe.submit(quiet=True)
    future.result(60)
    begun = killed_after(future.run_dir, records_before_the_end(future.run_dir), tmp_path / "runs" / "begun")
    shutil.rmtree(tmp_path / "runs" / FOLDER)
    (tmp_path / "changing_helper.py").write_text("def f(x):\n    return x + 20\n")
    session = opening.reopen(begun, quiet=True)
    session.wait(60)
    assert session.read_result("chore-add-0001") == 21
    assert not (tmp_path / "runs" / FOLDER).exists()


def test_entries_say_what_they_are(tmp_path: Path) -> None:
    future, _ = run_once(tmp_path)
    made = [json.loads(p.read_text())["made"] for p in (tmp_path / FOLDER / "entries").rglob("*.json")]
    (first,) = (entry for entry in made if entry["chore"] == "chore-first-0001")
    assert first["arguments"] == "4"
    assert first["run"] == future.run_dir.name


def test_what_depends_on_the_seed_is_taken_for_the_same_seed_only(tmp_path: Path) -> None:
    def once(seed: int) -> int:
        with Pipeline(tmp_path, workers=1, seed=seed) as pipe:
            draw = pipe.chore("draw", cache=True)(lambda: matforge.seed())()
            pipe.submit(quiet=True)
            return int(draw.result(60))

    assert once(1) == once(1)
    assert once(1) != once(2)


def test_a_chore_that_fails_leaves_no_entry(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, workers=1)
    pipe.chore("bad", cache=True)(lambda: 1 / 0)()
    assert isinstance(pipe.submit(quiet=True).exception(60), matforge.RunFailedError)
    assert not (tmp_path / FOLDER).exists()


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file in its place")
    assert run_once(tmp_path)[1] == [6, 12]


@pytest.mark.parametrize("word", [1, "", None, 2.5])
def test_a_word_that_says_nothing_is_refused(tmp_path: Path, word: Any) -> None:
    with pytest.raises(UsageError, match="cache must be True, False or a version"):
        Pipeline(tmp_path).chore(cache=word)


@pytest.mark.parametrize("ended", [False, True], ids=["the run goes on", "the run ends"])
def test_what_is_found_for_a_chore_that_was_cancelled_meanwhile_leaves_no_file(
    tmp_path: Path, ended: bool
) -> None:
    cache = Cache(tmp_path)
    functions = {"work": Entry("work", Resources(), "work", fingerprint="f")}
    answers: Queue[Callable[[], None]] = Queue()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        run = Run(RunStore(tmp_path / name, layout="full"), Journal(tmp_path / name / "journal.jsonl"))
        recall = Recall(run, cache, functions, answers.put, lambda chore: 0)
        payload, _ = pack(((), {}))
        chore = run.add(Call("work", payload, (), "work", policy=Policy(cache="")))
        recall.look()
        answer = answers.get(timeout=30)
        folder = tmp_path / name / "out" / chore.id
        if name == "first":
            answer()
            assert run.submit_next() is not None
            (folder / "result.pickle.e1a1").write_bytes(pickle.dumps(1))
            where = location_of(f"out/{chore.id}/result.pickle.e1a1", pickle.dumps(1))
            run.succeeded(Attempt(chore.id, 1, 1), where, report={}, usage=Usage())
            recall.keep(chore, {})
        else:
            assert [path.name for path in folder.glob("result*")] == ["result.pickle.e1a1"]
            run.decisions.cancel(chore.id)
            if not ended:
                answer()
        recall.close()
        if ended:
            salvage.sweep(run, run.lossy)
        run.flush(0.0)
        run.journal.close()
    assert list(folder.glob("result*")) == []
