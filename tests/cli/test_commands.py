"""The commands as a user types them, each in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matforge import signals

MATFORGE = [sys.executable, "-m", "matforge"]


def matforge(
    *arguments: str, cwd: Path | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run the command; never with a terminal."""
    return subprocess.run(
        [*MATFORGE, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def full_disk(path: Path) -> str:
    """A name of the device that is always full."""
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no device that is always full")
    path.symlink_to("/dev/full")
    return str(path)


def one_sentence(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """The command refused: exit code 2, one line that holds the words, no traceback, nothing on stdout."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert result.stdout == ""
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("arguments", [(), ("run",), ("vacua",), ("vacua", "search")])
def test_every_command_explains_itself(arguments: tuple[str, ...]) -> None:
    result = matforge(*arguments, "--help")
    assert result.returncode == 0
    assert "Usage: matforge" in result.stdout.replace("python -m matforge", "matforge")


def test_every_command_has_an_example_that_is_a_command_of_that_name() -> None:
    from typer.main import get_command

    from matforge.cli.app import app

    def leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield name, command
            return
        for child, inner in command.commands.items():
            yield from leaves(f"{name} {child}", inner)

    found = dict(leaves("matforge", get_command(app)))
    assert len(found) >= 11
    without = [name for name, command in found.items() if f"`{name}" not in command.help]
    assert without == []
    unexplained = [
        f"{name} {parameter.name}"
        for name, command in found.items()
        for parameter in command.params
        if not parameter.help
    ]
    assert unexplained == []


def test_help_comes_at_once() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert matforge("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0, "half of that, usually"


def test_the_version_is_printed() -> None:
    from matforge import __version__

    assert matforge("--version").stdout.strip() == f"matforge {__version__}"


BAD = {
    "an unknown preset names the nearest": (("--preset", "p11169-slcie"), ("p11169-slice",)),
    "an unknown geometry names the nearest": (
        ("--geometry", "octik", "--nmax", "3", "--im-z", "2:5"), ("octic",),
    ),
    "an empty range": (("--im-z", "5:2"), ("5", "2")),
    "a range that is no range": (("--im-z", "two:five"), ("LO:HI",)),
    "too many ranges": (("--im-z", "2:5,2:5,2:5"), ("3 ranges",)),
    "a box outside the Kähler cone": (("--im-z", "-1:5"), ("Kähler cone",)),
    "a box below convergence": (
        ("--geometry", "octic", "--nmax", "3", "--im-z", "1.5:5"), ("instanton series", "1."),
    ),
    "nmax below 1": (("--nmax", "0"), ("nmax",)),
    "nmax beyond all reason": (("--nmax", "100000000000"), ("nmax", "10000")),
    "nmax that is no integer": (("--nmax", "2.5"), ("nmax",)),
    "s below the fundamental domain": (("--s", "0.5:10"), ("fundamental domain",)),
    "an unknown strategy": (("--strategy", "refine_promisin"), ("refine_promising",)),
    "a strategy file that is not there": (("--strategy", "nowhere.py:X"), ("nowhere.py",)),
    "an unknown executor": (("--executor", "slurm"), ("local",)),
    "no workers": (("--workers", "0"), ("workers",)),
    "an unknown layout": (("--layout", "flat"), ("full",)),
    "a geometry without a box": (("--geometry", "octic"), ("--nmax", "--im-z")),
    "no block": (("--block", "0"), ("block",)),
    "a leaf that is too large": (("--leaf", "3"), ("leaf",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.replace(" ", "-"))
def test_a_bad_search_is_refused_in_one_sentence_before_any_work(case: str, tmp_path: Path) -> None:
    arguments, words = BAD[case]
    one_sentence(matforge("vacua", "search", *arguments, "--dir", str(tmp_path / "runs")), *words)
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one_sentence(matforge("vacua", "search", "--dir", str(tmp_path / "file" / "runs")), "file")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 1}, ("colour",)),
        ({"c2": [44.5]}, ("c2", "44.5")),
        ({"intersection_numbers": [[2]]}, ("intersection_numbers",)),
        ({"h12": 2}, ("intersection_numbers",)),
    ],
    ids=["unknown-key", "half-an-integer", "wrong-shape", "wrong-h12"],
)
def test_a_bad_geometry_file_is_refused_with_its_name_and_entry(
    change: dict[str, object], words: tuple[str, ...], tmp_path: Path
) -> None:
    from matforge.vacua import load_geometry

    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**load_geometry("octic").to_dict(), **change}))
    result = matforge("vacua", "search", "--geometry", str(path), "--nmax", "2", "--im-z", "2:5")
    one_sentence(result, "mine.json", *words)


def test_a_geometry_file_of_ones_own_can_be_searched(tmp_path: Path) -> None:
    from matforge.vacua import load_geometry

    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**load_geometry("octic").to_dict(), "name": "mine"}))
    result = matforge(
        "vacua", "search", "--geometry", str(path), "--nmax", "2", "--im-z", "2:7", "--s", ":30",
        "--json", "-q", "--dir", str(tmp_path / "runs"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert json.loads(result.stdout)["by_n_flux"] == {"1": 2, "2": 11}


def test_a_search_prints_its_counts_and_where_everything_is(tmp_path: Path) -> None:
    result = matforge("vacua", "search", "--dir", str(tmp_path), "--workers", "2")
    assert result.returncode == 0, result.stderr
    assert "21 vacua modulo sign, 42 with both signs" in result.stdout
    run = next(tmp_path.iterdir())
    for name in ("status.json", "matforge_workflow.log", "out", "vacua.parquet", "summary.json"):
        assert str(run / name) in result.stderr
    status = matforge("status", str(tmp_path))
    assert "completed" in status.stdout
    document = json.loads(matforge("status", str(tmp_path), "--json").stdout)
    assert document["schema_version"] == 2
    assert document["current"]["failed"] == 0
    picture = matforge("vacua", "plot", str(tmp_path), "-o", str(tmp_path / "v.png"))
    assert picture.returncode == 0, picture.stderr
    assert (tmp_path / "v.png").read_bytes()[1:4] == b"PNG"
    nowhere = matforge("vacua", "plot", str(tmp_path), "-o", str(tmp_path / "none" / "v.png"))
    one_sentence(nowhere, f"cannot be drawn to {tmp_path}/none/v.png: the folder does not exist (any more).")
    full = matforge("vacua", "plot", str(tmp_path), "-o", full_disk(tmp_path / "full.png"))
    assert (full.returncode, full.stdout) == (75, "")
    assert full.stderr.endswith("full.png: the disk is full; free some space.\n")
    for name in ("vacua.parquet", "summary.json"):
        whole = (run / name).read_bytes()
        (run / name).write_text("damaged")
        again = matforge("resume", str(tmp_path), "--quiet")
        assert (again.returncode, again.stdout) == (1, "")
        assert again.stderr.startswith(f"matforge: {run / name} cannot be read: ")
        assert again.stderr.count("\n") == 1
        (run / name).write_bytes(whole)
    (run / "vacua.parquet").unlink()
    again = matforge("resume", str(tmp_path), "--quiet")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.endswith("or somebody has removed its vacua.parquet.\n")
    assert again.stderr.count("\n") == 1


def test_a_strategy_from_a_file_steers_the_search_and_survives_a_resume(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "strategies" / "refine_promising.py"
    mine = tmp_path / "mine.py"
    mine.write_text(source.read_text().replace("class RefinePromising", "class Mine"))
    result = matforge(
        "vacua", "search", "--strategy", f"{mine}:Mine", "--dir", str(tmp_path / "runs"), "-q", "--json"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["count_mod_sign"] == 21


NOTHING = """
from matforge import FutureProcessingStrategy

class Nothing(FutureProcessingStrategy):
    pass
"""


def test_a_search_whose_strategy_does_nothing_says_that_there_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "nothing.py").write_text(NOTHING)
    result = matforge("vacua", "search", "--strategy", "nothing.py:Nothing", "-q", cwd=tmp_path)
    assert result.returncode == 1
    assert "without a merge" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_that_is_no_table_cannot_be_drawn(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no table")
    one_sentence(matforge("vacua", "plot", str(tmp_path / "notes.txt")), "notes.txt")


SCRIPT = """
import sys
from matforge import Pipeline
pipe = Pipeline()

@pipe.chore()
def work(n):
    if n == {bad}:
        raise ValueError("seven is not for me")
    return n + 1

for n in range(10):
    work(n)
print("arguments", sys.argv[1:])
pipe.submit()
"""


def test_a_script_that_ends_after_submit_still_finishes_its_run(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(bad=-1))
    result = matforge("run", "--workers", "2", "--dir", "runs", "script.py", "--", "-x", "3", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "arguments ['-x', '3']" in result.stdout
    status = json.loads(matforge("status", str(tmp_path / "runs"), "--json").stdout)
    assert status["workflow"]["state"] == "completed"
    assert status["current"]["completed"] == 10


def test_quiet_says_nothing_and_verbose_says_what_the_log_gets(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(bad=7))
    quiet = matforge("run", "-q", "--dir", "runs", "script.py", cwd=tmp_path)
    assert quiet.stdout == "arguments []\n"
    assert len(quiet.stderr.splitlines()) == 1
    verbose = matforge("run", "-v", "--dir", "runs", "script.py", cwd=tmp_path)
    assert "MatForge writes to" in verbose.stderr
    assert "WARNING chore-work-0008 failed (exception)" in verbose.stderr


def test_a_run_tells_in_json_where_it_is_and_how_it_stands(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(bad=-1))
    result = matforge("run", "--json", "-q", "--dir", "runs", "script.py", cwd=tmp_path)
    (told,) = json.loads(result.stdout.splitlines()[-1])
    assert Path(told["run_dir"]).is_dir()
    assert told["kinds"] == {"work": {"added": 10, "completed": 10, "failed": 0, "cancelled": 0}}
    again = matforge("resume", told["run_dir"], "--json", "-q")
    assert json.loads(again.stdout)["workflow"]["state"] == "completed"


STRATEGY_SCRIPT = """
import os
from pathlib import Path
os.chdir("elsewhere")
name, _, wanted = os.environ["MATFORGE_STRATEGY"].partition(":")
assert Path(name).is_absolute() == name.endswith(".py"), name
from matforge.strategies import load
print(load(os.environ["MATFORGE_STRATEGY"]).__name__)
"""


def test_a_strategy_is_handed_to_the_script_wherever_that_goes(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "script.py").write_text(STRATEGY_SCRIPT)
    (tmp_path / "nothing.py").write_text(NOTHING)
    for strategy, name in (("nothing.py:Nothing", "Nothing"), ("refine_promising", "RefinePromising")):
        result = matforge("run", "--strategy", strategy, "script.py", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == name


@pytest.mark.parametrize("strategy", ["refine_promisin", "nowhere.py:X", "script.py:Nothing"])
def test_a_strategy_that_is_not_there_is_refused_before_the_script_runs(
    strategy: str, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text("")
    (tmp_path / "mine.py").write_text("print('ran')")
    one_sentence(matforge("run", "--strategy", strategy, "mine.py", cwd=tmp_path), strategy.split(":")[0])


def test_a_failed_chore_makes_the_command_fail_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(bad=7))
    result = matforge("run", "--dir", "runs", "script.py", cwd=tmp_path)
    assert result.returncode == 1
    assert "seven is not for me" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["resume", "status"])
def test_a_folder_without_a_run_is_refused_in_one_sentence(command: str, tmp_path: Path) -> None:
    one_sentence(matforge(command, str(tmp_path)), str(tmp_path))
    one_sentence(matforge(command, str(tmp_path / "nowhere")), "nowhere")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("serch", ["'serch'", "`matforge --help`"]),
        ("vacua serch", ["(did you mean 'search'?)", "`matforge vacua --help`"]),
        ("vacua search --bogus", ["--bogus", "`matforge vacua search --help`"]),
        ("vacua search --workers two", ["'--workers'"]),
        ("vacua search --preset", ["'--preset' requires an argument"]),
        ("vacua search p11169", ["(p11169)"]),
        ("status", ["'RUN'", "`matforge status --help`"]),
    ],
)
def test_a_command_that_was_mistyped_is_refused_in_one_sentence(line: str, words: list[str]) -> None:
    result = matforge(*line.split())
    one_sentence(result, *words)
    assert result.stderr.endswith(".\n")


def test_a_group_without_a_command_shows_what_it_has() -> None:
    result = matforge("vacua")
    assert result.returncode == 2
    assert "geometries" in result.stdout + result.stderr


def test_a_missing_script_is_refused_in_one_sentence() -> None:
    one_sentence(matforge("run", "nowhere.py"), "nowhere.py")
    one_sentence(matforge("run", "--wrokers", "2", "script.py"), "no option --wrokers")


def test_an_option_of_ours_after_the_script_is_told_to_be_the_scripts(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\nprint(sys.argv[1:])\n")
    done = matforge("run", "script.py", "--workers", "4", cwd=tmp_path)
    assert done.stdout == "['--workers', '4']\n"
    assert "--workers stands after the script and is passed on to it" in done.stderr
    assert matforge("run", "script.py", "--", "--workers", "4", cwd=tmp_path).stderr == ""


SLOW_SCRIPT = """
import time
from matforge import Pipeline
pipe = Pipeline()

@pipe.chore()
def work(n):
    open("begun", "w").close()
    time.sleep(600)

work(1)
pipe.submit().result()
"""


@pytest.mark.parametrize(
    ("source", "first", "last"),
    [
        ("def (", '  File "{script}", line 1', "SyntaxError: invalid syntax"),
        ("open('nosuch')", 'Traceback (most recent call last):\n  File "{script}", line 1', "'nosuch'"),
        ("1 / 0", 'Traceback (most recent call last):\n  File "{script}", line 1', "division by zero"),
    ],
)
def test_a_mistake_in_a_script_is_told_as_python_tells_it(
    tmp_path: Path, source: str, first: str, last: str
) -> None:
    """With thirty lines before it of how we came there."""
    script = tmp_path / "script.py"
    script.write_text(source)
    done = matforge("run", str(script))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(first.format(script=script))
    assert done.stderr.rstrip().endswith(last)


@pytest.mark.parametrize(
    "moments", [("typer",), ("matforge.vacua",), ("matforge.vacua", "matforge.signals")], ids="-".join
)
def test_ctrl_c_before_a_command_has_begun_or_once_more_is_no_traceback(moments: tuple[str, ...]) -> None:
    program = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name.startswith({moments!r}):\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.argv = ['matforge', 'vacua', 'presets']\n"
        "from matforge.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "matforge: interrupted; `matforge resume RUN` goes on with a run that had begun.\n"


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]
)
def test_a_signal_ends_a_run_soon_and_leaves_no_process(signum: int, code: int, tmp_path: Path) -> None:
    """Ctrl-C at once; SIGTERM and SIGUSR1 let what runs end, and a second one does not."""
    import psutil

    (tmp_path / "script.py").write_text(SLOW_SCRIPT)
    driver = subprocess.Popen(
        [*MATFORGE, "run", "--dir", str(tmp_path / "runs"), "script.py"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    process = psutil.Process(driver.pid)
    while driver.poll() is None and not list(tmp_path.glob("runs/*/out/*/begun")):
        psutil.wait_procs([], timeout=0.05)
    family = process.children(recursive=True)
    driver.send_signal(signum)
    if signum != signal.SIGINT:
        (run_dir,) = (tmp_path / "runs").iterdir()
        log = run_dir / "matforge_workflow.log"
        while driver.poll() is None and "nothing more is started" not in log.read_text():
            psutil.wait_procs([], timeout=0.05)
        assert all(child.is_running() for child in family)
        psutil.wait_procs([process], timeout=1.1 * signals.ONCE_S)  # two at once count as one
        driver.send_signal(signum)
    _, errors = driver.communicate(timeout=20)
    assert driver.returncode == code, errors
    assert "Traceback" not in errors
    if signum == signal.SIGINT:
        (run_dir,) = (tmp_path / "runs").iterdir()
        assert f"`matforge resume {run_dir}` goes on with it" in errors
    gone, alive = psutil.wait_procs(family, timeout=5)
    assert gone
    assert not alive
    status = json.loads(matforge("status", str(tmp_path / "runs"), "--json").stdout)
    assert status["workflow"]["state"] == "interrupted"
