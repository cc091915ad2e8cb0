"""Whole runs on Flux: the same answer as on this machine, whatever dies in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fluxes
import pytest

from matforge import Pipeline
from matforge.engine.store import find_run

pytestmark = fluxes.needs_flux
CHORES = 300


@pytest.fixture
def four() -> Iterator[fluxes.Instance]:
    """Four brokers; they stand for nodes."""
    with fluxes.instance(size=4) as made:
        yield made


def take_a_moment(i: int) -> int:
    """Long enough for something to happen meanwhile."""
    time.sleep(0.03)
    return i * i


def agents(run_dir: Path) -> list[int]:
    """Process ids of the agents of a run."""
    found = fluxes.processes_of(run_dir / "agents")
    return [pid for pid, words in found.items() if "worker.remote" in words]


def cancel_agents(made: fluxes.Instance, run_dir: Path) -> None:
    made.run("cancel", made.run("jobs", "-no", "{id}").split()[0])


def kill_agent(made: fluxes.Instance, run_dir: Path) -> None:
    os.kill(agents(run_dir)[0], signal.SIGKILL)


def kill_broker(made: fluxes.Instance, run_dir: Path) -> None:
    os.kill(made.broker_pid(3), signal.SIGKILL)


def stop_broker(made: fluxes.Instance, run_dir: Path) -> None:
    os.kill(made.broker_pid(3), signal.SIGSTOP)


def drain_node(made: fluxes.Instance, run_dir: Path) -> None:
    made.run("resource", "drain", "2")


@pytest.mark.parametrize(
    "harm",
    [
        cancel_agents,
        kill_agent,
        kill_broker,
        drain_node,
        # its job cannot be ended while it stands still, and that is waited for
        pytest.param(stop_broker, marks=pytest.mark.slow),
    ],
)
def test_the_result_is_exact_whatever_goes_meanwhile(
    four: fluxes.Instance, tmp_path: Path, harm: Callable[[fluxes.Instance, Path], None]
) -> None:
    stopped = four.broker_pid(3)
    try:
        with Pipeline(basedir=tmp_path, executor="flux") as pipe:
            square = pipe.chore()(take_a_moment)
            references = square.map(range(CHORES))
            run = pipe.submit(quiet=True)
            references[20].result(timeout=60)
            harm(four, run.run_dir)
            values = [run.result(timeout=90)[reference.chore_id] for reference in references]
        assert values == [i * i for i in range(CHORES)]
    finally:
        if harm is stop_broker:
            os.kill(stopped, signal.SIGCONT)


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
    square = pipe.chore()(take_a_moment)
    references = square.map(range(10_000))
    run = pipe.submit(quiet=True)
    references[20].result(timeout=60)
    assert len(agents(run.run_dir)) == 4
    run.cancel()
    pipe.close()
    assert fluxes.processes_of(run.run_dir) == {}
    assert four.run("jobs", "-no", "{id}") == ""
