"""Work that one process of a node does for all."""

from __future__ import annotations

import os
import select
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from matforge.model import MatForgeError
from matforge.worker.once import compiled_cache_dir, single_flight

HOLDER = (
    "import sys\n"
    "from matforge.worker.once import single_flight\n"
    "with single_flight(sys.argv[1]):\n"
    "    print('in', flush=True)\n"
    "    sys.stdin.read(1)\n"
)


@pytest.fixture(autouse=True)
def private_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import tempfile

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def holder(kind: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_one_process_at_a_time_and_a_killed_one_blocks_nobody() -> None:
    with holder("kernel") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "in\n"
        with holder("kernel") as second, holder("another kernel") as third:
            assert second.stdout is not None
            assert third.stdout is not None
            assert third.stdout.readline() == "in\n"  # a different kind is not held up
            assert not select.select([second.stdout], [], [], 0.2)[0]
            first.kill()
            assert second.stdout.readline() == "in\n"
            for process in (second, third):
                process.communicate("x")


def test_the_locks_are_this_users_only(private_temp: Path) -> None:
    with single_flight("a/../b c"):
        pass
    folder = private_temp / f"matforge-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(path.parent == folder for path in folder.rglob("*.lock"))
    assert len(list(folder.glob("*.lock"))) == 1


def test_a_folder_of_somebody_else_is_refused(private_temp: Path) -> None:
    folder = private_temp / f"matforge-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(MatForgeError, match="yours alone"), single_flight("kernel"):
        pass


def test_different_kinds_never_share_a_lock(private_temp: Path) -> None:
    for kind in ("a b", "a-b", "a/b", "x" * 200, "x" * 201):
        with single_flight(kind):
            pass
    assert len(list(private_temp.rglob("*.lock"))) == 5


def test_the_cache_is_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATFORGE_CACHE_DIR", str(tmp_path / "mine"))
    assert compiled_cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("MATFORGE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert compiled_cache_dir() == tmp_path / "xdg" / "matforge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compiled_cache_dir() == tmp_path / "home" / ".cache" / "matforge"
    assert compiled_cache_dir().is_dir()


def test_where_the_cache_cannot_be_it_is_on_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MATFORGE_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert compiled_cache_dir() == tmp_path / f"matforge-{os.getuid()}" / "cache"
    assert compiled_cache_dir().is_dir()
