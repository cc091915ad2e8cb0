"""What is Flux's own: jobs with ranks, room made for them, GPUs, losses, and nodes that come and go."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import chores
import fluxes
import pytest
from harness import Gate, Harness, wait_for_end

from matforge.executors.fluxexec import FluxExecutor
from matforge.executors.protocol import CapacityChanged, ExecutorFailed, Finished, Lost, RunContext, Started
from matforge.executors.restarts import RESTARTS
from matforge.executors.walltime import YEAR_S
from matforge.model import FailureKind, Lane, MatForgeError, Resources, UsageError

pytestmark = fluxes.needs_flux
ONE_NODE_MPI = Resources(num_tasks=2, mpi=True)
HELLO = """
#include <mpi.h>
#include <stdio.h>
int main(int argc, char **argv) {
    int rank, size, sum;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    printf("%d/%d/%d\\n", rank, size, sum);
    return MPI_Finalize();
}
"""


@pytest.fixture(scope="module")
def one() -> Iterator[fluxes.Instance]:
    """One broker."""
    with fluxes.instance() as made:
        yield made


@pytest.fixture
def make(one: fluxes.Instance, tmp_path: Path) -> Iterator[Callable[..., Harness]]:
    """Makes harnesses around Flux executors on one broker, and closes them."""
    with maker(tmp_path) as new:
        yield new


@contextmanager
def maker(tmp_path: Path) -> Iterator[Callable[..., Harness]]:
    """Makes harnesses around Flux executors with the given options, and closes them."""
    made: list[Harness] = []

    def new(**options: Any) -> Harness:
        harness = Harness(FluxExecutor(**options), tmp_path / f"run{len(made)}")
        made.append(harness)
        return harness

    try:
        yield new
    finally:
        for harness in made:
            harness.executor.close(kill=True)


def said_by(harness: Harness, task: Any, name: str = "stdout") -> list[str]:
    """Lines that a command of the job lane printed."""
    path = harness.run_dir / f"out/{task.attempt.chore_id}/{name}.{task.attempt.tag}"
    return sorted(path.read_text().split())


def wait(harness: Harness, seconds: float) -> None:
    """Go on polling for so long."""
    until = time.monotonic() + seconds
    harness.poll(lambda: time.monotonic() > until, patience=0.1)


def wait_for_agents(harness: Harness) -> None:
    """Poll until every agent has connected: then the first chore goes to the first node, the driver's."""
    executor = harness.executor
    assert isinstance(executor, FluxExecutor)
    harness.poll(lambda: all(agent.connected for agent in executor._fleet.agents.values()), patience=0.05)


# -- jobs with ranks


def test_an_mpi_program_has_its_ranks_and_gets_cores_that_agents_held(
    make: Callable[..., Harness], tmp_path: Path
) -> None:
    if shutil.which("mpicc") is None:
        pytest.skip("there is no mpicc on the PATH: install an MPI, mpich for example")
    (tmp_path / "hello.c").write_text(HELLO)
    subprocess.run(["mpicc", "-o", tmp_path / "hello", tmp_path / "hello.c"], check=True, timeout=60)
    harness = make()
    assert harness.value(harness.task(chores.add, 1, 1)) == 2
    task = harness.command(str(tmp_path / "hello"), resources=ONE_NODE_MPI)
    report = harness.end(task)
    assert report.failure is None
    assert said_by(harness, task) == ["0/2/1", "1/2/1"]
    assert harness.value(harness.task(chores.add, 2, 2)) == 4


def test_a_function_with_ranks_gives_the_result_of_rank_0(make: Callable[..., Harness]) -> None:
    harness = make()
    assert harness.value(harness.task(chores.rank, -1, resources=ONE_NODE_MPI, lane=Lane.JOB)) == (0, 2)
    failure = harness.failure(harness.task(chores.rank, 1, resources=ONE_NODE_MPI, lane=Lane.JOB))
    assert failure.kind is FailureKind.EXCEPTION
    assert failure.message == "Rank 1 of 2: RuntimeError: rank 1 fails"


def test_a_job_knows_who_it_is_and_not_where_the_instance_is(make: Callable[..., Harness]) -> None:
    harness = make()
    wants = Resources(num_tasks=2, mpi=True, env={"COLOUR": "blue"})
    task = harness.command(
        "sh", "-c", "echo $MATFORGE_RANK/$MATFORGE_SIZE/$MATFORGE_CHORE_ID/$COLOUR/$FLUX_URI/"
        "$CUDA_VISIBLE_DEVICES/$OMP_NUM_THREADS; pwd >&2", resources=wants,
    )  # fmt: skip
    harness.end(task)
    chore = task.attempt.chore_id
    assert said_by(harness, task) == [f"0/2/{chore}/blue///1", f"1/2/{chore}/blue///1"]
    folder = str((harness.run_dir / "out" / chore).resolve())
    assert said_by(harness, task, "stderr") == [folder, folder]
    left = {path.name for path in (harness.run_dir / "out" / chore).iterdir()}
    assert left == {"result.pickle.e1a1", "stdout.e1a1", "stderr.e1a1"}


@pytest.mark.parametrize(
    ("script", "kind", "exit_code", "number"),
    [
        ("echo oh >&2; exit 9", FailureKind.EXIT_CODE, 9, None),
        ("kill -SEGV $$", FailureKind.SIGNAL, None, 11),
        ("if [ $MATFORGE_RANK = 1 ]; then exit 5; fi; exec sleep 1000", FailureKind.EXIT_CODE, 5, None),
    ],
)
def test_a_job_fails_with_its_kind(
    make: Callable[..., Harness], script: str, kind: FailureKind, exit_code: int | None, number: int | None
) -> None:
    harness = make()
    failure = harness.failure(harness.command("sh", "-c", script, resources=ONE_NODE_MPI))
    assert (failure.kind, failure.exit_code, failure.signal) == (kind, exit_code, number)
    assert failure.message.startswith("Rank ")


def test_a_program_of_a_job_that_does_not_exist_is_named(make: Callable[..., Harness]) -> None:
    harness = make()
    failure = harness.failure(harness.command("no-such-program", resources=ONE_NODE_MPI))
    assert failure.kind is FailureKind.START_FAILED
    assert "'no-such-program'" in failure.message


def test_a_cancelled_job_leaves_no_process(make: Callable[..., Harness], tmp_path: Path) -> None:
    harness = make()
    notes = tmp_path / "family"
    wants = Resources(num_tasks=1, mpi=True)
    task = harness.command(sys.executable, chores.__file__, str(notes), resources=wants)
    harness.executor.submit([task])
    harness.wait_until_started(task)
    pids = [int(p) for p in harness.wait_for_file(notes).split()]
    harness.executor.cancel([task.attempt])
    end = harness.wait_for([task])[0]
    assert end.failure is not None
    assert end.failure.kind is FailureKind.CANCELLED
    assert all(wait_for_end(pid) for pid in pids)


def test_what_waits_behind_a_job_runs_after_it_and_what_ran_before_is_finished_first(
    make: Callable[..., Harness], tmp_path: Path
) -> None:
    harness = make()
    gate = Gate(tmp_path / "gate")
    held = harness.task(chores.wait_at, gate.path)
    wide = harness.command("true", resources=ONE_NODE_MPI)
    narrow = [harness.task(chores.add, i, i) for i in range(10)]
    harness.executor.submit([held])
    harness.wait_until_started(held)
    harness.executor.submit([wide, *narrow])
    assert [r for r in harness.executor.poll(0.3) if isinstance(r, Finished)] == []
    gate.open()
    ends = harness.wait_for([held, wide, *narrow])
    assert all(isinstance(e, Finished) and e.failure is None for e in ends)
    starts = [e.usage.started_at for e in ends if isinstance(e, Finished)]
    assert starts == sorted(starts)[:2] + starts[2:]
    assert starts[1] < min(starts[2:])


def test_a_job_beside_an_agent_takes_only_the_cores_it_needs(
    make: Callable[..., Harness], one: fluxes.Instance, tmp_path: Path
) -> None:
    harness = make()
    gate = Gate(tmp_path / "gate")
    alone = harness.command("head", "-c1", gate.path, resources=Resources(mpi=True))
    harness.executor.submit([alone])
    harness.wait_until_started(alone)
    assert harness.value(harness.task(chores.add, 1, 1)) == 2
    wide = harness.task(chores.surroundings, resources=Resources(cores_per_task=2))
    harness.executor.submit([wide])
    assert [r for r in harness.executor.poll(0.3) if isinstance(r, Finished)] == []
    gate.open()
    assert all(end.failure is None for end in harness.wait_for([alone, wide]))


def test_what_can_never_fit_is_told(make: Callable[..., Harness]) -> None:
    harness = make()
    for wants in (
        Resources(cores_per_task=3), Resources(gpus_per_task=1), Resources(num_tasks=3, mpi=True),
        Resources(num_tasks=2, cores_per_task=2),
    ):  # fmt: skip
        lane = Lane.JOB if wants.job_lane else Lane.WARM
        failure = harness.failure(harness.task(chores.add, 1, 1, resources=wants, lane=lane))
        assert failure.kind is FailureKind.DOES_NOT_FIT
        assert "2" in failure.message
    assert harness.value(harness.task(chores.add, 1, 1)) == 2


# -- surroundings


def test_a_chore_on_an_agent_is_not_led_into_the_full_instance(make: Callable[..., Harness]) -> None:
    harness = make()
    env = harness.value(harness.task(chores.surroundings))["env"]
    assert not [name for name in env if name.startswith(("FLUX_URI", "FLUX_JOB", "PMI_"))]


def test_a_chore_may_use_a_nested_instance(make: Callable[..., Harness]) -> None:
    harness = make()
    nested = harness.command("flux", "start", "flux", "run", "-n1", "echo", "inside")
    assert harness.end(nested).failure is None
    assert said_by(harness, nested) == ["inside"]
    lost = harness.command("sh", "-c", "flux run -n1 true")
    assert harness.failure(lost).kind is FailureKind.EXIT_CODE


def test_agents_connect_where_the_host_has_no_name_and_only_with_a_key_that_was_made_for_them(
    make: Callable[..., Harness],
) -> None:
    import zmq

    harness = make()
    assert harness.value(harness.task(chores.add, 1, 1)) == 2
    executor = harness.executor
    assert isinstance(executor, FluxExecutor)
    hub = executor._hub
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.setsockopt(zmq.LINGER, 0)
    public, secret = zmq.curve_keypair()
    stranger.curve_serverkey, stranger.curve_publickey, stranger.curve_secretkey = hub._public, public, secret
    stranger.setsockopt(zmq.IDENTITY, b"agent-1")
    stranger.connect(f"tcp://127.0.0.1:{hub.port}")
    stranger.send(b'{"t": "hello", "version": "0", "host": "elsewhere"}')
    harness.poll(lambda: hub.refused > 0, patience=0.02)
    stranger.close()
    context.term()
    assert harness.value(harness.task(chores.add, 2, 2)) == 4


# -- loss


@pytest.mark.parametrize("how", ["job cancelled", "agent killed", "agent stopped"])
def test_an_agent_that_goes_loses_what_ran_and_is_replaced(
    make: Callable[..., Harness], one: fluxes.Instance, tmp_path: Path, how: str
) -> None:
    harness = make(lease=1.0 if how == "agent stopped" else 10.0)
    note = tmp_path / "family"
    task = harness.task(chores.family, str(note))
    harness.executor.submit([task])
    harness.wait_until_started(task)
    family = [int(pid) for pid in harness.wait_for_file(note).split()]
    if how == "job cancelled":
        one.run("cancel", "--all")
    else:
        (pid,) = fluxes.agents_of(harness.run_dir)
        os.kill(pid, signal.SIGKILL if how == "agent killed" else signal.SIGSTOP)
    lost = harness.wait_for([task])[0]
    assert isinstance(lost, Lost)
    assert lost.failure.kind in (FailureKind.NODE_LOST, FailureKind.WORKER_LOST)
    assert harness.value(harness.task(chores.add, 1, 1)) == 2
    assert all(wait_for_end(pid) for pid in family)


def test_agents_that_end_again_and_again_end_the_executor(make: Callable[..., Harness]) -> None:
    harness = make()
    for _ in range(RESTARTS):
        task = harness.task(chores.endless)
        harness.executor.submit([task])
        harness.wait_until_started(task)
        (pid,) = fluxes.agents_of(harness.run_dir)
        os.kill(pid, signal.SIGKILL)
        harness.wait_for([task])
    harness.poll(lambda: any(isinstance(r, ExecutorFailed) for r in harness.reports))
    late = harness.task(chores.add, 1, 1)
    assert isinstance(harness.run(late)[0], Lost)


def test_what_is_suspected_of_killing_its_agent_has_one_for_itself(
    make: Callable[..., Harness], tmp_path: Path
) -> None:
    harness = make(workers=2)
    gates = [Gate(tmp_path / name) for name in ("first", "second")]
    before, suspect = (harness.task(chores.wait_at, gate.path) for gate in gates)
    suspect = replace(suspect, alone=True)
    after = harness.task(chores.brief)
    harness.run(*(harness.task(chores.brief) for _ in range(20)))  # two slots, which may hold some ahead
    harness.executor.submit([before])
    harness.wait_until_started(before)
    harness.executor.submit([suspect, after])
    assert harness.executor.poll(0.2) == []  # a slot is free
    gates[0].open()
    harness.wait_until_started(suspect)
    assert harness.executor.poll(0.2) == []  # here, too
    (pid,) = fluxes.agents_of(harness.run_dir)
    os.kill(pid, signal.SIGKILL)
    lost = harness.wait_for([suspect])[0]
    assert isinstance(lost, Lost)
    assert lost.alone
    gates[1].open()
    assert isinstance(harness.wait_for([after])[0], Finished)


def test_what_is_suspected_is_not_put_beside_a_job(make: Callable[..., Harness], tmp_path: Path) -> None:
    harness = make()
    gates = [Gate(tmp_path / name) for name in ("job", "chore")]
    job = harness.command("head", "-c1", gates[0].path, resources=Resources(mpi=True))
    suspect = replace(harness.task(chores.wait_at, gates[1].path), alone=True)
    harness.executor.submit([job])
    harness.wait_until_started(job)
    assert harness.value(harness.task(chores.add, 1, 1)) == 2  # there is an agent beside it
    harness.executor.submit([suspect])
    wait(harness, 0.5)
    assert not [r for r in harness.reports if isinstance(r, Started) and r.attempt == suspect.attempt]
    gates[0].open()
    harness.wait_until_started(suspect)
    gates[1].open()
    assert all(end.failure is None for end in harness.wait_for([job, suspect]))


def test_an_agent_that_cannot_reach_the_driver_says_so(
    make: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matforge.executors.hub.Hub.endpoints", lambda self, near: ["tcp://127.0.0.1:1"])
    harness = make()
    harness.poll(lambda: any(isinstance(r, ExecutorFailed) for r in harness.reports))
    failed = next(r for r in harness.reports if isinstance(r, ExecutorFailed))
    assert "MATFORGE_ADDRESS" in failed.failure.stderr
    assert "cannot be reached" in failed.failure.message


def test_agents_that_never_say_hello_end_the_executor_by_the_deadline(
    make: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        endpoint = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        monkeypatch.setattr("matforge.executors.hub.Hub.endpoints", lambda self, near: [endpoint])
        harness = make(start_s=1.0)
        harness.poll(lambda: any(isinstance(r, ExecutorFailed) for r in harness.reports))
    failed = next(r for r in harness.reports if isinstance(r, ExecutorFailed))
    assert "did not connect within 1 seconds" in failed.failure.message


def test_an_executor_serves_one_run(make: Callable[..., Harness], tmp_path: Path) -> None:
    harness = make()
    with pytest.raises(MatForgeError, match="one run"):
        harness.executor.start(RunContext(tmp_path, "again", 1))


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"workers": True}, {"max_chores": 0}, {"lease": 0}, {"start_s": -1}]
)
def test_numbers_out_of_range_are_refused_in_one_sentence(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be") as caught:
        FluxExecutor(**options)
    assert "\n" not in str(caught.value)


# -- time limits of the instance


@contextmanager
def with_policy(tmp_path: Path, policy: str) -> Iterator[fluxes.Instance]:
    """One broker that limits what its jobs may take."""
    (tmp_path / "policy.toml").write_text(policy)
    with fluxes.instance(options=(f"--config-path={tmp_path / 'policy.toml'}",)) as made:
        yield made


@pytest.mark.slow
def test_when_an_agents_time_is_over_only_what_had_all_of_it_is_blamed_and_the_rest_gets_all_of_it_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matforge.executors.remote.EARLY_S", 4.0)  # the machine may be busy
    with with_policy(tmp_path, '[policy.limits]\nduration = "10s"\n'), maker(tmp_path) as new:
        harness = new()
        long = harness.task(chores.endless)
        harness.executor.submit([long])
        harness.wait_until_started(long)
        wait(harness, 5.0)
        late = harness.task(chores.endless)
        harness.executor.submit([late])
        harness.wait_until_started(late)
        lost = [end for end in harness.wait_for([long, late]) if isinstance(end, Lost)]
        assert [end.failure.kind for end in lost] == [FailureKind.WALLTIME] * 2
        assert [end.alone for end in lost] == [True, False]
        assert "time limit of 10 s" in lost[0].failure.message
        assert "policy.limits.duration" in lost[0].failure.message
        assert harness.value(harness.task(chores.add, 1, 1)) == 2
        wait(harness, 5.0)
        (aged,) = fluxes.agents_of(harness.run_dir)
        again = replace(late, attempt=replace(late.attempt, number=2))
        harness.executor.submit([again])
        harness.wait_until_started(again)
        assert fluxes.agents_of(harness.run_dir) != [aged]
        end = harness.wait_for([again])[0]
        assert isinstance(end, Lost)
        assert end.failure.kind is FailureKind.WALLTIME
        assert end.alone


def test_a_job_whose_time_is_over_has_had_all_there_is_whatever_its_ranks_say(tmp_path: Path) -> None:
    with with_policy(tmp_path, '[policy.limits]\nduration = "4s"\n'), maker(tmp_path) as new:
        harness = new()
        dies = harness.command("sleep", "1000", resources=ONE_NODE_MPI)
        quits = harness.command("sh", "-c", "trap 'exit 3' ALRM; sleep 1000 & wait", resources=ONE_NODE_MPI)
        for task in (dies, quits):
            end = harness.run(task)[0]
            assert isinstance(end, Lost)
            assert end.alone
            assert end.failure.kind is FailureKind.WALLTIME
            assert "time limit of 4 s" in end.failure.message


def test_jobs_ask_for_more_than_what_those_get_that_ask_for_nothing(tmp_path: Path) -> None:
    short = '[policy.jobspec.defaults.system]\nduration = "2s"\n'
    with with_policy(tmp_path, short) as made, maker(tmp_path) as new:
        harness = new()
        assert harness.value(harness.task(chores.add, 1, 1)) == 2
        assert float(made.run("jobs", "-no", "{duration}")) == YEAR_S


# -- several nodes


@pytest.fixture
def four(tmp_path: Path) -> Iterator[fluxes.Instance]:
    """Four brokers; they stand for nodes."""
    with fluxes.instance(size=4) as made:
        yield made


def test_a_node_that_is_lost_or_drained_is_followed(four: fluxes.Instance, tmp_path: Path) -> None:
    with maker(tmp_path) as new:
        harness = new()
        gates = [Gate(tmp_path / f"gate{i}") for i in range(8)]
        tasks = [
            harness.task(chores.note_pid_and_wait, str(tmp_path / f"pid{i}"), g.path)
            for i, g in enumerate(gates)
        ]
        assert harness.executor.capacity().total_cores == 8
        harness.executor.submit(tasks)
        for task in tasks:
            harness.wait_until_started(task)
        os.kill(four.broker_pid(3), signal.SIGKILL)
        harness.poll(lambda: any(isinstance(r, CapacityChanged) for r in harness.reports))
        harness.poll(lambda: sum(isinstance(r, Lost) for r in harness.reports) == 2)
        assert harness.executor.capacity().total_cores == 6
        four.run("resource", "drain", "2")
        harness.poll(lambda: harness.executor.capacity().total_cores == 4, patience=0.05)
        for gate in gates:
            gate.open()
        survivors = [t for t in tasks if not isinstance(harness.ends().get(t.attempt), Lost)]
        assert len(survivors) == 6
        assert all(end.failure is None for end in harness.wait_for(survivors))
        harness.poll(lambda: len(fluxes.agents_of(harness.run_dir)) == 2, patience=0.05)
        more = harness.run(*(harness.task(chores.add, i, i) for i in range(40)))
        assert all(end.failure is None for end in more)
        four.run("resource", "undrain", "2")
        harness.poll(lambda: harness.executor.capacity().total_cores == 6, patience=0.05)


def test_when_flux_itself_goes_the_executor_says_so_and_its_agents_end(tmp_path: Path) -> None:
    with fluxes.instance() as made, maker(tmp_path) as new:
        harness = new()
        task = harness.task(chores.endless)
        harness.executor.submit([task])
        harness.wait_until_started(task)
        os.kill(made.broker_pid(0), signal.SIGKILL)
        harness.poll(lambda: any(isinstance(r, ExecutorFailed) for r in harness.reports))
        assert isinstance(harness.wait_for([task])[0], Lost)
        pids = fluxes.agents_of(harness.run_dir)
        harness.executor.close()
        assert all(wait_for_end(pid) for pid in pids)


def test_where_a_broker_stands_still_the_end_does_not_wait_for_what_cannot_come_and_says_what_is_left(
    four: fluxes.Instance, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with maker(tmp_path) as new:
        harness = new()
        notes = [tmp_path / f"pid{i}" for i in range(8)]
        gate = Gate(tmp_path / "gate")
        tasks = [harness.task(chores.note_pid_and_wait, str(note), gate.path) for note in notes]
        harness.executor.submit(tasks)
        for note in notes:
            harness.wait_for_file(note)
        stopped = four.broker_pid(3)
        os.kill(stopped, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            harness.executor.close(kill=True)
            took = time.monotonic() - begun
            assert fluxes.processes_of(harness.run_dir) == {}
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert took < 10.0
        assert "1 jobs of this run have not ended" in caplog.text
        four.run("queue", "idle", "--timeout=20s")  # it has been cancelled, and ends when it can


def test_ranks_on_several_nodes_really_run(four: fluxes.Instance, tmp_path: Path) -> None:
    with maker(tmp_path) as new:
        harness = new()
        wants = Resources(num_tasks=4)
        task = harness.command("sh", "-c", "echo $MATFORGE_RANK/$MATFORGE_SIZE", resources=wants)
        harness.end(task)
        assert said_by(harness, task) == ["0/4", "1/4", "2/4", "3/4"]
        assert harness.value(harness.task(chores.rank, -1, resources=wants, lane=Lane.JOB)) == (0, 4)
        assert harness.value(harness.task(chores.add, 1, 1)) == 2


def test_a_job_that_loses_a_node_is_lost_with_it_and_not_to_blame(
    four: fluxes.Instance, tmp_path: Path
) -> None:
    with maker(tmp_path) as new:
        harness = new()
        notes = [tmp_path / f"rank{i}" for i in range(4)]
        script = f"echo > {tmp_path}/rank$MATFORGE_RANK; exec sleep 1000"
        everywhere = Resources(num_tasks=4, cores_per_task=2, mpi=True)
        task = harness.command("sh", "-c", script, resources=everywhere)
        harness.executor.submit([task])
        harness.poll(lambda: all(note.exists() for note in notes), patience=0.02)
        os.kill(four.broker_pid(3), signal.SIGKILL)
        lost = harness.wait_for([task])[0]
        assert isinstance(lost, Lost)
        assert lost.failure.kind is FailureKind.NODE_LOST
        assert lost.alone  # it held all of its nodes


def test_of_a_job_and_a_chore_on_one_node_neither_is_blamed_for_its_loss(
    four: fluxes.Instance, tmp_path: Path
) -> None:
    with maker(tmp_path) as new:
        harness = new()
        gate = Gate(tmp_path / "gate")

        def waiting(name: str) -> Any:
            return harness.task(chores.note_pid_and_wait, str(tmp_path / name), gate.path)

        first = waiting("first")
        wait_for_agents(harness)
        harness.executor.submit([first])  # at the driver's node, so that the job goes to another one
        harness.wait_until_started(first)
        job = harness.command(
            "sh", "-c", f"echo $$ > {tmp_path}/job; exec sleep 1000", resources=Resources(mpi=True)
        )
        harness.executor.submit([job])
        broker = fluxes.broker_above(int(harness.wait_for_file(tmp_path / "job")))
        harness.poll(lambda: len(fluxes.agents_of(harness.run_dir)) == 4, patience=0.05)
        others = [waiting(f"pid{i}") for i in range(6)]  # every core has one
        harness.executor.submit(others)
        pids = [int(harness.wait_for_file(tmp_path / f"pid{i}")) for i in range(6)]
        (beside,) = [o for o, pid in zip(others, pids, strict=True) if fluxes.broker_above(pid) == broker]
        os.kill(broker, signal.SIGKILL)
        lost = harness.wait_for([job, beside])
        assert [(type(end), end.failure and end.failure.kind) for end in lost] == [
            (Lost, FailureKind.NODE_LOST)
        ] * 2
        assert not any(isinstance(end, Lost) and end.alone for end in lost)
        gate.open()
        left = [first, *(other for other in others if other is not beside)]
        assert all(end.failure is None for end in harness.wait_for(left))


def test_a_job_that_is_suspected_of_killing_its_node_has_it_for_itself(
    four: fluxes.Instance, tmp_path: Path
) -> None:
    with maker(tmp_path) as new:
        harness = new()
        gate = Gate(tmp_path / "gate")
        first = harness.task(chores.wait_at, gate.path)
        wait_for_agents(harness)
        harness.executor.submit([first])  # at the driver's node, so that the job goes to another one
        harness.wait_until_started(first)
        command = ("sh", "-c", f"echo $$ > {tmp_path}/job; exec sleep 1000")
        job = replace(harness.command(*command, resources=Resources(mpi=True)), alone=True)
        harness.executor.submit([job])
        broker = fluxes.broker_above(int(harness.wait_for_file(tmp_path / "job")))
        notes = [tmp_path / f"pid{i}" for i in range(6)]
        others = [harness.task(chores.note_pid_and_wait, str(note), gate.path) for note in notes]
        harness.executor.submit(others)
        pids = [int(harness.wait_for_file(note)) for note in notes[:5]]
        assert broker not in {fluxes.broker_above(pid) for pid in pids}
        assert not notes[5].exists()  # its node has another core, and yet nothing else
        os.kill(broker, signal.SIGKILL)
        (lost,) = harness.wait_for([job])
        assert isinstance(lost, Lost)
        assert lost.failure.kind is FailureKind.NODE_LOST
        assert lost.alone
        gate.open()
        assert all(end.failure is None for end in harness.wait_for([first, *others]))


# -- GPUs


@pytest.fixture
def with_gpus(tmp_path: Path) -> Iterator[fluxes.Instance]:
    """One broker that believes that it has four GPUs."""
    resources = tmp_path / "R"
    described = subprocess.run(
        ["flux", "R", "encode", "--ranks=0", f"--hosts={os.uname().nodename}", "--cores=0-1", "--gpus=0-3"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    resources.write_text(described.stdout)
    options = (f"--config-path={tmp_path / 'conf.toml'}",)
    (tmp_path / "conf.toml").write_text(f'[resource]\npath = "{resources}"\nnoverify = true\n')
    with fluxes.instance(options=options) as made:
        yield made


def test_gpus_are_given_out_and_who_asks_for_none_sees_none(
    with_gpus: fluxes.Instance, tmp_path: Path
) -> None:
    with maker(tmp_path) as new:
        harness = new()
        assert harness.executor.capacity().total_gpus == 4

        def seen(**wants: Any) -> str:
            task = harness.task(chores.surroundings, resources=Resources(**wants))
            return str(harness.value(task)["env"]["CUDA_VISIBLE_DEVICES"])

        assert seen() == ""
        assert seen(gpus_per_task=1) in {"0", "1", "2", "3"}
        assert sorted(seen(gpus_per_task=4).split(",")) == ["0", "1", "2", "3"]
        show = ("sh", "-c", "echo [$CUDA_VISIBLE_DEVICES]")
        none = harness.command(*show, resources=Resources(num_tasks=2, mpi=True))
        some = harness.command(*show, resources=Resources(num_tasks=2, gpus_per_task=2, mpi=True))
        assert all(end.failure is None for end in harness.run(none, some))
        assert said_by(harness, none) == ["[]", "[]"]
        assert said_by(harness, some) == ["[0,1]", "[2,3]"]
