"""``matforge doctor``: tells the truth about this machine, and about machines that are broken."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from matforge.cli import checks
from matforge.cli.checks import MISSING, OK, WARNING, Check
from tests.cli.test_commands import matforge


def program(folder: Path, name: str, text: str) -> None:
    """A program of that name, in place of the real one."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_this_machine_can_run_the_main_job_and_nothing_is_left_behind(tmp_path: Path) -> None:
    result = matforge("doctor", "--dir", str(tmp_path / "runs" / "deep"), "--json")
    assert result.returncode == 0, result.stderr
    found = {check["name"]: check for check in json.loads(result.stdout)}
    for name in ("python", "libraries", "cores", "locks", "renames", "sockets"):
        assert found[name]["verdict"] == OK, found[name]
    assert found["jax"]["verdict"] == OK
    assert "cpu" in found["jax"]["told"] or "cuda" in found["jax"]["told"]
    assert all(check["advice"] for check in found.values() if check["verdict"] != OK)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_hold_runs_is_fatal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder, *rest = checks.folders(tmp_path / "file" / "runs")
    assert (folder.name, folder.verdict, folder.fatal) == ("folder", MISSING, True)
    assert "--dir" in folder.advice
    assert [check.name for check in rest] == ["sockets", "cache"]


def test_what_cannot_work_is_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "bin").mkdir()
    result = matforge("doctor", "--dir", str(tmp_path / "file"), "--timeout", "30")
    assert result.returncode == 1
    assert "Runs cannot work here: folder." in result.stderr
    assert "Traceback" not in result.stderr


# ---------------------------------------------------------------- programs that are missing, broken or hang


def test_nothing_installed_is_missing_and_not_fatal(programs: Path) -> None:
    for check in (checks.flux_command(5), checks.slurm(), checks.gpus(5)):
        assert (check.verdict, check.fatal) == (MISSING, False)
        assert check.advice.startswith("Not needed")


def test_the_bindings_are_those_that_a_run_would_take(programs: Path) -> None:
    """Flux brings its own, which only its command leads to."""
    package = programs / "site" / "flux"
    for name in ("job", "resource"):
        (package / name).mkdir(parents=True)
        for module in ("__init__", "journal"):
            (package / name / f"{module}.py").write_text("")
    for module in ("__init__", "idset", "hostlist", "util"):
        (package / f"{module}.py").write_text("")
    program(programs, "flux", f"print({str(package.parent)!r})")
    check = checks.flux_bindings(30)
    assert (check.verdict, check.told) == (OK, str(package / "__init__.py"))
    (package / "hostlist.py").write_text("import ply_of_no_version")
    check = checks.flux_bindings(30)
    assert (check.verdict, check.fatal) == (MISSING, False)
    assert "'ply_of_no_version'" in check.told


@pytest.mark.parametrize(
    ("text", "verdict", "words"),
    [
        ("print(4)", OK, "4 nodes"),
        ("import sys; sys.exit('flux: no broker here')", WARNING, "no broker here"),
        ("import time; time.sleep(600)", WARNING, "no answer in 0.5 s"),
    ],
    ids=["answers", "no-broker", "hangs"],
)
def test_flux_is_asked_and_may_not_answer(text: str, verdict: str, words: str, programs: Path) -> None:
    program(programs, "flux", text)
    found = checks.flux_command(5 if "sleep" not in text else 0.5)
    assert found.verdict == verdict
    assert words in found.told


def test_a_program_that_cannot_be_started_is_told(programs: Path) -> None:
    (programs / "nvidia-smi").write_text("#!/nowhere\n")
    (programs / "nvidia-smi").chmod(0o755)
    found = checks.gpus(5)
    assert found.verdict == WARNING
    assert "no such file" in found.told


def test_gpus_are_named_with_those_that_are_visible(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(programs, "nvidia-smi", "print('GPU 0: A device\\nGPU 1: Another')")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    found = checks.gpus(5)
    assert found == Check("gpus", OK, "nvidia-smi: GPU 0: A device; GPU 1: Another; CUDA_VISIBLE_DEVICES=0")


def test_slurm_is_fine_inside_an_allocation_only(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(programs, "sbatch", "")
    assert checks.slurm().verdict == WARNING
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    assert checks.slurm() == Check("slurm", OK, "inside allocation 17 of 3 nodes")


# ---------------------------------------------------------------- folders

MOUNTS = """\
22 1 0:20 / / rw shared:1 - ext4 /dev/root rw
23 22 0:21 / /scratch rw - lustre mds:/scratch rw
24 22 0:22 / /my\\040disk rw - tmpfs tmpfs rw
25 23 0:23 / /scratch/local rw - xfs /dev/sdb rw
26 22 0:24 / /home rw - autofs auto rw
27 22 0:25 / /home rw - nfs4 server:/home rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", "ext4"), ("/scratchy", "ext4"), ("/scratch", "lustre"), ("/scratch/me/runs", "lustre"),
        ("/scratch/local/x", "xfs"), ("/my disk/x", "tmpfs"), ("/home/me", "nfs4"),
    ],
)  # fmt: skip
def test_the_file_system_is_that_of_the_innermost_and_latest_mount(folder: str, kind: str) -> None:
    assert checks.mount_type(Path(folder), MOUNTS) == kind


@pytest.mark.parametrize(
    ("folder", "verdict"), [("/scratch", OK), ("/my disk", WARNING), ("/scratch/local", OK)]
)
def test_every_file_system_gets_its_advice(folder: str, verdict: str, tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    found = checks.file_system(Path(folder), tmp_path / "mountinfo")
    assert found.verdict == verdict
    assert found.advice
    assert checks.file_system(Path(folder), tmp_path / "nowhere").verdict == WARNING


def test_a_long_temporary_folder_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    found = checks.sockets()
    assert (found.verdict, found.fatal) == (WARNING, False)
    assert "TMPDIR" in found.advice
    assert list(long.iterdir()) == []


def test_a_temporary_folder_that_is_gone_is_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    found = checks.sockets()
    assert (found.verdict, found.fatal) == (MISSING, True)


def test_a_cache_in_a_folder_that_does_not_last_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    (tmp_path / "file").write_text("")
    monkeypatch.delenv("MATFORGE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = checks.cache()
    assert found.verdict == WARNING
    assert "MATFORGE_CACHE_DIR" in found.advice


def test_a_full_disk_is_seen_before_it_hurts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.space(tmp_path).verdict == OK
    monkeypatch.setattr(checks, "LEAST_SPACE", os.statvfs(tmp_path).f_blocks << 40)
    found = checks.space(tmp_path)
    assert found.verdict == WARNING
    assert "--dir" in found.advice
