"""A MatEnsemble script runs after changing ``matensemble`` to ``matforge`` in its imports.

Its own examples are read from a checkout of Q-CAD/MatEnsemble (a work tree or a git directory) that
``MATFORGE_MATENSEMBLE_REPO`` names; scripts of ours that use the same calls in the same manner
always run.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from matforge.engine.store import find_run

SCRIPTS = Path(__file__).parent / "scripts"
VARIABLE = "MATFORGE_MATENSEMBLE_REPO"


def example(name: str) -> str:
    """One of MatEnsemble's generic workflows, with only the imports changed."""
    where = os.environ.get(VARIABLE)
    if not where:
        pytest.skip(f"{VARIABLE} does not name a checkout of Q-CAD/MatEnsemble")
    inside = f"example_workflows/generic/{name}/workflow.py"
    file = Path(where) / inside
    if file.is_file():
        text = file.read_text()
    else:
        show = ["git", "-C", where, "show", f"HEAD:{inside}"]
        text = subprocess.run(show, check=True, capture_output=True, text=True).stdout
    changed, count = re.subn(r"^(from|import) matensemble\b", r"\1 matforge", text, flags=re.MULTILINE)
    assert count
    return changed


def run(source: str, folder: Path, *, workers: int = 2, command: bool = False) -> str:
    """Run it as a script, or with ``matforge run``; what it printed."""
    (folder / "workflow.py").write_text(source)
    before = ["-m", "matforge", "run", "--workers", str(workers)] if command else []
    ended = subprocess.run(
        [sys.executable, *before, "workflow.py"],
        cwd=folder,
        env={**os.environ, "MATFORGE_WORKERS": str(workers)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def ours(name: str, folder: Path, **how: Any) -> str:
    """Run a script of ours; what it printed."""
    return run((SCRIPTS / name).read_text(), folder, **how)


def counters(folder: Path) -> dict[str, int]:
    """``current`` of the run's status."""
    current: dict[str, int] = json.loads((find_run(folder) / "status.json").read_text())["current"]
    return current


def streams(folder: Path, name: str) -> list[str]:
    """What each chore of that name wrote to its standard output, in the order of their numbers."""
    return [p.read_text() for p in sorted((find_run(folder) / "out").glob(f"chore-{name}-*/stdout"))]


def results(folder: Path, keep: Callable[[Any], bool]) -> list[Any]:
    """Results of chores in the order of their numbers, as a reader of the run directory finds them."""
    found = sorted((find_run(folder) / "out").glob("chore-*/result.pickle"), key=lambda p: p.parent.name[-4:])
    return [value for path in found if keep(value := pickle.loads(path.read_bytes()))]


# ---------------------------------------------------------------- scripts of ours


def test_chained_chores_print_their_results(tmp_path: Path) -> None:
    printed = ast.literal_eval(ours("chained.py", tmp_path))
    assert list(printed) == ["chore-collatz-0001", "chore-summit-0002"]
    assert printed["chore-summit-0002"] == 9232


def test_a_script_that_ends_after_submit_still_runs_its_commands(tmp_path: Path) -> None:
    ours("commands.py", tmp_path, workers=10)
    assert counters(tmp_path)["completed"] == 3
    assert sorted(streams(tmp_path, "echo")) == ["anvil\n" * 10, "forge\n" * 10]
    assert streams(tmp_path, "spoken") == ["one word two\n"]


def test_every_task_of_a_chore_calls_its_function(tmp_path: Path) -> None:
    printed = ast.literal_eval(ours("tasks.py", tmp_path, workers=10))
    assert printed == {"chore-greet-0001": 7, "chore-greet-0002": 7}
    assert streams(tmp_path, "greet") == ["hello from a task\n" * 3] * 2


def test_a_decorated_strategy_grows_the_run_until_it_is_content(tmp_path: Path) -> None:
    target, found = ours("bisection.py", tmp_path).split(" ", 1)
    last = ast.literal_eval(found)
    assert last["low"] <= float(target) <= last["high"]
    assert last["high"] - last["low"] == 0.25
    assert last["steps"] == 7


def test_a_class_with_full_control_is_made_with_the_manager_and_called_until_the_end(tmp_path: Path) -> None:
    assert ours("control.py", tmp_path).strip() == "[2, 1, 0]"


def test_named_chores_with_resources_are_screened_scored_and_validated(tmp_path: Path) -> None:
    assert ours("screening.py", tmp_path).strip() == "4 4 [1.0, 2.0]"


def test_a_registry_filled_beforehand_and_every_setting_of_submit_are_accepted(tmp_path: Path) -> None:
    assert ours("registered.py", tmp_path, command=True).strip() == "True 66 33 5"
    assert counters(tmp_path / "campaign")["completed"] == 5


# ---------------------------------------------------------------- scripts of theirs


def test_their_dependencies_example_runs(tmp_path: Path) -> None:
    printed = ast.literal_eval(run(example("dependencies"), tmp_path))
    assert printed["chore-digit_sum-0002"] == 648
    assert len(str(printed["chore-factorial-0001"])) == 156  # its range leaves the last factor out


def test_their_executable_example_runs_on_ten_workers(tmp_path: Path) -> None:
    run(example("executable"), tmp_path, workers=10, command=True)
    assert counters(tmp_path)["completed"] == 10
    assert streams(tmp_path, "echo") == ["Hello, World!\n" * 10] * 10


def test_their_strategy_example_finds_the_number(tmp_path: Path) -> None:
    run(example("strategy"), tmp_path)
    guesses = results(tmp_path, lambda value: isinstance(value, dict) and "guess" in value)
    assert [g["num_guesses"] for g in guesses] == list(range(1, len(guesses) + 1))
    assert len(guesses) <= 7
    assert all(g["low"] <= guesses[-1]["guess"] <= g["high"] for g in guesses)
    said = "".join(streams(tmp_path, "higher_or_lower"))
    assert f"I was thinking of {guesses[-1]['guess']}, and you got it in {len(guesses)}" in said


def test_their_mpi_example_has_a_mistake_of_its_own(tmp_path: Path) -> None:
    """It says ``mpi=true`` and ``mpi.comm_world``, names that nobody defined: no engine can run it."""
    tree = ast.parse(example("mpi"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    bound = {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert {"true", "mpi"} <= used
    assert not {"true", "mpi"} & bound
