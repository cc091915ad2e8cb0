"""The local executor keeps the contract, and what is its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import chores
import pytest
import zmq
from contract import RealWorkContract
from harness import Gate, Harness, wait_for_end

from matforge.executors.agentproc import sweep_abandoned
from matforge.executors.local import LocalExecutor
from matforge.executors.protocol import ExecutorFailed, Finished, Lost, Report, RunContext, Started
from matforge.executors.restarts import RESTARTS
from matforge.model import FailureKind, Lane, MatForgeError, Resources, UsageError
from matforge.worker import processes
from matforge.worker.wire import FINISHED, AgentConfig, encode


class TestContract(RealWorkContract):
    """The whole contract."""

    @classmethod
    def make(cls, tmp_path: Path) -> Harness:
        return Harness(LocalExecutor(2), tmp_path)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Harness]]:
    """Makes harnesses around local executors with the given options, and closes them."""
    made: list[Harness] = []

    def maker(environment: dict[str, str] | None = None, **options: Any) -> Harness:
        options.setdefault("workers", 2)
        harness = Harness(LocalExecutor(**options), tmp_path / f"run{len(made)}", environment=environment)
        made.append(harness)
        return harness

    yield maker
    for harness in made:
        harness.executor.close(kill=True)


def test_a_terminal_reaches_only_the_driver(make: Callable[..., Harness]) -> None:
    harness = make()
    slot = harness.value(harness.task(os.getpid))
    assert len({os.getsid(0), os.getsid(agent_pid(harness)), os.getsid(slot)}) == 3


def agent_pid(harness: Harness) -> int:
    """Process id of the agent."""
    executor = harness.executor
    assert isinstance(executor, LocalExecutor)
    pid = executor.agent_pid
    assert pid is not None
    return pid


@pytest.mark.parametrize(
    "options",
    [{"workers": 0}, {"workers": -1}, {"workers": 1.5}, {"workers": True}, {"gpus": -1}, {"lease": 0}],
)
def test_numbers_out_of_range_are_refused_in_one_sentence(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be") as caught:
        LocalExecutor(**options)
    assert "\n" not in str(caught.value)


def test_the_default_is_one_worker_a_usable_core() -> None:
    executor = LocalExecutor()
    assert executor.capacity().total_cores >= 1
    assert executor.capacity().total_cores <= len(os.sched_getaffinity(0))
    executor.close()


def test_an_executor_serves_one_run(make: Callable[..., Harness], tmp_path: Path) -> None:
    harness = make()
    with pytest.raises(MatForgeError, match="one run"):
        harness.executor.start(RunContext(tmp_path, "again", 1))


def test_what_can_never_fit_is_told(make: Callable[..., Harness]) -> None:
    harness = make()
    for wants in (Resources(cores_per_task=3), Resources(gpus_per_task=1)):
        failure = harness.failure(harness.task(chores.add, 1, 1, resources=wants))
        assert failure.kind is FailureKind.DOES_NOT_FIT
        assert "2" in failure.message
    assert harness.value(harness.task(chores.add, 1, 1)) == 2


def test_more_workers_than_cores_run_at_a_time(make: Callable[..., Harness], tmp_path: Path) -> None:
    workers = len(os.sched_getaffinity(0)) + 1
    harness = make(workers=workers)
    gates = [Gate(tmp_path / f"gate{i}") for i in range(workers)]
    tasks = [harness.task(chores.wait_at, g.path) for g in gates]
    harness.executor.submit(tasks)
    for task in tasks:
        harness.wait_until_started(task)
    for gate in gates:
        gate.open()
    assert all(e.failure is None for e in harness.wait_for(tasks))


def test_a_slot_is_pinned_to_its_core_if_asked(make: Callable[..., Harness]) -> None:
    harness = make(set_cpu_affinity=True, workers=1)
    assert len(harness.value(harness.task(os.sched_getaffinity, 0))) == 1


def test_gpus_are_given_to_one_slot_at_a_time(
    make: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    harness = make(gpus=2)
    one = Resources(gpus_per_task=1)
    gates = [Gate(tmp_path / f"gate{i}") for i in range(2)]
    held = [harness.task(chores.wait_at, g.path, resources=one) for g in gates]
    harness.executor.submit(held)
    for task in held:
        harness.wait_until_started(task)
    for gate in gates:
        gate.open()
    harness.wait_for(held)
    seen = harness.run(*(harness.task(chores.surroundings, resources=one) for _ in range(4)))
    devices = {harness.result(e)["env"]["CUDA_VISIBLE_DEVICES"] for e in seen if isinstance(e, Finished)}
    assert devices <= {"4", "6"}
    # both are wanted at once: the idle slots that hold one each have to go
    both = harness.task(chores.surroundings, resources=Resources(gpus_per_task=2))
    assert sorted(harness.value(both)["env"]["CUDA_VISIBLE_DEVICES"].split(",")) == ["4", "6"]
    assert harness.value(harness.task(chores.surroundings))["env"]["CUDA_VISIBLE_DEVICES"] == ""


def test_a_slot_is_replaced_after_some_chores(make: Callable[..., Harness]) -> None:
    harness = make(workers=1, max_chores=5)
    pids = [harness.result(e) for e in harness.run(*(harness.task(os.getpid) for _ in range(20)))]  # type: ignore[arg-type]
    assert [pids.count(p) for p in dict.fromkeys(pids)] == [5, 5, 5, 5]


def test_a_slot_that_has_grown_is_replaced(make: Callable[..., Harness]) -> None:
    harness = make(workers=1, max_rss=1 << 20)
    pids = {harness.result(e) for e in harness.run(*(harness.task(os.getpid) for _ in range(40)))}  # type: ignore[arg-type]
    assert len(pids) >= 2


def test_a_thread_that_a_library_keeps_costs_no_slot(make: Callable[..., Harness]) -> None:
    pytest.importorskip("tqdm")
    harness = make(workers=1)
    seen = [harness.value(harness.task(chores.show_progress)) for _ in range(3)]
    assert all(threads > 1 for _, threads in seen)
    assert len({pid for pid, _ in seen}) == 1


def test_slots_stay_warm_beside_others(make: Callable[..., Harness]) -> None:
    harness = make()
    plain, other = Resources(), Resources(env={"COLOUR": "blue"})
    pids: dict[bool, set[int]] = {False: set(), True: set()}
    for turn in range(10):
        wants = other if turn % 2 else plain
        pids[bool(turn % 2)].add(harness.value(harness.task(os.getpid, resources=wants)))
    assert [len(v) for v in pids.values()] == [1, 1]


def test_mpi_needs_an_mpiexec(
    make: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    wants = Resources(num_tasks=2, mpi=True)
    bare = make(environment={"PATH": str(folder)})
    failure = bare.failure(bare.command("/bin/echo", "hi", resources=wants))
    assert failure.kind is FailureKind.START_FAILED
    assert "mpiexec" in failure.message
    launcher = folder / "mpiexec"
    launcher.write_text('#!/bin/sh\nshift 2\nPMI_RANK=0 "$@" && PMI_RANK=1 "$@"\n')
    launcher.chmod(0o755)
    task = bare.command("/bin/sh", "-c", "echo rank $PMI_RANK", resources=wants)
    bare.end(task)
    said = (bare.run_dir / f"out/{task.attempt.chore_id}/stdout.e1a1").read_text()
    assert said == "rank 0\nrank 1\n"
    function = bare.task(chores.say, "hello", resources=wants, lane=Lane.JOB)
    assert bare.value(function) == "hello"


def test_results_are_synced_if_asked(make: Callable[..., Harness]) -> None:
    harness = make(sync=True)
    assert harness.value(harness.task(chores.add, 1, 1)) == 2
    assert harness.value(harness.task(chores.add, 1, 1, full=True)) == 2


# -- starts that fail


def test_a_slot_that_cannot_start_because_of_its_chore_concerns_only_that(
    make: Callable[..., Harness],
) -> None:
    harness = make()
    broken = harness.task(chores.add, 1, 1, resources=Resources(env={"PYTHONHOME": "/nonexistent"}))
    fine = harness.task(chores.add, 2, 2)
    ends = harness.run(broken, fine)
    assert ends[0].failure is not None
    assert ends[0].failure.kind is FailureKind.START_FAILED
    assert "PYTHONHOME" in ends[0].failure.message
    assert ends[0].failure.stderr
    assert ends[1].failure is None


def test_slots_that_cannot_start_at_all_end_the_executor(make: Callable[..., Harness]) -> None:
    harness = make(environment={"PYTHONHOME": "/nonexistent"})
    task = harness.task(chores.add, 1, 1)
    harness.executor.submit([task])
    harness.poll(lambda: any(isinstance(r, ExecutorFailed) for r in harness.reports))
    failed = next(r for r in harness.reports if isinstance(r, ExecutorFailed))
    assert failed.failure.kind is FailureKind.START_FAILED
    assert "Python" in failed.failure.stderr
    assert isinstance(harness.wait_for([task])[0], Lost)
    late = harness.task(chores.add, 1, 1)
    assert isinstance(harness.run(late)[0], Lost)


@pytest.mark.parametrize("python", ["/nonexistent/python", "/bin/false"])
def test_an_agent_that_cannot_start_ends_the_executor(make: Callable[..., Harness], python: str) -> None:
    harness = make(python=python)
    task = harness.task(chores.add, 1, 1)
    harness.executor.submit([task])
    harness.poll(lambda: any(isinstance(r, ExecutorFailed) for r in harness.reports))
    assert isinstance(harness.wait_for([task])[0], Lost)


# -- loss of slots, of the agent, and of the driver


def test_killing_at_random_loses_and_doubles_nothing(make: Callable[..., Harness]) -> None:
    random = Random(7)
    harness = make()
    tasks = [harness.task(chores.add, i, i) for i in range(600)]
    harness.executor.submit(tasks)
    in_flight = {task.attempt: (task, 2 * i) for i, task in enumerate(tasks)}
    done = kills = 0
    while in_flight:
        reports = [r for r in harness.executor.poll(10.0) if not isinstance(r, Started)]
        assert reports, f"{len(in_flight)} have not ended"
        for report in reports:
            assert isinstance(report, Finished | Lost)
            task, value = in_flight.pop(report.attempt)  # a KeyError here: it has ended twice
            if isinstance(report, Lost):
                attempt = replace(task.attempt, number=task.attempt.number + 1)
                in_flight[attempt] = (replace(task, attempt=attempt), value)
                harness.executor.submit([in_flight[attempt][0]])
            else:
                assert harness.result(report) == value
                done += 1
        if done > 25 * (kills + 1):
            kills += 1
            agent = agent_pid(harness)
            victims = [*processes.children_of(agent), agent]  # slots, warden and agent
            processes.send(random.choice(victims), signal.SIGKILL)
    assert done == 600
    assert kills > 15


def test_a_killed_agent_loses_what_ran_and_is_replaced(make: Callable[..., Harness], tmp_path: Path) -> None:
    harness = make()
    note = tmp_path / "family"
    task = harness.task(chores.family, str(note))
    harness.executor.submit([task])
    harness.wait_until_started(task)
    family = harness.wait_for_file(note)
    os.kill(agent_pid(harness), signal.SIGKILL)
    lost = harness.wait_for([task])[0]
    assert isinstance(lost, Lost)
    assert lost.failure.kind is FailureKind.NODE_LOST
    assert all(wait_for_end(int(pid)) for pid in family.split())
    assert harness.value(harness.task(chores.add, 1, 1)) == 2


def test_an_agent_that_ends_again_and_again_ends_the_executor(make: Callable[..., Harness]) -> None:
    harness = make()
    for _ in range(RESTARTS):
        task = harness.task(chores.endless)
        harness.executor.submit([task])
        harness.wait_until_started(task)
        os.kill(agent_pid(harness), signal.SIGKILL)
        lost = harness.wait_for([task])[0]
        assert isinstance(lost, Lost)
        assert lost.alone
    harness.poll(lambda: any(isinstance(r, ExecutorFailed) for r in harness.reports))


def test_a_stopped_agent_is_lost_within_the_lease(make: Callable[..., Harness]) -> None:
    harness = make(lease=0.5)
    task = harness.task(chores.endless)
    harness.executor.submit([task])
    harness.wait_until_started(task)
    os.kill(agent_pid(harness), signal.SIGSTOP)
    assert harness.wait_for([task])[0].failure.kind is FailureKind.NODE_LOST  # type: ignore[union-attr]
    assert harness.value(harness.task(chores.add, 1, 1)) == 2


def test_a_chore_that_keeps_the_interpreter_to_itself_is_not_lost(make: Callable[..., Harness]) -> None:
    harness = make(lease=0.5)
    assert harness.value(harness.task(chores.hold_the_lock, 1.5)) == "done"


@pytest.mark.slow
def test_a_chore_that_keeps_the_interpreter_to_itself_for_a_minute_is_not_lost(
    make: Callable[..., Harness],
) -> None:
    harness = make()
    task = harness.task(chores.hold_the_lock, 60.0)
    harness.executor.submit([task])
    limit = time.monotonic() + 120.0
    reports: list[Report] = []
    while not any(isinstance(report, Finished | Lost) for report in reports):
        assert time.monotonic() < limit
        reports += harness.executor.poll(5.0)
    started, finished = reports
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert harness.result(finished) == "done"
    assert finished.usage.wall_s >= 60.0


def test_a_driver_that_was_away_does_not_blame_the_agent(make: Callable[..., Harness]) -> None:
    harness = make(lease=0.3)
    assert harness.value(harness.task(chores.add, 1, 1)) == 2
    subprocess.run(["sleep", "0.6"], check=True)  # the driver is busy elsewhere, for longer than the lease
    assert harness.value(harness.task(chores.add, 1, 1)) == 2
    assert not any(isinstance(r, Lost) for r in harness.reports)


_DRIVER = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
import chores
from harness import Harness
from matforge.executors.local import LocalExecutor
harness = Harness(LocalExecutor(2), Path({run!r}))
task = harness.task(chores.family, {note!r})
harness.executor.submit([task])
harness.wait_for_file(Path({note!r}))
print(harness.executor.agent_pid, flush=True)
harness.poll(lambda: False)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_when_the_driver_dies_so_does_everything(tmp_path: Path, how: signal.Signals) -> None:
    with driver_of_a_family(tmp_path) as (driver, _, pids, private):
        driver.send_signal(how)
        driver.wait()
        assert all(wait_for_end(pid) for pid in pids)
        assert not list(Path(private).glob("mf-*"))


@contextmanager
def driver_of_a_family(
    tmp_path: Path,
) -> Iterator[tuple[subprocess.Popen[str], int, list[int], str]]:
    """A driver whose chore has started others; its agent, all processes, and its temporary folder."""
    note = tmp_path / "family"
    here = [p for p in sys.path if p]
    script = _DRIVER.format(path=here, run=str(tmp_path / "run"), note=str(note))
    # a short path, for the sockets in it, and its own, because others make such folders, too
    with (
        tempfile.TemporaryDirectory(prefix="t-") as private,
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "TMPDIR": private},
        ) as driver,
    ):  # fmt: skip
        assert driver.stdout is not None
        agent = int(driver.stdout.readline())
        pids = [agent, *processes.children_of(agent), *(int(p) for p in note.read_text().split())]
        yield driver, agent, pids, private


def kill_at_once(pids: list[int]) -> None:
    """None of them can do anything when another one has ended."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)


def test_when_driver_and_agent_are_killed_at_once_no_process_is_left(tmp_path: Path) -> None:
    with driver_of_a_family(tmp_path) as (driver, agent, pids, private):
        kill_at_once([driver.pid, agent])
        driver.wait()
        assert all(wait_for_end(pid) for pid in pids)
        assert not list(Path(private).glob("mf-*"))


def test_what_survives_even_the_warden_ends_when_the_next_driver_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Harness]
) -> None:
    with driver_of_a_family(tmp_path) as (driver, agent, pids, private):
        monkeypatch.setattr(tempfile, "tempdir", private)
        living = make()
        assert sweep_abandoned() == 0  # two drivers live
        wardens = [p for p in processes.children_of(agent) if os.getsid(p) == p and not is_slot(p)]
        assert len(wardens) == 1
        kill_at_once([driver.pid, agent, *wardens])
        driver.wait()
        *its_own, child, grandchild = pids
        assert all(wait_for_end(pid) for pid in its_own)
        assert os.path.exists(f"/proc/{child}")
        assert os.path.exists(f"/proc/{grandchild}")
        next_one = make()
        assert all(wait_for_end(pid) for pid in pids)
        assert [h.value(h.task(chores.add, 1, 1)) for h in (living, next_one)] == [2, 2]
        assert len(list(Path(private).glob("mf-*"))) == 2
        for harness in (living, next_one):
            harness.executor.close(kill=True)


def is_slot(pid: int) -> bool:
    """Whether a child of an agent is one of its slots."""
    return b"worker.slot" in Path(f"/proc/{pid}/cmdline").read_bytes()


# -- fencing


def test_a_slot_that_outlives_its_agent_and_publishes_late_changes_nothing(
    make: Callable[..., Harness], tmp_path: Path
) -> None:
    harness = make()
    gate = Gate(tmp_path / "gate")
    note = tmp_path / "note"
    first = harness.task(chores.publish_late, str(note), gate.path, "", full=True)
    folder = harness.run_dir / "out" / first.attempt.chore_id
    payload = harness.task(chores.publish_late, str(note), gate.path, str(folder)).payload
    first = replace(first, payload=payload)
    harness.executor.submit([first])
    hidden = int(harness.wait_for_file(note))
    os.kill(agent_pid(harness), signal.SIGKILL)
    lost = harness.wait_for([first])[0]
    assert isinstance(lost, Lost)
    assert (lost.failure.kind, lost.failure.attempt) == (FailureKind.NODE_LOST, 1)
    second = replace(first, attempt=replace(first.attempt, number=2))
    report = harness.end(second)
    gate.open()
    assert wait_for_end(hidden)
    assert (folder / "result.pickle.e1a1").read_text() == "stale"
    assert harness.result(report) == "second"
    assert report.result is not None
    assert report.result.path.endswith(".e1a2")


def test_reports_of_an_agent_that_was_given_up_are_not_heard(
    make: Callable[..., Harness], tmp_path: Path
) -> None:
    harness = make()
    task = harness.task(chores.endless)
    harness.executor.submit([task])
    harness.wait_until_started(task)
    config = AgentConfig.load(next(iter(homes_of(harness))))
    os.kill(agent_pid(harness), signal.SIGKILL)
    harness.wait_for([task])
    again = replace(task, attempt=replace(task.attempt, number=2))
    harness.executor.submit([again])
    harness.wait_until_started(again)
    context = zmq.Context()
    ghost: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    ghost.setsockopt(zmq.IDENTITY, config.identity.encode())
    ghost.connect(config.endpoint)
    for handle in (0, 1):
        report = [FINISHED, handle, [0, 0.0, 0.0, 0.0, 0], ["x", 0, 1, 0], 0, None, None, False]
        ghost.send_multipart([encode({"t": "reports", "r": [report]}), b""])
    harness.run(*(harness.task(chores.add, i, i) for i in range(50)))
    assert again.attempt not in harness.ends()
    context.destroy(linger=0)


def homes_of(harness: Harness) -> list[str]:
    """Configurations of the harness's agent."""
    command = Path(f"/proc/{agent_pid(harness)}/cmdline").read_bytes().split(b"\0")
    return [os.fsdecode(word) for word in command if word.endswith(b"agent.json")]
