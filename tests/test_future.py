"""Waiting for a run and for its chores."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from matforge import InterruptedRunError, MatForgeError, Pipeline, RunFailedError, UsageError, as_completed
from matforge.model import OutputReference


def read(path: str) -> str:
    """Blocks until somebody writes to the pipe."""
    return Path(path).read_text()


def gate(folder: Path, name: str) -> Path:
    """A pipe that holds a chore up until it is written to."""
    path = folder / name
    os.mkfifo(path)
    return path


def test_references_come_in_the_order_in_which_chores_end(tmp_path: Path) -> None:
    gates = [gate(tmp_path, f"gate-{n}") for n in range(3)]
    pipe = Pipeline(tmp_path, workers=3)
    refs = pipe.chore()(read).map(map(str, gates))
    pipe.submit(quiet=True)
    found = pipe.as_completed([*refs, refs[1][0]], timeout=60)
    order = []
    for n in (2, 0, 1):
        gates[n].write_text(str(n))
        order.append(next(found).result())
    assert order == ["2", "0", "1"]
    assert next(found).result() == "1"  # the same chore, another part
    assert list(found) == []


def test_results_stand_in_the_order_of_the_chores_not_of_their_ends(tmp_path: Path) -> None:
    gates = [gate(tmp_path, f"gate-{n}") for n in range(3)]
    pipe = Pipeline(tmp_path, workers=3)
    refs = pipe.chore()(read).map(map(str, gates))
    future = pipe.submit(quiet=True)
    found = pipe.as_completed(timeout=60)
    for n in (2, 0, 1):
        gates[n].write_text(str(n))
        next(found)
    assert list(future.partial()) == [ref.chore_id for ref in refs]
    assert list(future.result(60).values()) == ["0", "1", "2"]


def test_chores_that_fail_or_are_cancelled_are_told_too(tmp_path: Path) -> None:
    stop = gate(tmp_path, "gate")
    pipe = Pipeline(tmp_path, workers=2)
    bad = pipe.chore("bad")(lambda: 1 / 0)()
    endless = pipe.chore()(read)(str(stop))
    future = pipe.submit(quiet=True)
    found = pipe.as_completed(timeout=60)
    assert next(found) == bad
    pipe.cancel(endless)
    assert next(found) == endless
    with pytest.raises(MatForgeError, match="was cancelled"):
        endless.result()
    with pytest.raises(RunFailedError):
        future.result(60)


def test_several_pipelines_run_at_once_in_one_process_and_second(tmp_path: Path) -> None:
    gates = [gate(tmp_path, f"gate-{n}") for n in range(2)]
    pipes = [Pipeline(tmp_path, workers=1) for _ in gates]
    refs = [pipe.chore()(read)(str(g)) for pipe, g in zip(pipes, gates, strict=True)]
    futures = [pipe.submit(quiet=True) for pipe in pipes]
    assert futures[0].run_dir != futures[1].run_dir
    found = as_completed(refs, timeout=60)
    gates[1].write_text("second")
    assert next(found) == refs[1]
    gates[0].write_text("first")
    assert [one.result() for one in found] == ["first"]
    done, pending = concurrent.futures.wait(futures, timeout=60)
    assert (len(done), len(pending)) == (2, 0)


def test_waiting_for_chores_has_an_end(tmp_path: Path) -> None:
    stop = gate(tmp_path, "gate")
    pipe = Pipeline(tmp_path, workers=1)
    reference = pipe.chore()(read)(str(stop))
    future = pipe.submit(quiet=True)
    with pytest.raises(TimeoutError, match=r"1 chores have not ended after 0\.01 s; the run goes on"):
        list(pipe.as_completed(timeout=0.01))
    with pytest.raises(TimeoutError, match=r"chore-read-0001 has not ended after 0\.01 s"):
        reference.result(timeout=0.01)
    assert dict(future.partial()) == {}
    assert future.cancel()
    with pytest.raises(InterruptedRunError, match="cancelled by its script"):
        future.result(60)
    assert not future.cancel()
    with pytest.raises(MatForgeError, match="The run ended before chore-read-0001 had"):
        list(pipe.as_completed())


def test_what_there_is_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    stop = gate(tmp_path, "gate")
    pipe = Pipeline(tmp_path, workers=2)
    quick = pipe.chore("quick")(lambda n: n + 1).map(range(3))
    slow = pipe.chore()(read)(str(stop))
    future = pipe.submit(quiet=True)
    partial = future.partial()
    for one in as_completed(quick, 60):
        assert one.chore_id in partial
    assert sorted(partial.values()) == [1, 2, 3]
    stop.write_text("now")
    assert future.result(60)[slow.chore_id] == "now"
    assert len(partial) == 4


def test_a_callback_is_called_with_the_run_and_its_exception(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, workers=1)
    pipe.chore("bad")(lambda: 1 / 0)()
    told: list[Any] = []
    called = threading.Event()
    future = pipe.submit(quiet=True)
    future.add_done_callback(lambda f: (told.append(f.exception()), called.set()))
    assert called.wait(60)
    assert isinstance(told[0], RunFailedError)


def test_a_reference_without_a_run_cannot_be_waited_for() -> None:
    with pytest.raises(UsageError, match="is not bound to a run here"):
        as_completed([OutputReference("chore-x-0001")])
    pipe = Pipeline()
    reference = pipe.chore("one")(lambda: 1)()
    with pytest.raises(MatForgeError, match=r"call submit\(\) first"):
        as_completed([reference])
