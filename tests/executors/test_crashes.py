"""Wherever a chore comes to grief, and however: it ends soon, with a kind of its own and the evidence."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import chores
import pytest
from harness import Gate, Harness, wait_for_end

from matforge.executors.local import LocalExecutor
from matforge.executors.protocol import Lost, Task
from matforge.model import FailureKind, Lane, Resources

K = FailureKind
MIB = 1 << 20
WHERE = ("unpickle", "import", "run", "pickle", "publish", "report")
TIMEOUT_S = 0.5
SOON_S = 5.0

KINDS = {
    "sys.exit": K.EXIT_CODE,
    "os._exit": K.EXIT_CODE,
    "abort": K.SIGNAL,
    "segfault": K.SIGNAL,
    "kill": K.WORKER_LOST,
    "out of memory": K.OUT_OF_MEMORY,
    "hang": K.TIMEOUT,
    "stop": K.WORKER_LOST,
}
RAISED = {
    "unpickle": K.CANNOT_LOAD,
    "import": K.CANNOT_LOAD,
    "run": K.EXCEPTION,
    "pickle": K.CANNOT_PICKLE_RESULT,
    "publish": K.STORAGE,
    "report": K.EXIT_CODE,
}
"""An exception is told by where it was raised; in the slot's last words it ends the slot."""


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which slots look for modules."""
    folder = tmp_path_factory.mktemp("modules")
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, modules: Path) -> Iterator[Harness]:
    harness = Harness(LocalExecutor(1), tmp_path_factory.mktemp("crashes") / "run")
    harness.value(harness.task(chores.add, 1, 1))
    yield harness
    harness.executor.close(kill=True)


def mined(harness: Harness, modules: Path, where: str, how: str) -> Task:
    """A chore that goes off at ``where``."""
    if where == "unpickle":
        task = harness.task(chores.echo, chores.Bomb(how))
    elif where == "import":
        name = f"mine_{list(KINDS).index(how) if how in KINDS else 'raise'}"
        (modules / f"{name}.py").write_text(f"import chores\nchores.detonate({how!r})\n")
        here = sys.modules[name] = types.ModuleType(name)
        exec("def f(): pass", here.__dict__)  # by reference to a module that does more, elsewhere
        task = harness.task(here.f)
    elif where == "run":
        task = harness.task(chores.detonate, how)
    elif where == "pickle":
        task = harness.task(chores.make_bomb, how)
    else:
        task = harness.task(chores.detonate_when, where, how)
    return replace(task, timeout_s=TIMEOUT_S if how == "hang" else None, memory=150 * MIB)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("how", ["raise", *KINDS])
def test_crash_table(harness: Harness, modules: Path, where: str, how: str) -> None:
    task = mined(harness, modules, where, how)
    begun = time.monotonic()
    report = harness.run(task)[0]
    assert time.monotonic() - begun < SOON_S + (TIMEOUT_S if how == "hang" else 0.0)
    failure = report.failure
    assert failure is not None
    assert failure.kind is (RAISED[where] if how == "raise" else KINDS[how])
    assert isinstance(report, Lost) == (failure.kind is K.WORKER_LOST)
    assert failure.message.startswith(f"{task.attempt.chore_id}: ") or failure.traceback
    assert "\n" not in failure.message
    # the evidence
    assert failure.host
    assert failure.slot is not None
    assert failure.attempt == 1
    assert failure.started_at is not None
    assert abs(failure.started_at - time.time()) < 60
    assert failure.wall_s is not None
    assert failure.peak_memory is not None
    assert failure.peak_memory > (150 * MIB if how == "out of memory" else MIB)
    number = {"abort": signal.SIGABRT, "segfault": signal.SIGSEGV, "kill": signal.SIGKILL}.get(how)
    assert number is None or failure.signal == number
    if where not in ("run", "import", "unpickle") and how in ("abort", "segfault", "kill", "os._exit"):
        assert {"pickle": "pickled", "publish": "written", "report": "reported"}[where] in failure.message
    # and nobody else is any the worse for it
    assert harness.value(harness.task(chores.add, 1, 1)) == 2


# -- time


def test_a_timeout_ends_a_chore_that_does_not_listen(harness: Harness) -> None:
    failure = harness.failure(replace(harness.task(chores.ignore_terminations), timeout_s=0.2))
    assert failure.kind is K.TIMEOUT
    assert failure.message.endswith("it took longer than its timeout of 0.2 s.")
    assert failure.signal == signal.SIGKILL


def test_a_timeout_ends_the_whole_tree_on_both_lanes(harness: Harness, tmp_path: Path) -> None:
    warm = harness.task(chores.family, str(tmp_path / "python"))
    command = harness.command(sys.executable, chores.__file__, str(tmp_path / "command"))
    for task, note in ((warm, tmp_path / "python"), (command, tmp_path / "command")):
        report = harness.end(replace(task, timeout_s=2.0))
        assert report.failure is not None
        assert report.failure.kind is K.TIMEOUT
        assert 2.0 <= report.usage.wall_s < 2.0 + SOON_S
        assert all(wait_for_end(int(pid)) for pid in note.read_text().split())


def test_a_timeout_counts_from_the_start_and_not_from_the_queue(harness: Harness, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    held = harness.task(chores.wait_at, gate.path)
    behind = [replace(harness.task(chores.add, i, i), timeout_s=0.3) for i in range(3)]
    harness.executor.submit([held, *behind])
    harness.wait_until_started(held)
    assert harness.executor.poll(0.5) == []
    gate.open()
    assert all(e.failure is None for e in harness.wait_for([held, *behind]))


def test_an_isolated_chore_that_hangs_is_ended(harness: Harness) -> None:
    task = harness.task(chores.endless, resources=Resources(isolated=True), lane=Lane.JOB)
    assert harness.failure(replace(task, timeout_s=0.2)).kind is K.TIMEOUT


# -- memory


def test_memory_of_children_counts(harness: Harness) -> None:
    task = harness.task(chores.hold_in_children, 60 * MIB, memory=150 * MIB)
    failure = harness.failure(task)
    assert failure.kind is K.OUT_OF_MEMORY
    assert "may have 150.0 MiB" in failure.message
    assert failure.peak_memory > 150 * MIB


def test_memory_that_a_family_shares_counts_once(harness: Harness) -> None:
    task = harness.task(functools.partial(chores.hold, forks=3), 60 * MIB, memory=150 * MIB)
    assert harness.value(task) == 60 * MIB


def test_what_a_slot_held_before_does_not_count(harness: Harness) -> None:
    pid = harness.value(harness.task(chores.keep, 200 * MIB))
    task = harness.task(chores.hold, 40 * MIB, memory=100 * MIB)
    report = harness.end(task)
    assert report.failure is None
    assert harness.value(harness.task(os.getpid)) == pid


def test_a_command_has_a_limit_of_memory_too(harness: Harness) -> None:
    script = "import signal; held = b'x' * (300 << 20); signal.pause()"
    task = replace(harness.command(sys.executable, "-c", script), memory=150 * MIB)
    failure = harness.failure(task)
    assert failure.kind is K.OUT_OF_MEMORY
    assert failure.peak_memory > 150 * MIB


def test_the_peak_is_that_of_the_chore_and_not_of_the_slot(harness: Harness) -> None:
    large = harness.end(harness.task(chores.hold, 100 * MIB)).usage
    small = harness.end(harness.task(chores.add, 1, 1)).usage
    assert large.slot == small.slot
    assert large.max_rss > small.max_rss + 80 * MIB


def test_ranks_have_limits_together(tmp_path: Path) -> None:
    two = Harness(LocalExecutor(2), tmp_path / "run")
    try:
        ranks = Resources(num_tasks=2)
        hanging = two.task(chores.endless, resources=ranks, lane=Lane.JOB, timeout_s=1.0)
        assert two.failure(hanging).kind is K.TIMEOUT
        large = two.task(chores.hold, 100 * MIB, resources=ranks, lane=Lane.JOB, memory=150 * MIB)
        assert two.failure(large).kind is K.OUT_OF_MEMORY
        assert two.value(two.task(chores.add, 1, 1)) == 2
    finally:
        two.executor.close(kill=True)


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A cgroup of 400 MiB; processes join it by writing their number to a file."""
    root = Path("/sys/fs/cgroup")
    one = (root / "memory").is_dir()
    group = (root / "memory" if one else root) / f"matforge-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"a cgroup cannot be made here: {error}")
    try:
        (group / ("memory.limit_in_bytes" if one else "memory.max")).write_text(str(400 * MIB))
        yield group / "cgroup.procs"
    except OSError as error:
        pytest.skip(f"memory cannot be limited here: {error}")
    finally:
        group.rmdir()


_DRIVER = """
import os, sys
from pathlib import Path
Path({group!r}).write_text(str(os.getpid()))
sys.path[:0] = {path!r}
import chores
from harness import Harness
from matforge.executors.local import LocalExecutor
harness = Harness(LocalExecutor(1), Path({run!r}))
failure = harness.failure(harness.task(chores.take_everything))
print(failure.kind, failure.signal, failure.peak_memory > 100 << 20, sep=",")
print(harness.value(harness.task(chores.add, 1, 1)))
harness.executor.close()
"""


def test_the_kernels_own_kill_for_want_of_memory_is_recognised(tmp_path: Path, memory_group: Path) -> None:
    script = _DRIVER.format(
        group=str(memory_group), path=[p for p in sys.path if p], run=str(tmp_path / "run")
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["out of memory,9,True", "2"], done.stderr
