"""What a real bash offers after Tab."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import call, play

BASH = shutil.which("bash")

ASK = """
source <(_MATFORGE_COMPLETE=source_bash matforge)
complete -p matforge > /dev/null || exit 1
while IFS= read -r line; do
  read -ra COMP_WORDS <<< "$line"
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  COMPREPLY=()
  _matforge_completion matforge
  echo "${COMPREPLY[*]}"
done
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a run in ``runs``, and the command on the PATH as an installation puts it there."""
    session, _ = play(tmp_path / "runs", [call("fit", 1), call("fit", 2), call("plot", 1)])
    session.wait(30)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "matforge"
    command.write_text(f"#!{sys.executable}\nfrom matforge.cli import main\nmain()\n")
    command.chmod(0o755)
    return tmp_path


def offered(folder: Path, *lines: str) -> list[list[str]]:
    """What is offered at the end of each line."""
    assert BASH is not None
    environment = {**os.environ, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [BASH, "--norc", "-c", ASK],
        input="\n".join(lines) + "\n", cwd=folder, env=environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
def test_commands_runs_chores_and_names_are_completed(folder: Path) -> None:
    run = next((folder / "runs").iterdir()).name
    expected = {
        "matforge st": ["status"],
        "matforge status ru": ["runs"],
        "matforge status runs/m": [f"runs/{run}"],
        "matforge status runs --chore chore-f": ["chore-fit-0001", "chore-fit-0002"],
        "matforge cancel runs chore-p": ["chore-plot-0003"],
        "matforge run --strategy refine": ["refine_promising"],
        "matforge run --layout p": ["packed"],
        "matforge vacua search --preset p11169-s": ["p11169-slice"],
        "matforge vacua search --geometry oc": ["octic"],
        "matforge status nowhere/": [],
        "matforge status nowhere --chore chore-f": [],
    }
    found = dict(zip(expected, offered(folder, *expected), strict=True))
    assert found == expected


def test_completion_can_be_shown_and_installed(folder: Path) -> None:
    # which shell this is would be found out from the processes above; a test has none
    environment = {
        **os.environ, "HOME": str(folder), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }  # fmt: skip
    command = [str(folder / "bin" / "matforge")]
    shown = subprocess.run(
        [*command, "--show-completion", "bash"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert "complete -o default -F _matforge_completion matforge" in shown.stdout
    done = subprocess.run(
        [*command, "--install-completion", "bash"],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "matforge" in (folder / ".bashrc").read_text()
