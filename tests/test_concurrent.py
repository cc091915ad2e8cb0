"""The executor façade, held against what :mod:`concurrent.futures` promises."""

from __future__ import annotations

import concurrent.futures
import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matforge import ChoreExecutor, ChoreFailedError, FailureKind, MatForgeError, Pipeline, UsageError
from matforge.model import RunState
from matforge.opening import reopen


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[ChoreExecutor]:
    """Two workers."""
    with ChoreExecutor(workers=2, basedir=tmp_path, quiet=True) as executor:
        yield executor


def broken(text: str) -> None:
    """Fails."""
    raise ValueError(text)


def read(path: str) -> str:
    """Blocks until somebody writes to the pipe."""
    return Path(path).read_text()


def test_calls_are_chores_and_their_results_come_in_order(pool: ChoreExecutor) -> None:
    assert list(pool.map(pow, range(20), [2] * 20)) == [n**2 for n in range(20)]
    offset = 100
    assert pool.submit(lambda x, *, y: offset + x + y, 1, y=2).result(60) == 103
    assert len(list((pool.run_dir / "out").glob("chore-pow-*"))) == 20


def test_futures_work_with_the_functions_of_the_standard_library(pool: ChoreExecutor) -> None:
    futures = [pool.submit(abs, -n) for n in range(10)]
    done, pending = concurrent.futures.wait(futures, timeout=60)
    assert (len(done), len(pending)) == (10, 0)
    assert sorted(f.result() for f in concurrent.futures.as_completed(futures)) == list(range(10))


def test_a_call_that_fails_says_why_and_harms_no_other(pool: ChoreExecutor) -> None:
    bad, dead, good = pool.submit(broken, "no"), pool.submit(os._exit, 3), pool.submit(abs, -1)
    error = bad.exception(60)
    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, ChoreFailedError)
    assert error.__cause__.failure.kind is FailureKind.EXCEPTION
    assert "ValueError: no" in error.__cause__.failure.traceback
    with pytest.raises(ChoreFailedError) as failed:
        dead.result(60)
    assert (failed.value.failure.kind, failed.value.failure.exit_code) == (FailureKind.EXIT_CODE, 3)
    assert good.result(60) == 1


class Awkward(Exception):
    """Can be pickled, but not be made again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def raise_awkward() -> None:
    """Fails with it."""
    raise Awkward(1, 2)


def test_what_a_call_raises_is_raised_again_for_whoever_asks(pool: ChoreExecutor) -> None:
    class Mine(LookupError):
        """Known in this script only."""

    def look() -> None:
        os.chdir("/")
        error = Mine("not here")
        error.add_note("look elsewhere")
        raise error

    with pytest.raises(LookupError, match=r"^not here") as raised:
        pool.submit(look).result(60)
    assert raised.value.__notes__ == ["look elsewhere"]
    with pytest.raises(ZeroDivisionError):
        list(pool.map(divmod, [1, 1], [1, 0]))
    with pytest.raises(ChoreFailedError, match="Awkward: 1 and 2"):
        pool.submit(raise_awkward).result(60)


def test_cancelling_stops_even_a_call_that_runs(pool: ChoreExecutor, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    future = pool.submit(read, str(path))
    assert future.cancel()
    assert future.cancelled()
    assert not future.running()
    assert pool.submit(abs, -5).result(60) == 5
    assert not pool.submit(abs, -5).cancelled()


def test_what_is_not_a_function_or_cannot_be_pickled_is_refused(pool: ChoreExecutor) -> None:
    with pytest.raises(UsageError, match="must be a function, not int"):
        pool.submit(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="of type generator, cannot be pickled"):
        pool.submit(sum, (n for n in range(3)))


def test_after_shutdown_nothing_is_taken_and_the_run_is_whole(tmp_path: Path) -> None:
    pool = ChoreExecutor(workers=1, basedir=tmp_path, quiet=True, name="pool")
    futures = [pool.submit(abs, -n) for n in range(5)]
    pool.shutdown()
    assert [f.result() for f in futures] == list(range(5))
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(abs, 1)
    document: dict[str, Any] = json.loads((pool.run_dir / "status.json").read_text())
    assert document["workflow"]["state"] == "completed"
    assert document["current"]["completed"] == 5


def test_shutdown_can_cancel_what_waits_and_lets_what_runs_end(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    pool = ChoreExecutor(workers=1, basedir=tmp_path, quiet=True)
    first, *rest = [pool.submit(read, str(path)) for _ in range(40)]
    descriptor = os.open(path, os.O_WRONLY)  # returns when the first call has opened it for reading
    assert first.running()
    pool.shutdown(wait=False, cancel_futures=True)
    given = [f for f in rest if f.running()]  # a few wait at the agent already
    assert len(given) < len(rest)
    assert all(f.cancelled() for f in rest if f not in given)
    os.write(descriptor, b"late")
    os.close(descriptor)
    assert first.result(60) == "late"
    for one in given:
        path.write_text("later")
        assert one.result(60) == "later"
    pool.shutdown()


def test_a_run_of_calls_that_was_interrupted_can_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    pool = ChoreExecutor(workers=1, basedir=tmp_path, quiet=True)
    future = pool.submit(read, str(path))
    pool._session.interrupt("a test")
    with pytest.raises(MatForgeError, match="ended before this call did"):
        future.result(60)
    with pytest.raises(MatForgeError, match="The run has ended; nothing can be added"):
        pool.submit(abs, 1)
    pool.shutdown()
    session = reopen(pool.run_dir, quiet=True)
    path.write_text("late")
    session.wait(60)
    assert session.outcome()["chore-read-0001"] == "late"


def test_a_reference_of_a_pipeline_is_refused(pool: ChoreExecutor, tmp_path: Path) -> None:
    reference = Pipeline(tmp_path).chore()(abs)(-1)
    with pytest.raises(UsageError, match=r"refers to chore-abs-0001 of a pipeline.*\.result\(\)"):
        pool.submit(abs, reference)
    assert pool.submit(abs, -2).result(60) == 2


def test_a_call_that_cannot_be_recorded_is_told_to_who_waits(
    pool: ChoreExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(call: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "journal.jsonl")

    monkeypatch.setattr(pool._session.engine, "add", full)
    with pytest.raises(OSError, match="No space left"):
        pool.submit(abs, -1)
    assert pool._session.wait(60) is RunState.INTERRUPTED


def test_a_failure_can_be_passed_to_another_process(pool: ChoreExecutor) -> None:
    error = pool.submit(os._exit, 3).exception(60)
    assert isinstance(error, ChoreFailedError)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.failure) == (str(error), error.failure)


def test_a_script_that_forgets_to_shut_down_ends_when_its_calls_have(tmp_path: Path) -> None:
    script = "from matforge import ChoreExecutor; ChoreExecutor(1, quiet=True).submit(abs, -1)"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, timeout=60, check=True)
    (status,) = tmp_path.glob("*/status.json")
    document = json.loads(status.read_text())
    assert (document["workflow"]["state"], document["current"]["completed"]) == ("completed", 1)
