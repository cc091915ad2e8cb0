"""One task of a job of its own: exact ends, nothing left behind. No resource manager is needed for that."""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from matforge.engine.locations import read
from matforge.model import Location
from matforge.worker.wire import AgentConfig, Profile, TaskField, pack, python_arguments

CHORE = "chore-it-0001"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory with the chore's folder."""
    path = tmp_path / "run"
    (path / "out" / CHORE).mkdir(parents=True)
    (path / "out" / "registry").mkdir()
    return path


def start(
    run_dir: Path,
    *,
    command: list[str] | None = None,
    function: Any = None,
    rank: int = 0,
    timeout_s: float | None = None,
    memory: int | None = None,
) -> Any:
    """Start one rank of two."""
    wire: list[Any] = [None] * len(TaskField)
    wire[TaskField.HANDLE], wire[TaskField.CHORE_ID], wire[TaskField.TAG] = 0, CHORE, "e1a1"
    wire[TaskField.COMMAND], wire[TaskField.SEED], wire[TaskField.DIRECTORY] = command, 7, f"out/{CHORE}"
    wire[TaskField.TIMEOUT], wire[TaskField.MEMORY] = timeout_s, memory
    blob = b""
    if function is not None:
        wire[TaskField.FUNCTION] = "function"
        (run_dir / "out" / "registry" / "function").write_bytes(cloudpickle.dumps(function))
        blob = pickle.dumps(((), {}))
    wire[TaskField.PAYLOAD] = len(blob)
    config = run_dir / "config.json"
    config.unlink(missing_ok=True)
    AgentConfig(
        run_dir=str(run_dir), epoch=1, agent=0, endpoint="", identity="", token="", scratch="", workers=1,
        sys_path=sys.path,
    ).save(config)  # fmt: skip
    task = run_dir / "out" / CHORE / "task.e1a1"
    profile = Profile(num_tasks=2, mpi=True, command=function is None)
    task.write_bytes(pack({"profile": profile.as_dict(), "task": wire}, blob))
    return subprocess.Popen(
        python_arguments(sys.executable, "jobtask", str(config), str(task)),
        env={**os.environ, "FLUX_TASK_RANK": str(rank), "FLUX_URI": "local:///full"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(process: Any, run_dir: Path, rank: int = 0) -> tuple[int, dict[str, Any], str]:
    """Exit code, what the task said about its end, and its output."""
    printed, _ = process.communicate(timeout=60)
    said = json.loads((run_dir / "out" / CHORE / f"task.e1a1.{rank}.json").read_text())
    return process.returncode, said, printed


def test_a_program_ends_well_with_its_result_and_its_usage(run_dir: Path) -> None:
    script = "echo $MATFORGE_RANK/$MATFORGE_SIZE/$MATFORGE_SEED/$FLUX_URI; pwd"
    code, said, printed = end(start(run_dir, command=["sh", "-c", script]), run_dir)
    assert (code, said["failure"]) == (0, None)
    assert printed.split() == ["0/2/7/", str(run_dir / "out" / CHORE)]
    value = pickle.loads(read(run_dir, Location.from_list(said["result"])))
    assert value.exit_code == 0
    assert said["usage"][2] > 0
    assert said["usage"][4] > 1 << 20


def test_only_rank_0_has_a_result(run_dir: Path) -> None:
    code, said, _ = end(start(run_dir, command=["true"], rank=1), run_dir, rank=1)
    assert code == 0
    assert "result" not in said


@pytest.mark.parametrize(
    ("script", "code", "kind"), [("exit 9", 9, "exit code"), ("kill -SEGV $$", 128 + 11, "signal")]
)
def test_a_program_that_fails_says_exactly_how(run_dir: Path, script: str, code: int, kind: str) -> None:
    ended, said, _ = end(start(run_dir, command=["sh", "-c", script]), run_dir)
    assert (ended, said["failure"]["kind"]) == (code, kind)


def test_a_program_that_does_not_exist_is_named(run_dir: Path) -> None:
    _, said, _ = end(start(run_dir, command=["no-such-program"]), run_dir)
    assert said["failure"]["kind"] == "start failed"
    assert "'no-such-program'" in said["failure"]["message"]


def test_a_function_gives_its_result_or_its_exception(run_dir: Path) -> None:
    _, said, _ = end(start(run_dir, function=lambda: 6 * 7), run_dir)
    assert pickle.loads(read(run_dir, Location.from_list(said["result"]))) == 42
    code, said, _ = end(start(run_dir, function=lambda: 1 / 0), run_dir)
    assert code == 1
    assert said["failure"]["message"].startswith("ZeroDivisionError")


def test_a_function_that_takes_its_process_with_it_is_told(run_dir: Path) -> None:
    code, said, _ = end(start(run_dir, function=os.abort), run_dir)
    assert code == 128 + signal.SIGABRT
    assert said["failure"]["signal"] == signal.SIGABRT


def test_a_limit_of_time_or_memory_ends_it_with_its_kind(run_dir: Path) -> None:
    _, said, _ = end(start(run_dir, command=["sleep", "1000"], timeout_s=0.3), run_dir)
    assert said["failure"]["kind"] == "timeout"
    assert "0.3 s" in said["failure"]["message"]
    hungry = [sys.executable, "-c", "import time; x = b'x' * (200 << 20); time.sleep(1000)"]
    _, said, _ = end(start(run_dir, command=hungry, memory=200 << 20), run_dir)
    assert said["failure"]["kind"] == "out of memory"
    assert "100.0 MiB" in said["failure"]["message"]  # its half of what both ranks may have


def test_what_it_leaves_behind_ends_with_it_and_when_it_is_told_to_end(run_dir: Path) -> None:
    leave = "setsid sleep 1000 & echo $!"
    _, _, printed = end(start(run_dir, command=["sh", "-c", leave]), run_dir)
    assert gone(int(printed))
    process = start(run_dir, command=["sh", "-c", f"trap '' TERM; {leave}; sleep 1000"])
    pid = int(process.stdout.readline())
    process.terminate()
    code, _, _ = end(process, run_dir)
    assert code == 128 + signal.SIGKILL
    assert gone(pid)


def gone(pid: int) -> bool:
    """Whether a process that is not our child has ended, or does so in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 20)[0])
    finally:
        os.close(descriptor)
