"""MatEnsemble's dashboard shows a run of ours.

It needs an interpreter that has ``matensemble`` (0.5.9): ``MATFORGE_MATENSEMBLE_PYTHON`` names it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matforge import Pipeline, RunFailedError
from matforge.engine.status import HISTORY_NAME, STATUS_NAME

VARIABLE = "MATFORGE_MATENSEMBLE_PYTHON"
CURRENT = [
    "sequence",
    "pending",
    "ready",
    "blocked",
    "running",
    "completed",
    "failed",
    "free_cores",
    "free_gpus",
]
ALLOCATION = ["nodes", "cores_per_node", "gpus_per_node", "total_cores", "total_gpus"]
WORKFLOW = ["id", "name", "campaign", "state", "started_at", "updated_at", "finished_at", "elapsed_seconds"]
FAILURE = ["chore_id", "timestamp", "reason", "upstream", "message", "stderr"]


def _complain(x: int) -> int:
    print("odd numbers are not liked here", file=sys.stderr)
    raise ValueError(f"{x} is odd")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run: three chores completed, one failed, one could not begin."""
    base = tmp_path_factory.mktemp("root") / "screening"
    base.mkdir()
    pipe = Pipeline(basedir=base, workers=1, name="melting points", campaign="screening")
    double = pipe.chore(name="double")(lambda x: 2 * x)
    complain = pipe.chore(name="complain")(_complain)
    double(complain(double(double(double(1)))))
    with pytest.raises(RunFailedError):
        pipe.submit(log_delay=0.0, quiet=True).result(60)
    return base


def run_of(folder: Path) -> Path:
    """The only run in the folder, under whichever name."""
    return next(folder.iterdir())


def test_the_status_has_every_key_that_matensemble_reads(folder: Path) -> None:
    status = json.loads((run_of(folder) / STATUS_NAME).read_text())
    assert status["schema_version"] == 2
    assert set(WORKFLOW) <= set(status["workflow"])
    assert set(ALLOCATION) <= set(status["allocation"])
    assert set(CURRENT) <= set(status["current"])
    assert status["current"]["pending"] == status["current"]["ready"] + status["current"]["blocked"]
    assert [set(FAILURE) <= set(failure) for failure in status["failures"]] == [True, True]
    assert status["history_file"] == HISTORY_NAME


def test_every_line_of_the_history_has_the_counters_of_matensemble(folder: Path) -> None:
    lines = [json.loads(line) for line in (run_of(folder) / HISTORY_NAME).read_text().splitlines()]
    assert [line["sequence"] for line in lines] == list(range(1, len(lines) + 1))
    wanted = {"timestamp", "elapsed_seconds", "state", *CURRENT}
    assert all(wanted <= set(line) for line in lines)
    assert lines[-1]["state"] == "failed"


class Dashboard:
    """The running dashboard, asked as its page asks it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            body: bytes = answer.read()
        return body

    def ask(self, path: str) -> Any:
        return json.loads(self.get(f"/api/{path}"))


@pytest.fixture(scope="module")
def dashboard(folder: Path) -> Iterator[Dashboard]:
    """Their server on a folder in which our run has a name that it looks for."""
    python = os.environ.get(VARIABLE)
    if not python:
        pytest.skip(f"{VARIABLE} does not name an interpreter with matensemble 0.5.9")
    run = run_of(folder)
    run.rename(folder / run.name.replace("matforge", "matensemble"))
    server = Path(__file__).parent / "dashboard_server.py"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with subprocess.Popen(
        [python, str(server), str(folder.parent)], stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        try:
            assert process.stdout is not None
            yield Dashboard(int(process.stdout.readline()))
        finally:
            process.terminate()


def test_their_dashboard_lists_the_run_as_healthy(dashboard: Dashboard) -> None:
    catalog = dashboard.ask("catalog")
    assert catalog["scan_errors"] == []
    (found,) = catalog["workflows"]
    assert found["display_name"] == "melting points"
    assert found["campaign"] == "screening"
    assert (found["state"], found["health"], found["error"]) == ("failed", "healthy", None)
    assert found["current"] == {"pending": 0, "running": 0, "completed": 3, "failed": 2}


def test_their_dashboard_shows_history_failures_and_what_a_chore_wrote(dashboard: Dashboard) -> None:
    (found,) = dashboard.ask("catalog")["workflows"]
    status = dashboard.ask(f"workflows/{found['id']}/status")["status"]
    assert [(f["reason"], f["upstream"]) for f in status["failures"]] == [
        ("exception", None),
        ("dependency failed", "chore-complain-0004"),
    ]
    history = dashboard.ask(f"workflows/{found['id']}/history")
    assert history["records"][-1]["completed"] == 3
    assert not history["truncated"]
    assert not history["ignored_incomplete_final_line"]
    stderr = dashboard.get(f"/api/workflows/{found['id']}/artifacts/chore-complain-0004/stderr")
    assert b"odd numbers are not liked here" in stderr
