"""Which executor is taken, and what is said when Flux is asked for and something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from matforge.executors import choose, flux
from matforge.executors.local import LocalExecutor
from matforge.executors.walltime import allocation_end
from matforge.model import UsageError


def trouble(folder: Path, *, uri: str = "local:///nowhere/local-0", path: str = "/nonexistent") -> str:
    """What is said with ``folder`` before everything else on the path of imports."""
    env = {**os.environ, "FLUX_URI": uri, "PATH": path}
    first = f"import sys; sys.path[:0] = [{str(folder)!r}]"
    code = f"{first}; from matforge.executors import flux; print(flux.trouble())"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return done.stdout.strip()


def package(folder: Path, **modules: str) -> Path:
    """A package ``flux`` with these modules."""
    (folder / "flux").mkdir()
    for name, source in {"__init__": "", **modules}.items():
        (folder / "flux" / f"{name}.py").write_text(source)
    return folder


def test_without_a_broker_it_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLUX_URI", raising=False)
    with pytest.raises(UsageError, match=r"no Flux broker here.*flux start") as caught:
        choose.make("flux", None)
    assert "\n" not in str(caught.value)


def test_bindings_without_their_library_are_told_apart(tmp_path: Path) -> None:
    source = (
        "raise ImportError('libflux-core.so.2: cannot open shared object file: No such file or directory')"
    )
    said = trouble(package(tmp_path, __init__=source))
    assert "its library is not (libflux-core.so.2 is not found)" in said
    assert "LD_LIBRARY_PATH" in said


def test_the_package_that_the_bindings_forget_is_named(tmp_path: Path) -> None:
    source = "raise ModuleNotFoundError(\"No module named 'ply'\", name='ply')"
    assert "need the package 'ply'" in trouble(package(tmp_path, job=source))


@pytest.mark.parametrize(
    "words",
    [
        "/site/_flux/_core.abi3.so: undefined symbol: flux_plugin_arg_pack",
        "/lib/libflux-core.so.2: version `FLUX_9' not found (required by /site/_flux/_core.abi3.so)",
    ],
)
def test_bindings_and_a_library_of_different_versions_are_told(tmp_path: Path, words: str) -> None:
    said = trouble(package(tmp_path, __init__=f"raise ImportError({words!r}, name='_core')"))
    assert "of different versions" in said
    assert "`flux version`" in said


def test_a_package_is_named_as_it_is_installed(tmp_path: Path) -> None:
    source = "raise ModuleNotFoundError(\"No module named '_cffi_backend'\", name='_cffi_backend')"
    assert "need the package 'cffi'" in trouble(package(tmp_path, __init__=source))


def test_wheels_that_lack_a_part_are_told(tmp_path: Path) -> None:
    source = "raise ModuleNotFoundError(\"No module named '_flux._rlist'\", name='_flux._rlist')"
    said = trouble(package(tmp_path, __init__=source))
    assert f"flux-python {flux.WHEEL} or later" in said


def test_bindings_that_are_too_old_are_told(tmp_path: Path) -> None:
    said = trouble(package(tmp_path, job="", resource=""))
    assert "lack flux.job.journal" in said
    assert flux.NEEDED in said


def test_bindings_of_another_python_are_told(tmp_path: Path) -> None:
    source = "raise ModuleNotFoundError(\"No module named '_flux._core'\", name='_flux._core')"
    assert "another version of Python" in trouble(package(tmp_path, __init__=source))


def test_a_sites_own_bindings_are_found_through_its_command(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "flux"
    command.write_text(f"#!/bin/sh\necho {tmp_path / 'site'}\n")
    command.chmod(0o755)
    package(tmp_path / "site", job="raise ModuleNotFoundError('none', name='ply')")
    assert "need the package 'ply'" in trouble(tmp_path / "empty", path=f"{tmp_path / 'bin'}:/bin:/usr/bin")


def test_a_command_that_lacks_its_library_is_told(tmp_path: Path) -> None:
    words = "flux: error while loading shared libraries: libflux-core.so.2: cannot open shared object file"
    (tmp_path / "flux").write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 127\n")
    (tmp_path / "flux").chmod(0o755)
    said = trouble(tmp_path / "empty", path=f"{tmp_path}:/bin:/usr/bin")
    assert f"does not work ({words})" in said
    assert "LD_LIBRARY_PATH" in said


def test_auto_takes_this_machine_where_there_is_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLUX_URI", raising=False)
    executor = choose.make("auto", 1)
    assert isinstance(executor, LocalExecutor)
    executor.close()


def test_auto_says_so_if_it_cannot_use_the_instance_it_is_in(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FLUX_URI", "local:///nowhere/local-0")
    monkeypatch.setattr(choose.log, "propagate", True)
    executor = choose.make("auto", 1)
    assert isinstance(executor, LocalExecutor)
    executor.close()
    assert "only this machine is used" in caplog.text


def test_a_name_that_is_none_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="'flux'"):
        choose.check("flx", None)


def test_the_end_of_the_allocation_is_the_earliest_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MATFORGE_END_TIME", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)
    assert allocation_end() is None
    assert allocation_end(None, 7.0) == 7.0
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1700000000")
    assert allocation_end() == 1.7e9
    assert allocation_end(1.8e9) == 1.7e9
    monkeypatch.setenv("MATFORGE_END_TIME", "1600000000")
    assert allocation_end() == 1.6e9
    monkeypatch.setenv("SLURM_JOB_END_TIME", "soon")
    monkeypatch.setenv("MATFORGE_END_TIME", "")
    assert allocation_end() is None
