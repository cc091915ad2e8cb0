"""``matforge launch``: the script, small fake commands for what goes wrong, and a real Slurm of one node."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from matforge.launch import site
from matforge.launch.script import Request, seconds, slurm_options, text
from matforge.model import UsageError
from matforge.worker import processes
from tests.cli import slurms

RESUME = ("matforge", "resume")


def launch(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``matforge launch``."""
    return subprocess.run(
        [sys.executable, "-m", "matforge", "launch", *arguments],
        cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


# -- the script


@pytest.mark.parametrize(
    ("time", "expected"),
    [("00:30:00", 1800), ("1-02:00:00", 93600), ("10:00", 600), ("100:00:01", 360001), ("2-12:30", 217800)],
)
def test_times_are_read_as_slurm_reads_them(time: str, expected: int) -> None:
    assert seconds(time) == expected


@pytest.mark.parametrize("time", ["", "10", "1h", "00:00:00:00", "-1:00"])
def test_a_time_that_is_none_is_refused(time: str) -> None:
    with pytest.raises(UsageError, match="HH:MM:SS"):
        Request(1, time, ("true",))


def test_options_of_the_user_come_after_those_of_the_site() -> None:
    request = Request(
        3, "00:10:00", ("true",), site.Site(options=("--constraint=gpu",)), constraint="cpu", account="a",
        gpus_per_node=4, extra=("--reservation=r",),
    )  # fmt: skip
    options = slurm_options(request)
    assert options.index("--constraint=gpu") < options.index("--constraint=cpu")
    assert {"--nodes=3", "--time=00:10:00", "--account=a", "--gpus-per-node=4", "--exclusive"} <= set(options)
    assert options[-1] == "--reservation=r"


@pytest.mark.parametrize("name", site.sites())
@pytest.mark.parametrize("batch", [False, True])
def test_the_script_of_every_site_is_a_script(tmp_path: Path, name: str, batch: bool) -> None:
    request = Request(2, "00:10:00", ("echo", "it's", "a b"), site.load_site(name), requeue=True)
    script = text(request, tmp_path / "a folder", tmp_path, RESUME, batch=batch)
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert script.startswith("#!/bin/bash\n")
    assert ("#SBATCH --nodes=2" in script) == ("sbatch " in script) == batch
    assert all(f"module load {module}\n" in script for module in request.site.modules)


def test_profiles_say_whether_they_were_tried() -> None:
    assert {name: site.load_site(name).tried for name in site.sites()} == {
        "frontier": False, "generic": True, "pathfinder": False, "perlmutter": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("module: [a]", "'module' (did you mean 'modules'?)"),
        ("modules: a", "modules cannot be 'a'"),
        ("- a", "must hold fields"),
        ("a: [", "no YAML"),
    ],
)
def test_a_profile_that_is_wrong_is_told_in_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        site.load_site(str(path))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_site_that_does_not_exist_is_told(tmp_path: Path) -> None:
    done = launch("--site", "frontir", "--", "true", cwd=tmp_path)
    assert done.returncode == 2
    assert "'frontier'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_the_script_and_does_nothing(tmp_path: Path) -> None:
    done = launch("--dry-run", "--batch", "--nodes", "2", "--", "echo", "hi", cwd=tmp_path)
    assert done.returncode == 0
    assert "command=(echo hi)" in done.stdout
    assert list(tmp_path.iterdir()) == []


# -- small fake commands

PASS_ON = """#!/bin/bash
echo "{name} $*" >> "{log}"
export SLURM_JOB_NUM_NODES=${{SLURM_JOB_NUM_NODES:-1}} SLURM_JOB_CPUS_PER_NODE='2(x1)' SLURM_JOB_ID=1
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""


@pytest.fixture
def fakes(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Makes an environment whose PATH has nothing but the basics and the commands given."""

    def maker(**commands: str) -> dict[str, str]:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name in ("bash", "cat", "rm", "wc", "tail", "sleep", "date", "hostname", "sh", "true", "env"):
            found = shutil.which(name)
            assert found is not None
            (folder / name).symlink_to(found)
        for name, body in commands.items():
            path = folder / name
            path.write_text(body.format(name=name, log=tmp_path / "calls") if body == PASS_ON else body)
            path.chmod(0o755)
        return {"PATH": str(folder)}

    return maker


def test_without_slurm_it_says_what_to_do(tmp_path: Path, fakes: Callable[..., dict[str, str]]) -> None:
    for option, command in (("--batch", "sbatch"), ("--name=x", "salloc")):
        env = fakes() if not (tmp_path / "bin").exists() else {"PATH": str(tmp_path / "bin")}
        done = launch(option, "--", "true", cwd=tmp_path, env=env)
        assert done.returncode == 2
        assert f"There is no {command} on the PATH" in done.stderr


@pytest.mark.parametrize("code", [0, 1, 7, 75])
def test_the_exit_code_is_that_of_the_command(
    tmp_path: Path, fakes: Callable[..., dict[str, str]], code: int
) -> None:
    # the brokers' own exit code is another one
    env = fakes(salloc=PASS_ON, srun=PASS_ON, flux='#!/bin/bash\nshift\n"$@"\nexit 33\n')
    done = launch("--", "sh", "-c", f"echo hello; exit {code}", cwd=tmp_path, env=env)
    assert done.returncode == code
    assert done.stdout == "hello\n"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0].startswith("salloc --job-name=matforge --nodes=1 --time=01:00:00 --exclusive")
    assert "--ntasks=1 --cpus-per-task=2 flux start" in calls[1]


def test_several_nodes_need_flux(tmp_path: Path, fakes: Callable[..., dict[str, str]]) -> None:
    env = fakes(salloc=PASS_ON, srun=PASS_ON) | {"SLURM_JOB_NUM_NODES": "2"}
    done = launch("--nodes", "2", "--", "true", cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert "there is no flux on the PATH" in done.stderr


def test_an_allocation_that_is_refused_is_told(tmp_path: Path, fakes: Callable[..., dict[str, str]]) -> None:
    no = "#!/bin/bash\necho 'error: no such account' >&2\nexit 1\n"
    env = fakes(salloc=no, sbatch=no)
    done = launch("--", "true", cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert "no such account" in done.stderr
    assert "gave no allocation" in done.stderr
    done = launch("--batch", "--", "true", cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert "does not take the job: error: no such account" in done.stderr


def test_brokers_that_never_come_together_are_told(
    tmp_path: Path, fakes: Callable[..., dict[str, str]]
) -> None:
    env = fakes(salloc=PASS_ON, srun=PASS_ON, flux="#!/bin/bash\nexec sleep 1000\n") | {
        "MATFORGE_START_S": "1"
    }
    done = launch("--", "true", cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert "no driver was started within 1 s" in done.stderr


def test_what_leaves_unfinished_is_resumed_in_the_next_allocation(
    tmp_path: Path, fakes: Callable[..., dict[str, str]]
) -> None:
    env = fakes(salloc=PASS_ON, srun=PASS_ON)
    script = 'echo "/where/the/run/is" >> "$MATFORGE_RUNS_FILE"; exit 75'
    done = launch("--requeue", "--", "sh", "-c", script, cwd=tmp_path, env=env)
    assert "the same again" in done.stderr
    assert "/where/the/run/is" in done.stderr.splitlines()[-1]  # `resume` says that there is no such run
    assert done.returncode not in (0, 75)
    assert (tmp_path / "calls").read_text().count("salloc") == 2


def test_a_signal_is_for_the_driver(tmp_path: Path, fakes: Callable[..., dict[str, str]]) -> None:
    env = fakes(salloc=PASS_ON, srun=PASS_ON)
    script = 'trap "exit 75" TERM; echo up; while :; do sleep 0.05; done'
    with subprocess.Popen(
        [sys.executable, "-m", "matforge", "launch", "--", "sh", "-c", script],
        cwd=tmp_path, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        os.killpg(process.pid, signal.SIGTERM)  # srun signals every process of a step
        try:
            assert process.wait(30) == 75
        finally:
            process.kill()


WAITS = """#!/bin/bash
trap 'echo told > "{note}"; exit 1' TERM
echo $$
while :; do sleep 0.05; done
"""


def test_when_launch_is_killed_its_salloc_is_told_to_leave(
    tmp_path: Path, fakes: Callable[..., dict[str, str]]
) -> None:
    note = tmp_path / "note"
    env = fakes(salloc=WAITS.format(note=note))
    with subprocess.Popen(
        [sys.executable, "-m", "matforge", "launch", "--requeue", "--", "true"],
        cwd=tmp_path, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        salloc = int(process.stdout.readline())
        process.kill()
    ended = processes.ends_within(salloc, 30)
    processes.send(salloc, signal.SIGKILL)
    assert ended
    assert note.read_text() == "told\n"


def test_a_signal_more_as_the_driver_leaves_does_not_change_its_code(tmp_path: Path) -> None:
    path = tmp_path / "launch.sh"
    path.write_text(text(Request(1, "00:10:00", ("true",)), tmp_path, tmp_path, RESUME, batch=False))
    leaves = 'trap "exit 75" TERM; echo up; while :; do sleep 0.05; done'
    for _ in range(25):  # bash loses the race in every fourth, if it can
        with subprocess.Popen(
            ["bash", str(path), "--driver", "sh", "-c", leaves], stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            os.killpg(process.pid, signal.SIGTERM)  # Slurm's, to all
            process.send_signal(signal.SIGTERM)  # and Flux's
            assert process.wait(30) == 75
        assert (tmp_path / "code").read_text() == "75\n"


# -- a real Slurm

CAMPAIGN = """
import os, signal
from matforge import Pipeline

pipe = Pipeline(executor="auto")

@pipe.chore()
def square(i):
    return i * i

references = [square(i) for i in range(20)]
run = pipe.submit(quiet=True)
references[0].result()
if {interrupt}:
    os.kill(os.getpid(), signal.SIGTERM)
print(sum(run.result().values()))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with slurms.cluster(tmp_path_factory.mktemp("slurm")):
        yield


@slurms.needs_slurm
@pytest.mark.usefixtures("cluster")
class TestRealSlurm:
    """On one node; with Flux where it is installed, else on the local executor."""

    def test_a_campaign_runs_in_an_allocation(self, tmp_path: Path) -> None:
        (tmp_path / "campaign.py").write_text(CAMPAIGN.format(interrupt=False))
        done = launch("--time", "00:05:00", "--", sys.executable, "campaign.py", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "2470\n"
        assert slurms.jobs() == ""

    def test_when_launch_is_killed_it_leaves_neither_what_waits_nor_what_runs_in_the_queue(
        self, tmp_path: Path
    ) -> None:
        command = [sys.executable, "-m", "matforge", "launch", "--time", "00:05:00", "--"]
        leaves = 'trap "exit 75" TERM; echo up; while :; do sleep 0.05; done'
        with subprocess.Popen(
            [*command, "sh", "-c", leaves], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        ) as runs:
            assert runs.stdout is not None
            assert runs.stdout.readline() == "up\n"
            with subprocess.Popen(
                [*command, "true"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
            ) as waits:
                assert waits.stderr is not None
                said = [waits.stderr.readline() for _ in range(2)]
                assert "waiting for resources" in said[1]
                sallocs = [pid for one in (waits, runs) for pid in processes.children_of(one.pid)]
                waits.kill()
            runs.kill()
        try:
            limit = time.monotonic() + 30
            while slurms.jobs():
                assert time.monotonic() < limit, slurms.jobs()
                time.sleep(0.1)
        finally:
            subprocess.run(["scancel", "--me"], check=True)
        for pid in sallocs:
            # one that is told to end just as it begins to wait withdraws its request, but goes on waiting
            processes.send(pid, signal.SIGTERM)
        # srun may wait for half a minute for its step, and salloc for srun
        assert all(processes.ends_within(pid, 90) for pid in sallocs)
        (code,) = tmp_path.glob("matforge_launch-*/code")
        assert code.read_text() == "75\n"

    def test_a_batch_job_passes_on_the_exit_code(self, tmp_path: Path) -> None:
        done = launch("--batch", "--wait", "--", "sh", "-c", "echo hello; exit 7", cwd=tmp_path)
        assert done.returncode == 7, done.stderr
        (output,) = tmp_path.glob("matforge_launch-*/output.*")
        assert "hello\n" in output.read_text()

    def test_what_was_interrupted_is_finished_in_the_next_allocation(self, tmp_path: Path) -> None:
        (tmp_path / "campaign.py").write_text(CAMPAIGN.format(interrupt=True))
        done = launch("--requeue", "--", sys.executable, "campaign.py", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(
            "20 chores completed in " + str(next(tmp_path.glob("matforge_workflow-*"))) + "\n"
        )
        (allocations,) = tmp_path.glob("matforge_launch-*/allocations")
        assert allocations.read_text().count("\n") == 2

    @pytest.mark.slow
    def test_a_time_limit_that_is_too_short_takes_several_allocations(self, tmp_path: Path) -> None:
        (tmp_path / "long.py").write_text(
            "import time\nfrom matforge import Pipeline\npipe = Pipeline()\n"
            "@pipe.chore()\ndef wait(i):\n    time.sleep(6)\n    return i\n"
            "for i in range(24):\n    wait(i)\npipe.submit(quiet=True)\n"
        )
        done = subprocess.run(
            [sys.executable, "-m", "matforge", "launch", "--requeue", "--time", "00:01:00", "--",
             sys.executable, "-m", "matforge", "run", "--workers", "2", "long.py"],
            cwd=tmp_path, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "24 chores completed" in done.stdout
        (allocations,) = tmp_path.glob("matforge_launch-*/allocations")
        assert allocations.read_text().count("\n") > 1
