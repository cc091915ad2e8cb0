"""``status``, ``ls``, ``watch`` and ``cancel`` on real runs, alive and ended."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from matforge.cli.watch import Look, Teller, rate_of
from tests.cli.conftest import Done
from tests.cli.test_commands import MATFORGE, matforge, one_sentence
from tests.harness import records

SCRIPT = """
import sys, time
import numpy as np
from matforge import Pipeline, WithReport

pipe = Pipeline(name="look", campaign="tests")


class Point:
    def __init__(self, x):
        self.x = x


@pipe.chore()
def fit(n, point=None):
    print("fitting", n)
    if n == 1:
        print("cannot fit", file=sys.stderr)
        raise ValueError("one is bad")
    return WithReport(np.arange(float(n)), {"n": n})


@pipe.chore()
def after(values):
    return 1


first = fit(3, point=Point(2))
after(first[0:2])
after(fit(1))
pipe.submit()
"""


@pytest.fixture(scope="module", params=["full", "packed"])
def run_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended, with a failure."""
    folder = tmp_path_factory.mktemp("look")
    (folder / "script.py").write_text(SCRIPT)
    result = matforge(
        "run", "-q", "--json", "--layout", request.param, "--dir", "runs", "script.py", cwd=folder
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, "quiet says only why it failed"
    (told,) = json.loads(result.stdout.splitlines()[-1])
    assert told["workflow"]["state"] == "failed"
    return Path(told["run_dir"])


# ---------------------------------------------------------------- status


def test_status_says_how_each_kind_of_chore_stands(run_dir: Path, here: Callable[..., Done]) -> None:
    done = here("status", run_dir.parent)
    assert done.code == 0
    assert "fit: 1 of 2 completed, 1 failed" in done.out
    assert "look" in done.out
    assert "chore-fit-0003 failed (exception): ValueError: one is bad" in done.err


def test_every_failure_is_told_with_its_evidence_and_root_cause(
    run_dir: Path, here: Callable[..., Done]
) -> None:
    done = here("status", run_dir, "--failed")
    lines = done.out.splitlines()
    assert lines[0] == "chore-fit-0003 failed (exception): ValueError: one is bad"
    assert "    | cannot fit" in lines
    assert lines[-1] == "  chore-after-0004 failed (dependency failed): root cause chore-fit-0003"
    fit, after = json.loads(here("status", run_dir, "--failed", "--json").out)
    assert (fit["kind"], after["root"]) == ("exception", "chore-fit-0003")
    assert "one is bad" in fit["traceback"]


def test_a_chore_is_told_with_all_that_a_person_debugging_wants(
    run_dir: Path, here: Callable[..., Done]
) -> None:
    out = here("status", run_dir, "--chore", "chore-fit-0003").out
    for text in (
        "failed (exception): ValueError: one is bad", "fit(1)", "1 (driver 1): exception",
        "Traceback (most recent call last)", "    fitting 1", "    cannot fit", "out/chore-fit-0003/stdout",
    ):  # fmt: skip
        assert text in out
    out = here("status", run_dir, "--chore", "chore-after-0002").out
    assert "after(chore-fit-0001[0:2])" in out
    assert "chore-fit-0001 (completed)" in out


def test_a_result_is_shown_only_when_asked_for(run_dir: Path, here: Callable[..., Done]) -> None:
    told = json.loads(here("status", run_dir, "--chore", "chore-fit-0001", "--json").out)
    assert told["arguments"] == "3, point=Point(x=2)"
    assert told["report"] == {"n": 3}
    assert "value" not in told
    assert "array([0., 1., 2.])" in here("status", run_dir, "--chore", "chore-fit-0001", "--result").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--chore", "chore-fti-0001"), ("chore-fit-0001",)),
        (("--chore", "chore-fit-0001", "--failed"), ("not both",)),
        (("--result",), ("--chore",)),
    ],
    ids=["unknown-chore", "two-questions", "result-of-nothing"],
)
def test_a_question_that_makes_no_sense_is_refused(
    arguments: tuple[str, ...], words: tuple[str, ...], run_dir: Path, here: Callable[..., Done]
) -> None:
    done = here("status", run_dir, *arguments)
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert all(word in done.err for word in words)


def test_no_failure_is_said_so(tmp_path: Path, here: Callable[..., Done]) -> None:
    from tests.harness import call, play

    session, _ = play(tmp_path, [call("a", 1)])
    session.wait(30)
    assert here("status", tmp_path, "--failed").out == "No chore failed.\n"
    assert json.loads(here("status", tmp_path, "--failed", "--json").out) == []


# ---------------------------------------------------------------- ls


def test_ls_lists_the_newest_first_and_marks_what_is_dead_or_broken(
    run_dir: Path, tmp_path: Path, here: Callable[..., Done]
) -> None:
    import shutil

    old = shutil.copytree(run_dir, tmp_path / "old" / run_dir.name)
    document = json.loads((old / "status.json").read_text())
    document["workflow"].update(state="running", started_at="2020-01-01T00:00:00.000+00:00")
    (old / "status.json").write_text(json.dumps(document))
    shutil.copytree(run_dir, tmp_path / run_dir.name)
    broken = shutil.copytree(run_dir, tmp_path / "zbroken")
    (broken / "status.json").write_text("{")
    new, dead, unreadable = json.loads(here("ls", tmp_path, "--json").out)
    assert (new["state"], new["completed"], new["failed"], new["total"]) == ("failed", 2, 2, 4)
    assert (dead["state"], dead["dead"], dead["campaign"]) == ("interrupted", True, "tests")
    assert unreadable["state"] == "unreadable"
    lines = here("ls", tmp_path).out.splitlines()
    assert [name for line in lines for name in ("failed ", "✗", "unreadable") if name in line] == [
        "failed ", "failed ", "✗", "unreadable",
    ]  # fmt: skip


def test_ls_says_so_if_there_is_nothing(tmp_path: Path, here: Callable[..., Done]) -> None:
    assert "There is no run" in here("ls", tmp_path).out
    assert json.loads(here("ls", tmp_path, "--json").out) == []
    assert here("ls", tmp_path / "nowhere").code == 2


# ---------------------------------------------------------------- a living run

SLOW_SCRIPT = """
import time
from matforge import Pipeline

pipe = Pipeline(workers=2)


@pipe.chore()
def hold(n):
    print("begun", n, flush=True)
    time.sleep(600)


@pipe.chore()
def after(value):
    return value


@pipe.chore()
def quick():
    return 1


quick()
one, two = hold(1), hold(2)
after(one), after(two)
pipe.submit(log_delay=0.1)
"""


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Look until the condition holds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


@dataclass
class Live:
    """A run that will not end by itself."""

    folder: Path
    driver: subprocess.Popen[str]

    @property
    def run_dir(self) -> Path:
        return next(self.folder.glob("runs/matforge_workflow-*"))


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    """A run in which two chores hold both slots."""
    (tmp_path / "script.py").write_text(SLOW_SCRIPT)
    driver = subprocess.Popen(
        [*MATFORGE, "run", "--dir", "runs", "script.py"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until(lambda: _begun(tmp_path) or driver.poll() is not None)
        assert driver.poll() is None, driver.communicate()
        yield Live(tmp_path, driver)
    finally:
        if driver.poll() is None:
            driver.send_signal(signal.SIGTERM)
        driver.communicate(timeout=30)


def _begun(folder: Path) -> bool:
    files = folder.glob("runs/*/out/chore-hold-*/stdout*")
    with suppress(OSError):
        return sum("begun" in path.read_text() for path in files) == 2
    return False


def test_a_living_run_is_looked_at_cancelled_in_part_and_ended(live: Live, here: Callable[..., Done]) -> None:
    told = json.loads(here("status", live.run_dir, "--chore", "chore-hold-0002", "--json").out)
    assert (told["state"], told["stdout"]) == ("running", "begun 1\n")
    told = json.loads(here("status", live.run_dir, "--chore", "chore-after-0004", "--json").out)
    assert (told["state"], told["dependencies"]) == ("blocked", {"chore-hold-0002": "not ended"})
    assert here("ls", live.folder).out.count("running") == 1
    assert f"process {live.driver.pid} on" in here("status", live.folder / "runs").out

    refused = here("cancel", live.run_dir, "chore-hold-0002", "chore-hlod-0003")
    assert refused.code == 2
    assert "chore-hold-0003" in refused.err
    done = here("cancel", live.run_dir, "chore-*-0002", "chore-quick-0001", "--json")
    assert done.code == 0
    assert json.loads(done.out) == {
        "cancelled": ["chore-hold-0002"], "dependents": ["chore-after-0004"],
        "ended": ["chore-quick-0001"], "unknown": "",
    }  # fmt: skip
    written = [r["d"] for r in records(live.run_dir) if r["e"] == "cancel"]
    assert written == [[["cancel", "chore-hold-0002", 1]]], "journalled before it was told"
    until(lambda: '"cancelled"' in here("status", live.run_dir, "--chore", "chore-hold-0002", "--json").out)
    again = here("cancel", live.run_dir, "chore-quick-0001")
    assert again.code == 1
    assert "Nothing was cancelled" in again.err

    ended = here("cancel", live.run_dir)
    assert ended.code == 0
    assert f"matforge resume {live.run_dir}" in ended.out
    assert live.driver.wait(30) == 75
    document = json.loads(here("status", live.run_dir, "--json").out)
    assert document["workflow"]["state"] == "interrupted"
    assert document["current"]["cancelled"] == 2
    assert list((live.run_dir / "requests").iterdir()) == []
    nobody = here("cancel", live.run_dir)
    assert nobody.code == 2
    assert "Nobody drives" in nobody.err


def test_a_watched_run_ends_the_watching_with_its_own_exit_code(live: Live) -> None:
    command = [*MATFORGE, "watch", str(live.run_dir), "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        try:
            assert watch.stdout is not None
            assert "running: 1 of 5 completed" in watch.stdout.readline()
            live.driver.kill()
            rest, _ = watch.communicate(timeout=60)
        finally:
            watch.kill()
    assert "its driver is gone" in rest
    assert watch.returncode == 75
    assert matforge("ls", str(live.folder)).stdout.count("✗") == 1


def test_watching_on_a_terminal_draws_bars_and_ctrl_c_ends_only_the_watching(live: Live) -> None:
    descriptor, terminal = pty.openpty()
    watcher = subprocess.Popen(
        [*MATFORGE, "watch", str(live.run_dir), "--interval", "0.1"],
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
    )  # fmt: skip
    os.close(terminal)
    seen = b""
    deadline = time.monotonic() + 60
    while b"cores 2 of 2 busy" not in seen and time.monotonic() < deadline:
        seen += os.read(descriptor, 65536)
    assert b"hold" in seen
    assert b"0 of 2" in seen
    watcher.send_signal(signal.SIGINT)
    with suppress(OSError):  # how a terminal says that nobody is left
        while more := os.read(descriptor, 65536):
            seen += more
    assert watcher.wait(60) == 130
    os.close(descriptor)
    assert b"no longer watching" in seen
    assert b"Traceback" not in seen
    assert live.driver.poll() is None


def test_watching_a_run_that_has_ended_tells_its_failures_and_its_code(
    run_dir: Path, here: Callable[..., Done]
) -> None:
    done = here("watch", run_dir)
    assert done.code == 1
    assert "failed: 2 of 4 completed, 2 failed" in done.out
    assert "chore-fit-0003 failed (exception): ValueError: one is bad" in done.out


# ---------------------------------------------------------------- what is shown of the pace


def line(elapsed: float, completed: int, failed: int = 0) -> dict[str, Any]:
    return {"elapsed_seconds": elapsed, "completed": completed, "failed": failed, "cancelled": 0}


@pytest.mark.parametrize(
    ("history", "elapsed", "rate"),
    [
        ([], 10.0, None),
        ([line(10.0, 0)], 10.0, None),
        ([line(0.0, 0), line(10.0, 15, 5)], 10.0, 2.0),
        ([line(0.0, 0), line(10.0, 20)], 40.0, 0.5),
        ([line(0.0, 0), line(10.0, 20)], 1000.0, 0.0),
        ([line(0.0, 0), line(10.0, 20), line(80.0, 50)], 100.0, 0.5),
    ],
    ids=["nothing", "one-line", "young", "slowing", "stalled", "last-minute"],
)
def test_the_rate_is_that_of_the_last_minute(
    history: list[dict[str, Any]], elapsed: float, rate: float | None
) -> None:
    assert rate_of(history, elapsed) == rate


def document(sequence: int, **failures: str) -> dict[str, Any]:
    return {
        "workflow": {"state": "running", "updated_at": "2026-01-01T10:20:30.000+00:00", "driver": {"pid": 1}},
        "allocation": {"total_cores": 4},
        "current": {
            "sequence": sequence, "pending": 30, "running": 3, "completed": 5, "failed": len(failures),
            "cancelled": 0, "free_cores": 1,
        },
        "failures": [{"chore_id": i, "reason": "exception", "message": m} for i, m in failures.items()],
        "strategy_errors": ["ZeroDivisionError: by zero (on a)"],
    }  # fmt: skip


def test_lines_tell_only_what_is_new() -> None:
    teller = Teller()
    first = teller.lines(Look(document(1, a="a: bad"), 0.5))
    assert first == [
        "10:20:30 running: 5 of 39 completed, 1 failed, cores 3 of 4 busy, 0.5 chores/s, "
        "1 min 6 s left for the chores there are",
        "a failed (exception): bad",
        "the strategy failed: ZeroDivisionError: by zero (on a)",
    ]
    assert teller.lines(Look(document(1, a="a: bad"), 0.4)) == []
    assert [text[:10] for text in teller.lines(Look(document(2, a="a: bad", b="worse"), None))] == [
        "10:20:30 r", "b failed (",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["watch", "cancel", "status"])
def test_a_folder_without_a_run_is_refused(command: str, tmp_path: Path) -> None:
    one_sentence(matforge(command, str(tmp_path)), str(tmp_path))
