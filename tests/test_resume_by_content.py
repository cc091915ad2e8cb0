"""A script that is run again goes on with its own run: chores are found by what they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from matforge import (
    ChoreSpec,
    Event,
    FutureProcessingStrategy,
    Pipeline,
    RunFailedError,
    UsageError,
    View,
)
from matforge.engine import journal
from matforge.engine.store import JOURNAL_NAME
from matforge.model import RunState
from matforge.session import ENDED


def note(folder: str, name: str, *needs: Any) -> str:
    """Leaves a line for every time it runs."""
    with (Path(folder) / name).open("a") as file:
        file.write("ran\n")
    return f"{name}({','.join(needs)})"


def read(path: str) -> str:
    """Blocks until somebody writes to the pipe."""
    return Path(path).read_text()


def times(folder: Path, name: str) -> int:
    """How often a chore ran."""
    path = folder / name
    return len(path.read_text().splitlines()) if path.exists() else 0


class Follow(FutureProcessingStrategy):
    """Spawns one chore after another."""

    def __init__(self) -> None:
        self.count = 0

    def on_event(self, view: View, event: Event) -> Any:
        self.count += 1
        if event.chore.name == "b":
            return ChoreSpec((self.folder, "spawned", event.ref), qualname="spawned")
        return None

    folder = ""


def script(base: Path, marks: Path, *, more: bool = False, **options: Any) -> tuple[Pipeline, dict[str, Any]]:
    """The same script each time; with ``more``, it has grown in front."""
    pipe = Pipeline(base, workers=2, **options)
    work = {name: pipe.chore(name)(note) for name in ("a", "b", "c", "new")}
    pipe.chore("spawned")(note)
    hold = pipe.chore("hold")(read)
    refs: dict[str, Any] = {}
    if more:
        refs["new"] = work["new"](str(marks), "new")
    refs["a"] = work["a"](str(marks), "a")
    refs["b"] = work["b"](str(marks), "b", refs["a"])
    refs["hold"] = hold(str(marks / "gate"))
    refs["c"] = work["c"](str(marks), "c", refs["b"], refs["hold"])
    return pipe, refs


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Path, Path]:
    """A run of which the first half is done, and the folder of the marks."""
    marks = tmp_path / "marks"
    marks.mkdir()
    os.mkfifo(marks / "gate")
    pipe, refs = script(tmp_path / "runs", marks)
    strategy = Follow()
    strategy.folder = str(marks)
    future = pipe.submit(quiet=True, processing_strategy=strategy)
    list(pipe.as_completed([refs["b"]], 60))
    with ENDED:
        assert ENDED.wait_for(lambda: any("spawned" in name for name in future.partial()), 60)
    future.cancel()
    assert future.wait(60) is RunState.INTERRUPTED
    return future.run_dir, marks


@pytest.mark.parametrize("more", [False, True])
def test_what_completed_is_not_run_again_even_if_the_script_has_grown(
    begun: tuple[Path, Path], more: bool
) -> None:
    run_dir, marks = begun
    pipe, refs = script(run_dir.parent, marks, more=more, resume=run_dir)
    strategy = Follow()
    strategy.folder = str(marks)
    future = pipe.submit(quiet=True, processing_strategy=strategy)
    (marks / "gate").write_text("open")
    assert future.wait(60) is RunState.COMPLETED
    assert future.run_dir == run_dir
    assert refs["c"].result() == "c(b(a()),open)"
    assert [times(marks, name) for name in ("a", "b", "c", "spawned")] == [1, 1, 1, 1]
    assert times(marks, "new") == more
    if more:
        assert refs["new"].result() == "new()"
    assert {one.chore_id for one in pipe.as_completed(timeout=60)} == {r.chore_id for r in refs.values()}
    assert len(list(run_dir.parent.iterdir())) == 1


def test_a_run_that_ended_before_the_script_had_submitted_everything_is_completed(
    begun: tuple[Path, Path],
) -> None:
    run_dir, marks = begun
    path = run_dir / JOURNAL_NAME
    records, _ = journal.read(path)
    adds = [n for n, r in enumerate(records) if r["e"] == "add"]
    with path.open("rb") as file:
        for _ in range(adds[1] + 1):
            file.readline()
        end = file.tell()
    os.truncate(path, end)
    pipe, refs = script(run_dir.parent, marks, resume=run_dir)
    future = pipe.submit(quiet=True)
    (marks / "gate").write_text("open")
    assert future.wait(60) is RunState.COMPLETED
    assert refs["c"].result() == "c(b(a()),open)"


def test_the_functions_of_the_script_take_the_place_of_the_old_ones(begun: tuple[Path, Path]) -> None:
    run_dir, marks = begun
    pipe = Pipeline(run_dir.parent, workers=2, resume=run_dir)
    for name in ("a", "b", "spawned"):
        pipe.chore(name)(note)
    changed = pipe.chore("c")(lambda *args: "changed")
    hold = pipe.chore("hold")(lambda path: "not waited for")
    a = pipe.call("a", str(marks), "a")
    b = pipe.call("b", str(marks), "b", a)
    c = changed(str(marks), "c", b, hold(str(marks / "gate")))
    assert pipe.submit(quiet=True).wait(60) is RunState.COMPLETED
    assert (b.result(), c.result()) == ("b(a())", "changed")


def test_the_environment_names_a_run_for_the_first_submit_only(
    begun: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, marks = begun
    monkeypatch.setenv("MATFORGE_RESUME", str(run_dir))
    pipe, _ = script(run_dir.parent, marks)
    future = pipe.submit(quiet=True)
    (marks / "gate").write_text("open")
    assert future.wait(60) is RunState.COMPLETED
    assert future.run_dir == run_dir
    other = Pipeline(run_dir.parent, workers=1)
    other.chore("one")(lambda: 1)()
    assert other.submit(quiet=True).run_dir != run_dir


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, resume=tmp_path)
    pipe.chore("one")(lambda: 1)()
    with pytest.raises(UsageError, match="is not a run and holds none"):
        pipe.submit()


def test_results_and_failures_go_by_the_ids_that_the_script_knows(tmp_path: Path) -> None:
    """A script that has grown in front numbers its chores otherwise than the run that it goes on with."""

    def recorded(pipe: Pipeline, *numbers: int) -> list[Any]:
        return pipe.chore("inverse")(lambda n: 1 / n).map(numbers)

    pipe = Pipeline(tmp_path, workers=1)
    recorded(pipe, 1, 2)
    pipe.exec("true", name="dropped")
    first = pipe.submit(quiet=True)
    assert first.wait(60) is RunState.COMPLETED

    pipe = Pipeline(tmp_path, workers=1, resume=first.run_dir)
    zero, four, one, two = recorded(pipe, 0, 4, 1, 2)
    after = pipe.chore("after")(lambda x: x)(zero)
    with pytest.raises(RunFailedError) as failed:
        pipe.submit(quiet=True).result(60)
    results, failures = failed.value.results, failed.value.failures
    assert [results[ref.chore_id] for ref in (four, one, two)] == [0.25, 1.0, 0.5]
    assert zero.chore_id not in results
    assert {name: failure.root for name, failure in failures.items()} == {
        zero.chore_id: None,
        after.chore_id: zero.chore_id,
    }
    assert sorted(results) == [
        "chore-dropped-0003",
        *sorted(ref.chore_id for ref in (four, one, two)),
    ]
    assert len(dict(results)) == len(results) == 4
