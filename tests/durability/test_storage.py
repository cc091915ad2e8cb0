"""A disk that refuses, at whatever write: a clear stop that can be gone on with once there is space."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from matforge.engine.status import read_status
from matforge.engine.store import JOURNAL_NAME, LOCK_NAME, StorageError
from matforge.executors.protocol import Task
from matforge.executors.simulated import Outcome, SimulatedExecutor
from matforge.model import Failure, FailureKind, MatForgeError, RunState, UsageError
from matforge.opening import begin
from matforge.session import InterruptedRunError, Session
from matforge.settings import Settings
from matforge.worker.endings import storage_failure
from tests.durability.everything import LAST, NAMES, Everything, behave, calls, check_resumed, undisturbed
from tests.durability.test_power import Publishing
from tests.harness import call, outcome, play, records, ref, registry, resume

PAGE = 4096


@pytest.fixture
def disk() -> Iterator[Path]:
    """A file system of 1 MiB; some thousand files at most."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        mounted = subprocess.run(mount, capture_output=True, text=True)
        if mounted.returncode != 0:
            pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
        yield Path(folder)
        subprocess.run(["umount", "-l", folder], check=True)


def leave_free(disk: Path, pages: int) -> Path:
    """Fill a file system but for so many pages; the file that fills it."""
    path = disk / "fill"
    found = os.statvfs(disk)
    size = (found.f_bavail * found.f_bsize // PAGE - pages) * PAGE
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    return path


class Refused(Publishing):
    """Publishes as a slot does, and reports what a slot reports where the disk refuses."""

    def _report(self, task: Task, outcome: Outcome, usage: Any) -> Any:
        try:
            return super()._report(task, outcome, usage)
        except OSError as error:
            assert self._context is not None
            failure = storage_failure(error, self._context.run_dir, task.attempt.chore_id)
            return super()._report(task, Outcome(0.0, failure=failure), usage)


def stopped_and_gone_on(disk: Path, pages: int, layout: str, expected: dict[str, Any]) -> str:
    """Run on a disk with so much space, free some, go on: where it was stopped."""
    fill = leave_free(disk, pages)
    settings = Settings(disk / "runs", quiet=True, log_delay=0.5, layout=layout)
    executor = Refused(behave, workers=3)
    session, sentence = None, ""
    try:
        session = begin(settings, registry(*NAMES), calls(), Everything(LAST), executor=executor)
    except (StorageError, UsageError) as error:
        sentence = str(error)
    if session is None:
        assert "the disk is full; free some space" in sentence
        assert not list(disk.glob(f"runs/*/{LOCK_NAME}"))
        return "not begun"
    state = session.wait(60)
    assert executor.closed
    assert not (session.run_dir / LOCK_NAME).exists()
    fill.unlink()
    if state is RunState.FAILED:  # as the undisturbed run
        assert outcome(session) == expected
        return "not at all"
    assert state is RunState.INTERRUPTED
    with pytest.raises(InterruptedRunError, match=r"the disk is full; free some space.*goes on with it"):
        session.outcome()
    check_resumed(resume(session.run_dir, behave)[0], expected)
    leftovers = [p.name for p in session.run_dir.rglob("*") if ".e1a" in p.name or p.name.endswith(".new")]
    assert leftovers == []
    return "while it ran"


@pytest.mark.parametrize("layout", ["full", "packed"])
def test_a_disk_that_is_full_at_any_write_stops_the_run_and_it_is_gone_on_with(
    folder: Path, disk: Path, layout: str
) -> None:
    _, expected = undisturbed(folder, layout=layout)
    found = []
    for pages in range(1, 200):
        found.append(stopped_and_gone_on(disk, pages, layout, expected))
        for path in disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if found[-1] == "not at all":
            break
    assert found[0] == "not begun"
    assert found.count("while it ran") >= (40 if layout == "full" else 4)
    assert found[-1] == "not at all"


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process may grow beyond ``size`` bytes, as where a quota is used up."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("layout", ["full", "packed"])
def test_a_journal_that_may_not_grow_any_more_stops_the_run_at_any_record(folder: Path, layout: str) -> None:
    run_dir, expected = undisturbed(folder, layout=layout)
    whole = (run_dir / JOURNAL_NAME).stat().st_size
    stopped = 0
    for number, size in enumerate(range(500, whole - 2000, whole // 40)):
        base = folder / f"limit-{number}"
        session: Session | None = None
        with files_of_at_most(size), contextlib.suppress(MatForgeError):
            session, _ = play(
                base, calls(), executor=Refused(behave, workers=3), strategy=Everything(LAST),
                names=NAMES, layout=layout,
            )  # fmt: skip
            assert session.wait(60) is RunState.INTERRUPTED
        if session is None:
            continue
        stopped += 1
        assert "cannot be written: file too large" in str(session.manager.problem)
        check_resumed(resume(session.run_dir, behave)[0], expected)
        shutil.rmtree(base)
    assert stopped >= 10


@dataclass
class Quota:
    """A folder with a quota that counts for root, too: a subvolume of Btrfs."""

    path: Path
    number: str

    def limit(self, size: str) -> None:
        """From now on so many bytes are allowed (``none``: any number)."""
        whole = str(self.path.parent)  # the folder itself may have no room even for that
        # what was written and not committed counts by guess
        subprocess.run(["btrfs", "filesystem", "sync", whole], check=True, capture_output=True)
        subprocess.run(["btrfs", "qgroup", "limit", size, f"0/{self.number}", whole], check=True)


@pytest.fixture
def quota() -> Iterator[Quota]:
    """A folder with a quota, on a disk that has space."""
    missing = [tool for tool in ("mkfs.btrfs", "btrfs") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"there is no file system with a quota here: {', '.join(missing)} not installed")
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        image, mount = Path(folder) / "image", Path(folder) / "mount"
        mount.mkdir()
        with image.open("wb") as file:
            file.truncate(256 << 20)
        subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True, capture_output=True)
        mounted = subprocess.run(
            ["mount", "-o", "loop", str(image), str(mount)], capture_output=True, text=True
        )
        if mounted.returncode != 0:
            pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
        try:
            subprocess.run(["btrfs", "quota", "enable", str(mount)], check=True)
            subprocess.run(["btrfs", "-q", "subvolume", "create", str(mount / "runs")], check=True)
            number = ["btrfs", "inspect-internal", "rootid", str(mount / "runs")]
            found = subprocess.run(number, capture_output=True, text=True, check=True)
            yield Quota(mount / "runs", found.stdout.strip())
        finally:
            subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.parametrize("layout", ["full", "packed"])
def test_a_quota_that_is_used_up_stops_the_run_and_it_is_gone_on_with(
    folder: Path, quota: Quota, layout: str
) -> None:
    _, expected = undisturbed(folder, layout=layout)
    fill = quota.path / "fill"
    found = []
    for kept in range(0, 1024, 16):  # KiB that are left of a MiB
        quota.limit("none")
        fill.write_bytes(os.urandom((1024 - kept) << 10))
        quota.limit("1M")
        settings = Settings(quota.path / "runs", quiet=True, log_delay=0.5, layout=layout)
        session = None
        with contextlib.suppress(StorageError, UsageError):
            session = begin(
                settings, registry(*NAMES), calls(), Everything(LAST), executor=Refused(behave, workers=3)
            )
        state = session.wait(60) if session is not None else None
        quota.limit("none")
        if session is not None and state is RunState.INTERRUPTED:
            assert "your quota is used up; free some space" in str(session.manager.problem)
            check_resumed(resume(session.run_dir, behave)[0], expected)
        found.append(state)
        shutil.rmtree(quota.path / "runs", ignore_errors=True)
        if state is RunState.FAILED:  # as the undisturbed run
            assert session is not None
            break
    assert found[0] is None
    assert RunState.INTERRUPTED in found
    assert found[-1] is RunState.FAILED


LARGE = """
from matforge import Pipeline

pipe = Pipeline()
small = pipe.chore(name="small")(lambda: b"x" * 1000)()
large = pipe.chore(name="large")(lambda data: data * 3000)(small)
length = pipe.chore(name="length")(len)(large)
print(pipe.submit(quiet=True).result()[length.chore_id])
"""


def stopped_from_the_shell(base: Path, sentence: str, free: Callable[[], object], tmp_path: Path) -> None:
    """Real processes: the run stops with this sentence, and is gone on with once there is space."""

    def matforge(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "matforge", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)

    (tmp_path / "script.py").write_text(LARGE)
    begun = matforge("run", "--dir", str(base), "--workers", "1", "script.py")
    assert begun.returncode == 75, begun.stderr
    assert sentence in begun.stderr
    assert "Traceback" not in begun.stderr
    assert matforge("resume", str(base)).returncode == 75
    free()
    gone_on = matforge("resume", str(base))
    assert gone_on.returncode == 0, gone_on.stderr
    (run_dir,) = base.glob("matforge*")
    assert pickle.loads((run_dir / "out/chore-length-0003/result.pickle").read_bytes()) == 3_000_000
    tried = [r["id"] for r in records(run_dir) if r["e"] == "retry"]
    assert set(tried) == {"chore-large-0002"}


def test_commands_leave_with_75_when_the_disk_is_full_and_resume_goes_on(disk: Path, tmp_path: Path) -> None:
    def larger() -> None:
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)

    stopped_from_the_shell(disk, "the disk is full; free some space", larger, tmp_path)


def test_commands_leave_with_75_when_the_quota_is_used_up_and_resume_goes_on(
    quota: Quota, tmp_path: Path
) -> None:
    quota.limit("1M")
    sentence = "the quota is used up; free some space"
    stopped_from_the_shell(quota.path, sentence, lambda: quota.limit("none"), tmp_path)


SCRIPT = [call("a"), call("b", ref("a", 1)), call("c", ref("b", 2))]


@pytest.mark.parametrize("layout", ["full", "packed"])
def test_a_folder_that_vanishes_stops_the_run(folder: Path, layout: str) -> None:
    def behaviour(task: Task) -> Outcome:
        if task.name == "b":
            (run_dir,) = folder.glob("matforge*")
            run_dir.rename(folder / "away")
        return Outcome(1.0, task.seed)

    session, _ = play(folder, SCRIPT, executor=Refused(behaviour, workers=1), layout=layout)
    assert session.wait(30) is RunState.INTERRUPTED
    assert "(any more)" in str(session.manager.problem)
    (folder / "away").rename(session.run_dir)
    (session.run_dir / LOCK_NAME).unlink(missing_ok=True)
    again, _ = resume(session.run_dir, lambda task: Outcome(1.0, task.seed))
    assert again.wait(30) is RunState.COMPLETED
    assert len(again.results) == 3


def test_an_end_that_cannot_be_written_is_an_interruption(folder: Path) -> None:
    """All chores have ended, and the record that says so does not reach the disk."""

    class Closing(SimulatedExecutor):
        def close(self, *, kill: bool = False) -> None:
            super().close(kill=kill)
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    executor = Closing(lambda task: Outcome(1.0, task.seed))
    with files_of_at_most(resource.getrlimit(resource.RLIMIT_FSIZE)[0]):
        session, _ = play(folder, SCRIPT, executor=executor, layout="packed")
        state = session.wait(30)
    assert state is RunState.INTERRUPTED
    assert "cannot be written" in str(session.manager.problem)
    with pytest.raises(InterruptedRunError):
        session.outcome()
    again, started = resume(session.run_dir)
    assert again.wait(30) is RunState.COMPLETED
    assert started.history == []
    assert read_status(session.run_dir)["workflow"]["state"] == "completed"


def test_what_attempts_have_left_that_nobody_accepted_is_removed(folder: Path) -> None:
    def behaviour(task: Task) -> Outcome:
        (run_dir,) = folder.glob("matforge*")
        if task.attempt.number == 1:
            place = run_dir / str(task.directory)
            (place / f"stdout.{task.attempt.tag}").write_text("half a word")
            (place / f"result.pickle.{task.attempt.tag}.new").write_bytes(b"half")
        return Outcome(1.0, task.seed, lost=task.attempt.number == 1)

    session, _ = play(folder, SCRIPT, behaviour)
    assert session.wait(30) is RunState.COMPLETED
    names = [path.name for path in session.run_dir.rglob("*")]
    assert [name for name in names if ".e1a1" in name] == []
    assert names.count("result.pickle") == 3


def test_what_a_killed_driver_has_left_is_removed_by_the_next(folder: Path) -> None:
    stop = Failure(FailureKind.STORAGE, "The disk is full.")
    session, _ = play(
        folder, SCRIPT, lambda task: Outcome(1.0, 1, failure=stop if task.name == "b" else None)
    )
    assert session.wait(30) is RunState.INTERRUPTED
    place = session.run_dir / "out" / "chore-b-0002"
    for path in (place / "stderr.e1a1", place / "result.pickle.e1a7", session.run_dir / ".status.json.new"):
        path.write_text("left")
    (place / "the-chores-own.e1a1.txt").write_text("what the chore itself has written stays")
    again, _ = resume(session.run_dir, lambda task: Outcome(1.0, 1))
    assert again.wait(30) is RunState.COMPLETED
    left = {path.name for path in session.run_dir.rglob("*") if ".e1a" in path.name}
    assert left == {"the-chores-own.e1a1.txt"}
    assert "removed 3 files" in (session.run_dir / "matforge_workflow.log").read_text()
