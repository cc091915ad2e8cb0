"""A run that is killed anywhere goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matforge.chore import Call, ChoreSpec
from matforge.engine import journal
from matforge.engine.lock import LockedError
from matforge.engine.status import read_status
from matforge.engine.store import JOURNAL_NAME, LOCK_NAME, LOG_NAME
from matforge.executors.protocol import Task
from matforge.executors.simulated import Outcome, SimulatedExecutor
from matforge.model import (
    ChoreState,
    Failure,
    FailureKind,
    MatForgeError,
    OutputReference,
    RunState,
    UsageError,
)
from matforge.opening import begin, reopen
from matforge.session import RunFailedError
from matforge.settings import Settings
from matforge.strategy import (
    Cancel,
    Decision,
    Event,
    FutureProcessingStrategy,
    Reprioritise,
    Spawn,
    View,
    thaw_state,
)
from tests.harness import (
    call,
    completed_in,
    killed_after,
    outcome,
    play,
    records,
    ref,
    registry,
    resume,
    scratch,
)

BOOM = Failure(FailureKind.EXCEPTION, "boom", traceback="Traceback ...", stderr="oh no\n")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory."""
    path = scratch()
    yield path
    shutil.rmtree(path)


# ---------------------------------------------------------------- a run in which everything happens


class Busy(FutureProcessingStrategy):
    """Spawns three levels deep, cancels what runs and what waits, reprioritises; counts every event once."""

    inline = True

    def __init__(self) -> None:
        self.seen = 0
        self.failures = 0

    def on_start(self, view: View) -> Iterable[Decision]:
        return [Spawn(ChoreSpec((), None, "grow")), Spawn(ChoreSpec((), None, "slow", key="extra"))]

    def on_event(self, view: View, event: Event) -> Iterable[Decision]:
        self.seen += 1
        self.failures += event.outcome is ChoreState.FAILED
        if event.chore.name == "trigger" and event.ok:
            yield Cancel(ref("endless", 1))
            yield Reprioritise(ref("slow", 4), -5)
        if event.ok and event.report.get("children"):
            level = {"grow": "twig", "twig": "leaf"}[event.chore.name]
            for number in range(event.report["children"]):
                yield Spawn(ChoreSpec((event.ref, number), None, level))
            yield ChoreSpec((ref("endless", 1), event.ref), None, "never")


class BusyThreaded(Busy):
    """The same in a thread of its own."""

    inline = False


BUSY_NAMES = ("endless", "never", "grow", "twig", "leaf", "trigger", "slow", "bad", "after", "merge")


def busy_calls() -> list[Call]:
    """Ten chores to begin with."""
    return [
        call("endless"),
        call("never", ref("endless", 1)),
        call("trigger"),
        call("slow", 1),
        call("slow", 2),
        call("bad"),
        call("after", ref("bad", 6), ref("slow", 4)),
        call("after", ref("after", 7)),
        call("grow", 2),
        call("merge", [ref("slow", 4), {"x": ref("slow", 5)}], ref("grow", 9)),
    ]


def busy(task: Task) -> Outcome:
    """What becomes of a chore: decided by what it is."""
    lost = task.seed % 3 == 0 and task.attempt.number == 1 and task.attempt.epoch == 1
    if lost:
        return Outcome(0.5, lost=True)
    if task.name == "endless":
        return Outcome(1e12)
    if task.name == "bad" or (task.name == "leaf" and task.seed % 4 == 0):
        return Outcome(1.0, failure=BOOM)
    children = {"grow": 3, "twig": task.seed % 3}.get(task.name, 0)
    return Outcome(0.1 + task.seed % 17 / 10, task.seed % 1000, {"children": children} if children else None)


def undisturbed(folder: Path, strategy: Busy, **options: Any) -> tuple[Path, dict[str, Any]]:
    """The busy run from start to end: its directory and what became of every chore."""
    session, _ = play(folder, busy_calls(), busy, strategy, names=BUSY_NAMES, **options)
    assert session.wait(60) is RunState.FAILED
    assert len(outcome(session)) > 20
    states = {state for state, *_ in outcome(session).values()}
    assert states == {"completed", "failed", "cancelled"}
    return session.run_dir, outcome(session)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
def test_a_log_that_cannot_be_written_ends_no_run_and_says_nothing(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    session, _ = play(folder, [call("one"), call("two")])
    assert session.wait(60) is RunState.COMPLETED
    cut = killed_after(session.run_dir, 5, folder / "cut")
    (cut / LOG_NAME).unlink()
    (cut / LOG_NAME).symlink_to("/dev/full")
    session, _ = resume(cut, lambda task: Outcome(lost=task.attempt.number == 1))
    over = threading.Event()
    session.when_over(over.set)
    assert session.wait(60) is RunState.COMPLETED
    assert over.is_set()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("layout", ["full", "packed"])
@pytest.mark.parametrize("strategy", [Busy, BusyThreaded])
def test_a_run_killed_after_any_journal_record_ends_the_same(
    folder: Path, strategy: type[Busy], layout: str
) -> None:
    run_dir, expected = undisturbed(folder, strategy(), layout=layout)
    written = records(run_dir)
    first = next(n for n, r in enumerate(written) if r["e"] == "submitted") + 1
    for count in range(first, len(written) + 1):
        copy = killed_after(run_dir, count, folder / f"killed-{count}")
        session, executor = resume(copy, busy)
        assert session.wait(60) is RunState.FAILED
        assert outcome(session) == expected
        started = {attempt.chore_id for attempt in executor.history}
        assert not started & completed_in(written[:count])
        state = Busy()
        thaw_state(state, session.engine.decisions.strategy_state)
        assert state.seen == len(expected)
        assert state.failures == sum(kind[0] == "failed" for kind in expected.values())
        shutil.rmtree(copy)


def test_a_run_killed_again_and_again_ends_the_same(folder: Path) -> None:
    run_dir, expected = undisturbed(folder, BusyThreaded())
    at = 14
    for life in range(12):
        copy = killed_after(run_dir, at, folder / f"life-{life}")
        before = records(copy)
        session, executor = resume(copy, busy, workers=2 + life % 3)
        session.wait(60)
        assert outcome(session) == expected
        assert not {a.chore_id for a in executor.history} & completed_in(before)
        assert {a.epoch for a in executor.history} <= {2 + life}
        run_dir, at = copy, min(at + 5, len(records(copy)))


def test_a_run_killed_before_everything_was_submitted_has_to_be_started_again(folder: Path) -> None:
    run_dir, _ = undisturbed(folder, Busy())
    first = next(n for n, r in enumerate(records(run_dir)) if r["e"] == "submitted")
    for count in range(first + 1):
        copy = killed_after(run_dir, count, folder / f"killed-{count}")
        with pytest.raises(MatForgeError, match=r"start it again instead|run the script again"):
            reopen(copy, made=SimulatedExecutor(), quiet=True)
        assert not (copy / LOCK_NAME).exists()


# ---------------------------------------------------------------- any run, killed anywhere


class Growing(FutureProcessingStrategy):
    """Spawns what the reports ask for, on whatever the chore itself stood on."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_event(self, view: View, event: Event) -> Iterable[Decision]:
        self.seen.append(event.chore.key[:8])
        depth = int(event.chore.name[1:])
        for number in range(event.report.get("children", 0) if depth < 3 else 0):
            inputs = [OutputReference(name) for name in event.chore.inputs]
            yield Spawn(ChoreSpec((event.ref, number, inputs), None, f"g{depth + 1}", nice=number - 1))


class GrowingInline(Growing):
    """The same without a thread."""

    inline = True


def by_key(salt: int) -> Any:
    """Durations are drawn with ``salt``; what becomes of a chore is in its key."""

    def behaviour(task: Task) -> Outcome:
        duration = 0.05 + (task.seed * 31 + salt * 17 + task.attempt.number) % 97 / 50
        if task.seed % 11 == 0 and task.attempt.number < 3 and task.attempt.epoch == 1:
            return Outcome(duration, lost=True)
        if task.seed % 9 == 0:
            return Outcome(duration, failure=BOOM)
        return Outcome(duration, task.seed, {"children": task.seed % 5 % 4})

    return behaviour


def without_roots(found: dict[str, tuple[str, Any, str, str]]) -> dict[str, tuple[str, Any, str]]:
    """Outcomes less the root of a failure: with two chores at fault, it is the one that failed first."""
    return {key: entry[:3] for key, entry in found.items()}


DAG = st.lists(st.lists(st.integers(1, 6), max_size=3), min_size=1, max_size=7)


@settings(max_examples=25, deadline=None)
@given(
    shape=DAG,
    salts=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    cuts=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    threaded=st.booleans(),
    layout=st.sampled_from(["full", "packed"]),
    workers=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_any_run_killed_anywhere_ends_the_same_on_any_number_of_workers(
    shape: list[list[int]],
    salts: tuple[int, int],
    cuts: list[float],
    threaded: bool,
    layout: str,
    workers: tuple[int, int],
) -> None:
    folder = scratch()
    names = [f"g{depth}" for depth in range(4)]
    calls = [
        call("g0", n, [ref("g0", n + 1 - back) for back in inputs if back <= n])
        for n, inputs in enumerate(shape)
    ]
    strategy = Growing() if threaded else GrowingInline()
    try:
        session, _ = play(
            folder, calls, by_key(salts[0]), strategy, names=names, workers=workers[0], layout=layout
        )
        session.wait(60)
        expected = outcome(session)
        run_dir = session.run_dir
        for life, cut in enumerate(cuts):
            written = records(run_dir)
            first = next(n for n, r in enumerate(written) if r["e"] == "submitted") + 1
            count = first + round(cut * (len(written) - first))
            run_dir = killed_after(run_dir, count, folder / f"life-{life}")
            session, executor = resume(run_dir, by_key(salts[1]), workers=workers[1])
            session.wait(60)
            found = outcome(session)
            assert without_roots(found) == without_roots(expected)
            assert all(found[root][2] == "exception" for *_, root in found.values() if root)
            assert not {a.chore_id for a in executor.history} & completed_in(written[:count])
            state = Growing()
            thaw_state(state, session.engine.decisions.strategy_state)
            assert sorted(state.seen) == sorted(key[:8] for key in expected)
    finally:
        shutil.rmtree(folder)


# ---------------------------------------------------------------- beginning


def open_files() -> set[str]:
    """What this process has open, sockets and pipes included."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return found


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"executor": "lokal"}, "There is no executor 'lokal'"),
        ({"workers": 0}, "--workers must be a whole number of at least 1, not 0"),
        ({"layout": "flat"}, "The layout must be one of auto, full, packed, not 'flat'"),
        ({"durability": "eternal"}, "durability must be one of process, power, not 'eternal'"),
        ({"log_delay": -1.0}, "log_delay must be a number of seconds, not -1.0"),
        ({"log_delay": "often"}, "log_delay must be a number of seconds, not 'often'"),
        ({"name": Path("x")}, "name must be a string"),
    ],
    ids=str,
)
def test_wrong_settings_are_told_before_anything_is_made(
    folder: Path, wrong: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        begin(Settings(folder, **wrong), registry("work"), [call("work")])
    assert list(folder.iterdir()) == []


def test_a_chore_that_can_never_fit_is_told_before_anything_is_made(folder: Path) -> None:
    executor = SimulatedExecutor(workers=2)
    with pytest.raises(UsageError, match=r"'wide' can never run here\. It needs 3 cores, and there are 2"):
        play(folder, [call("wide", cores=3)], executor=executor)
    assert list(folder.iterdir()) == []
    assert executor.closed


class Interrupting(SimulatedExecutor):
    """Stands for a Ctrl-C that hits while the run is being made."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def capacity(self) -> Any:
        """As always, but for one call."""
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().capacity()


@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupt_while_a_run_is_made_leaves_neither_lock_nor_open_file(folder: Path, at: int) -> None:
    before = open_files()
    with pytest.raises(KeyboardInterrupt):
        play(folder, [call("work")], executor=Interrupting(at))
    assert list(folder.glob("*/run.lock")) == []
    assert open_files() == before


def test_a_payload_that_cannot_be_written_leaves_neither_lock_nor_open_file(folder: Path) -> None:
    class Occupying(SimulatedExecutor):
        def capacity(self) -> Any:
            for run_dir in folder.glob("matforge*"):
                (run_dir / "segments").touch()
            return super().capacity()

    before = open_files()
    with pytest.raises(MatForgeError, match="cannot be written: there is a file of that name"):
        play(folder, [call("work")], executor=Occupying(), layout="packed")
    assert list(folder.glob("*/run.lock")) == []
    assert open_files() == before


def test_a_function_or_strategy_that_cannot_be_pickled_is_named(folder: Path) -> None:
    entries = registry("work")
    lock = threading.Lock()
    entries.register(lambda: lock, name="locked")
    with pytest.raises(UsageError, match="Chore 'locked' cannot be pickled: "):
        begin(Settings(folder), entries, [call("work")], executor=SimulatedExecutor())
    strategy = Busy()
    strategy.lock = lock  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="The strategy Busy cannot be pickled: "):
        play(folder, [call("work")], strategy=strategy)
    assert list(folder.iterdir()) == []


def test_a_run_says_where_it_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session, _ = play(folder, [call("work")], quiet=False)
    session.wait(30)
    said = capsys.readouterr().err
    for name in ("status.json", "matforge_workflow.log", "out"):
        assert str(session.run_dir / name) in said
        assert (session.run_dir / name).exists()


def test_a_run_leaves_no_open_file_and_no_handler_of_the_log(folder: Path) -> None:
    before, handlers = open_files(), list(logging.getLogger("matforge").handlers)
    for layout in ("full", "packed"):
        session, _ = play(folder, [call("work")], layout=layout)
        session.wait(30)
        assert resume(session.run_dir)[0].wait(30) is RunState.COMPLETED
    assert open_files() == before
    assert logging.getLogger("matforge").handlers == handlers


# ---------------------------------------------------------------- what a session has


def test_results_are_a_lazy_mapping_of_what_has_completed(folder: Path) -> None:
    session, _ = play(
        folder,
        [call("good"), call("bad"), call("after", ref("bad", 2)), call("endless")],
        lambda task: Outcome(1.0, 42, failure=BOOM if task.name == "bad" else None),
    )
    assert session.wait(30) is RunState.FAILED
    sentence = r"chore-bad-0002 failed \(exception\): boom; 1 more did not complete\.$"
    with pytest.raises(RunFailedError, match=sentence) as error:
        session.outcome()
    assert dict(error.value.results) == {"chore-good-0001": 42, "chore-endless-0004": 42}
    assert len(error.value.results) == 2
    assert "chore-bad-0002" not in error.value.results
    assert error.value.failures["chore-bad-0002"] == BOOM
    assert error.value.failures["chore-after-0003"].root == "chore-bad-0002"
    with pytest.raises(MatForgeError, match=r"chore-bad-0002 failed \(exception\): boom"):
        session.read_result("chore-bad-0002")
    with pytest.raises(MatForgeError, match="chore-x-0009 is not a chore of the run in"):
        session.read_result("chore-x-0009")


def test_waiting_has_an_end_and_the_run_goes_on(folder: Path) -> None:
    gate = threading.Event()

    def behaviour(task: Task) -> Outcome:
        gate.wait(60)
        return Outcome(1.0, 1)

    session, _ = play(folder, [call("work")], behaviour)
    with pytest.raises(TimeoutError, match=r"has not ended after 0\.01 s; it goes on"):
        session.wait(0.01)
    with pytest.raises(TimeoutError, match=r"chore-work-0001 has not ended after 0.01 s; the run goes on"):
        session.wait_for("chore-work-0001", 0.01)
    with pytest.raises(MatForgeError, match="chore-work-0001 has no result yet"):
        session.read_result("chore-work-0001")
    gate.set()
    session.wait_for("chore-work-0001", 30)
    assert session.wait(30) is RunState.COMPLETED
    assert dict(session.outcome()) == {"chore-work-0001": 1}


# ---------------------------------------------------------------- going on


def test_a_finished_run_that_is_resumed_starts_nothing(folder: Path) -> None:
    session, _ = play(folder, [call("work"), call("work")], lambda task: Outcome(1.0, 5))
    session.wait(30)
    again, executor = resume(session.run_dir)
    assert again.wait(30) is RunState.COMPLETED
    assert dict(again.outcome()) == {"chore-work-0001": 5, "chore-work-0002": 5}
    assert executor.history == []
    assert not executor.started


def test_a_failed_run_that_is_resumed_has_failed_with_the_same_sentence(folder: Path) -> None:
    session, _ = play(folder, [call("bad"), call("after", ref("bad", 1))], lambda task: Outcome(failure=BOOM))
    session.wait(30)
    again, _ = resume(session.run_dir)
    assert again.wait(30) is RunState.FAILED
    sentences = []
    for one in (session, again):
        with pytest.raises(RunFailedError) as error:
            one.outcome()
        sentences.append(str(error.value))
        assert error.value.failures == session.failures
    assert sentences[0] == sentences[1]
    failures = read_status(session.run_dir)["failures"]
    assert [f["chore_id"] for f in failures] == ["chore-bad-0001", "chore-after-0002"]


def test_a_failure_that_was_cut_in_half_is_listed_once(folder: Path) -> None:
    """The journal ends after the failing chore, before the ones that needed it."""
    session, _ = play(folder, [call("bad"), call("after", ref("bad", 1))], lambda task: Outcome(failure=BOOM))
    session.wait(30)
    count = next(n for n, r in enumerate(records(session.run_dir)) if r["e"] == "end") + 1
    again, _ = resume(killed_after(session.run_dir, count, folder / "killed"))
    assert again.wait(30) is RunState.FAILED
    failures = read_status(again.run_dir)["failures"]
    assert [f["chore_id"] for f in failures] == ["chore-bad-0001", "chore-after-0002"]
    assert (again.run_dir / "out/chore-after-0002/metadata.json").exists()


def test_the_status_goes_on_counting_after_a_resume(folder: Path) -> None:
    session, _ = play(folder, [call("work")], log_delay=0.0)
    session.wait(30)
    resume(session.run_dir)[0].wait(30)
    lines = (session.run_dir / "status_history.jsonl").read_text().splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == list(range(1, len(lines) + 1))


def test_a_torn_end_is_cut_off_with_a_note(folder: Path) -> None:
    session, _ = play(folder, [call("work")])
    session.wait(30)
    with (session.run_dir / JOURNAL_NAME).open("ab") as file:
        file.write(b'{"seq":99,"e":"en')
    again, _ = resume(session.run_dir)
    assert again.wait(30) is RunState.COMPLETED
    assert [r["torn"] for r in records(again.run_dir) if r["e"] == "resume"] == [17]
    assert "cut off 17 bytes" in (again.run_dir / "matforge_workflow.log").read_text()


def damaged(run_dir: Path) -> None:
    data = bytearray((run_dir / JOURNAL_NAME).read_bytes())
    data[100] ^= 1
    (run_dir / JOURNAL_NAME).write_bytes(data)


def newer(run_dir: Path) -> None:
    first, *rest = (run_dir / JOURNAL_NAME).read_bytes().splitlines()
    record = journal.decode(first)
    assert record is not None
    lines = [journal.encode({**record, "v": 99, "matforge": "9.9"}), *(line + b"\n" for line in rest)]
    (run_dir / JOURNAL_NAME).write_bytes(b"".join(lines))


def without_strategy(run_dir: Path) -> None:
    (run_dir / "out/registry/strategy").unlink()


def without_journal(run_dir: Path) -> None:
    (run_dir / JOURNAL_NAME).unlink()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (damaged, "is damaged at byte 0 "),
        (newer, "was written by MatForge 9.9, which is newer than this"),
        (without_strategy, "The strategy of the run cannot be loaded from .*strategy: FileNotFoundError"),
        (without_journal, "cannot be read: No such file"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_run_that_cannot_be_resumed_says_why_and_leaves_neither_lock_nor_open_file(
    folder: Path, spoil: Any, sentence: str
) -> None:
    session, _ = play(folder, [call("work")], layout="packed")
    session.wait(30)
    spoil(session.run_dir)
    before, journal_before = open_files(), sorted(p.name for p in session.run_dir.iterdir())
    with pytest.raises(MatForgeError, match=sentence):
        resume(session.run_dir)
    assert open_files() == before
    assert sorted(p.name for p in session.run_dir.iterdir()) == journal_before


def test_a_run_that_another_driver_holds_is_not_resumed(folder: Path) -> None:
    gate = threading.Event()
    session, _ = play(folder, [call("work")], lambda task: Outcome(1.0 if gate.wait(60) else 0.0))
    with pytest.raises(LockedError, match=f"is being run by process {os.getpid()} on "):
        resume(session.run_dir)
    gate.set()
    assert session.wait(30) is RunState.COMPLETED


def test_the_settings_of_a_run_are_kept_and_may_be_overruled(folder: Path) -> None:
    kept = {"name": "my run", "campaign": "c", "layout": "packed", "durability": "power"}
    session, _ = play(folder, [call("work")], **kept)
    session.wait(30)
    again, _ = resume(session.run_dir)
    again.wait(30)
    workflow = read_status(session.run_dir)["workflow"]
    assert (workflow["name"], workflow["campaign"]) == ("my run", "c")
    with pytest.raises(UsageError, match="There is no executor 'quantum'"):
        reopen(session.run_dir, executor="quantum", quiet=True)


# ---------------------------------------------------------------- signals

SCRIPT = """
import os, signal, sys, threading, time
from pathlib import Path
from matforge.executors.simulated import Outcome, SimulatedExecutor
from tests.harness import call, play

known = threading.Event()

def behaviour(task):
    known.wait(30)
    if task.attempt.chore_id == "chore-work-0003":
        os.kill(os.getpid(), int(sys.argv[2]))
        while not session.manager._requests:  # two hundred chores are done before a busy machine looks
            time.sleep(0.001)
    return Outcome(1.0, 1)

session, _ = play(Path(sys.argv[1]), [call("work", n) for n in range(200)], behaviour, workers=1)
known.set()
session.wait(60)
if sys.argv[3] == "late":
    os.kill(os.getpid(), int(sys.argv[2]))
    session.manager.done.wait(1)
print("not interrupted")
"""


def run_script(folder: Path, sent: signal.Signals, when: str = "") -> subprocess.CompletedProcess[str]:
    """A script whose run gets a signal while its third chore begins."""
    command = [sys.executable, "-c", SCRIPT, str(folder), str(int(sent)), when]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_ends_the_run_cleanly_and_it_can_be_resumed(folder: Path, sent: signal.Signals) -> None:
    ended = run_script(folder, sent)
    assert "not interrupted" not in ended.stdout
    (run_dir,) = folder.iterdir()
    if sent is signal.SIGINT:
        assert "KeyboardInterrupt" in ended.stderr
    else:
        assert ended.returncode == 75, ended.stderr
        (sentence,) = ended.stderr.splitlines()
        assert sentence.startswith(f"matforge: The run was interrupted ({sent.name}; ")
        assert f"`matforge resume {run_dir.resolve()}`" in sentence
    assert read_status(run_dir)["workflow"]["state"] == "interrupted"
    assert not (run_dir / LOCK_NAME).exists()
    done = completed_in(records(run_dir))
    session, executor = resume(run_dir, lambda task: Outcome(1.0, 1))
    assert session.wait(30) is RunState.COMPLETED
    assert len(session.results) == 200
    assert not {a.chore_id for a in executor.history} & done


def test_a_signal_after_the_run_does_what_it_always_did(folder: Path) -> None:
    """The first chores are numbered otherwise, so only the late signal is sent."""
    script = SCRIPT.replace("chore-work-0003", "nobody")
    command = [sys.executable, "-c", script, str(folder), str(int(signal.SIGTERM)), "late"]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
    ended = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGTERM
    assert read_status(next(folder.iterdir()))["workflow"]["state"] == "completed"


TOLD_TWICE = """
import sys
from matforge import Pipeline, signals
signals.ONCE_S = 600.0
pipe = Pipeline(sys.argv[1], workers=1)
first = pipe.chore("read")(lambda path: open(path).read())(sys.argv[2])
pipe.chore("after")(lambda text: text)(first)
pipe.submit(quiet=True).result()
"""


def test_two_signals_at_once_count_as_one(tmp_path: Path) -> None:
    """``timeout`` sends its signal to the process, and then to the group that it is in."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    command = [sys.executable, "-c", TOLD_TWICE, str(tmp_path / "runs"), str(gate)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as driver, gate.open("w") as held:
        (run_dir,) = (tmp_path / "runs").iterdir()
        driver.send_signal(signal.SIGTERM)
        with (run_dir / LOG_NAME).open() as log:
            deadline = time.monotonic() + 30
            while "nothing more is started" not in log.read():
                assert time.monotonic() < deadline
        driver.send_signal(signal.SIGTERM)
        held.write("read to its end")
        held.close()
        _, errors = driver.communicate(timeout=30)
        assert driver.returncode == 75, errors
    status = read_status(run_dir)
    assert (status["workflow"]["state"], status["current"]["completed"]) == ("interrupted", 1)
