"""Whole runs on Flux: the same answer as on this machine, whatever dies in between."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import fluxes
import pytest
from harness import wait_for_end, wait_until

from matforge import Pipeline
from matforge.engine.graph import MAX_LOSSES
from matforge.engine.history import read_stories
from matforge.engine.store import find_run
from matforge.model import FailureKind, OutputReference
from matforge.policy import RULES
from matforge.session import RunFailedError

pytestmark = fluxes.needs_flux
CHORES = 300


@pytest.fixture
def four() -> Iterator[fluxes.Instance]:
    """Four brokers; they stand for nodes."""
    with fluxes.instance(size=4) as made:
        yield made


def square(i: int, gate: str | None = None) -> int:
    """Wait until the test lets go of ``gate``, if there is one."""
    if gate is not None:
        with open(gate) as file:
            fcntl.flock(file, fcntl.LOCK_SH)
    time.sleep(0.01)  # so that the rest of the run still lasts when what was harmed comes back
    return i * i


def slow_square(i: int) -> int:
    """Take longer than the moment that an agent's time may begin with."""
    time.sleep(1.0)
    return i * i


def cancel_agent(made: fluxes.Instance, run_dir: Path) -> None:
    made.run("cancel", made.run("jobs", "-no", "{id}").split()[0])


def kill_agent(made: fluxes.Instance, run_dir: Path) -> None:
    os.kill(fluxes.agents_of(run_dir)[0], signal.SIGKILL)


def kill_broker(made: fluxes.Instance, run_dir: Path) -> None:
    os.kill(made.broker_pid(3), signal.SIGKILL)


def stop_broker(made: fluxes.Instance, run_dir: Path) -> None:
    os.kill(made.broker_pid(3), signal.SIGSTOP)


def drain_node(made: fluxes.Instance, run_dir: Path) -> None:
    made.run("resource", "drain", "2")


def outcomes(run_dir: Path, references: list[OutputReference]) -> Counter[str]:
    """How often attempts of these chores have ended in which way, from the journal."""
    stories = read_stories(run_dir, [reference.chore_id for reference in references])
    return Counter(attempt["outcome"] for story in stories.values() for attempt in story.attempts)


@pytest.mark.parametrize(
    ("harm", "loses"),
    [
        (kill_agent, True),
        (kill_broker, True),
        pytest.param(cancel_agent, True, marks=pytest.mark.slow),
        pytest.param(drain_node, False, marks=pytest.mark.slow),
        pytest.param(stop_broker, False, marks=pytest.mark.slow),
    ],
)
def test_the_result_is_exact_whatever_goes_meanwhile_and_no_retry_is_spent_on_it(
    four: fluxes.Instance, tmp_path: Path, harm: Callable[[fluxes.Instance, Path], None], loses: bool
) -> None:
    stopped = four.broker_pid(3)
    gate = tmp_path / "gate"
    try:
        with gate.open("w") as held, Pipeline(basedir=tmp_path, executor="flux") as pipe:
            fcntl.flock(held, fcntl.LOCK_EX)
            chore = pipe.chore()(square)
            # the second part keeps every slot of every node in the middle of a chore
            references = [chore(i, None if i < CHORES // 3 else str(gate)) for i in range(CHORES)]
            run = pipe.submit(quiet=True)
            for reference in references[: CHORES // 3]:
                reference.result(timeout=60)
            wait_until(lambda: len(fluxes.agents_of(run.run_dir)) == 4)
            harm(four, run.run_dir)
            wait_until(lambda: not loses or FailureKind.NODE_LOST in outcomes(run.run_dir, references))
            fcntl.flock(held, fcntl.LOCK_UN)
            results = run.result(timeout=90)
            values = [results[reference.chore_id] for reference in references]
        assert values == [i * i for i in range(CHORES)]
        ended = outcomes(run.run_dir, references)
        # neither a retry nor one of the three lives that a chore has which loses its slots
        assert set(ended) == {"completed", *([FailureKind.NODE_LOST] if loses else [])}
        assert ended["completed"] == CHORES
        assert RULES[FailureKind.NODE_LOST].cost == 0
        # the agent is replaced where its node is still there, and only there
        agents = {kill_agent: 5, cancel_agent: 5}.get(harm, 4)
        assert len(four.run("jobs", "-ano", "{id}").split()) == agents
    finally:
        if harm is stop_broker:
            os.kill(stopped, signal.SIGCONT)


def too_long() -> None:
    """Wait for what never comes."""
    time.sleep(1000)


@pytest.mark.slow
def test_what_cannot_end_within_the_time_that_jobs_have_is_set_aside_and_nothing_else_is(
    tmp_path: Path,
) -> None:
    (tmp_path / "policy.toml").write_text('[policy.limits]\nduration = "6s"\n')
    options = (f"--config-path={tmp_path / 'policy.toml'}",)
    with fluxes.instance(options=options), Pipeline(basedir=tmp_path, executor="flux") as pipe:
        warm = pipe.chore()(too_long)()
        shorts = [pipe.chore()(slow_square)(i) for i in range(20)]
        ranks = pipe.chore(num_tasks=2, mpi=True)(too_long)()
        run = pipe.submit(quiet=True)
        with pytest.raises(RunFailedError) as caught:
            run.result(timeout=120)
    failures = caught.value.failures
    assert set(failures) == {warm.chore_id, ranks.chore_id}
    assert all("time limit of 6 s" in failure.message for failure in failures.values())
    for one in (warm, ranks):
        ended = outcomes(run.run_dir, [one])
        assert set(ended) == {FailureKind.WALLTIME}
        # once it may have begun too late to have had all of the time
        assert MAX_LOSSES <= ended[FailureKind.WALLTIME] <= MAX_LOSSES + 1
    ended = outcomes(run.run_dir, shorts)
    assert ended["completed"] == len(shorts)
    assert set(ended) <= {"completed", FailureKind.WALLTIME}


def kill_node() -> None:
    """Kill the broker of the second rank's node, which is never the driver's."""
    if os.environ["MATFORGE_RANK"] == "1":
        os.kill(fluxes.broker_above(os.getpid()), signal.SIGKILL)
    time.sleep(1000)


@pytest.mark.slow
def test_a_job_with_ranks_that_kills_its_node_again_and_again_is_set_aside_and_the_rest_goes_on(
    tmp_path: Path,
) -> None:
    whole = {"num_tasks": 2, "cores_per_task": 2, "mpi": True}
    with fluxes.instance(size=6), Pipeline(basedir=tmp_path, executor="flux") as pipe:
        killer = pipe.chore(**whole)(kill_node)()
        ranks = pipe.chore(**whole)(square)(3)
        warm = [pipe.chore()(square)(i) for i in range(50)]
        run = pipe.submit(quiet=True)
        with pytest.raises(RunFailedError) as caught:
            run.result(timeout=120)
    assert set(caught.value.failures) == {killer.chore_id}
    assert caught.value.failures[killer.chore_id].kind is FailureKind.NODE_LOST
    assert outcomes(run.run_dir, [killer]) == {FailureKind.NODE_LOST: MAX_LOSSES}
    assert outcomes(run.run_dir, [ranks, *warm]) == {"completed": 1 + len(warm)}


@pytest.mark.slow
def test_a_search_gives_the_same_bytes_as_on_this_machine(four: fluxes.Instance, tmp_path: Path) -> None:
    found = []
    for executor in ("local", "flux"):
        command = [
            "vacua",
            "search",
            "-q",
            "--json",
            "--executor",
            executor,
            "--dir",
            str(tmp_path / executor),
        ]
        subprocess.run(
            [sys.executable, "-m", "matforge", *command], check=True, capture_output=True, timeout=240
        )
        found.append((find_run(tmp_path / executor) / "vacua.parquet").read_bytes())
    assert found[0] == found[1]


DRIVER = """
import sys, time
from matforge import Pipeline
pipe = Pipeline(basedir={basedir!r}, executor="flux")
@pipe.chore()
def wait(i):
    time.sleep(0.05)
    return i
references = [wait(i) for i in range(200)]
run = pipe.submit(quiet=True)
references[10].result()
print("begun", flush=True)
run.result()
"""


def test_a_driver_that_is_killed_is_resumed_exactly_and_leaves_no_process(
    four: fluxes.Instance, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(basedir=str(tmp_path))], stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "begun\n"
        driver.kill()
    run_dir = find_run(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "matforge", "resume", str(run_dir)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "200 chores completed" in done.stdout
    assert fluxes.processes_of(run_dir) == {}


def test_a_run_that_is_cancelled_leaves_no_process_on_any_rank(four: fluxes.Instance, tmp_path: Path) -> None:
    pipe = Pipeline(basedir=tmp_path, executor="flux")
    references = pipe.chore()(square).map(range(10_000))
    run = pipe.submit(quiet=True)
    references[20].result(timeout=60)
    assert len(fluxes.agents_of(run.run_dir)) == 4
    run.cancel()
    pipe.close()
    assert fluxes.processes_of(run.run_dir) == {}
    assert four.run("jobs", "-no", "{id}") == ""


SILENT = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
import chores
from harness import Harness
from matforge.executors.fluxexec import FluxExecutor
harness = Harness(FluxExecutor(driver_lease=1.0, lease=2.0), Path({run!r}))
task = harness.task(chores.family, {note!r})
harness.executor.submit([task])
harness.wait_for_file(Path({note!r}))
print("begun", flush=True)
harness.poll(lambda: False)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_agents_whose_driver_falls_silent_end_with_all_they_have_started(
    four: fluxes.Instance, tmp_path: Path, how: signal.Signals
) -> None:
    note, run_dir = tmp_path / "family", tmp_path / "run"
    script = SILENT.format(path=[p for p in sys.path if p], run=str(run_dir), note=str(note))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "begun\n"
        pids = [*fluxes.agents_of(run_dir), *(int(pid) for pid in note.read_text().split())]
        assert len(pids) == 4 + 3
        driver.send_signal(how)
        ended = [wait_for_end(pid) for pid in pids]
        driver.kill()
    assert all(ended)
