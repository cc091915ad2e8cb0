"""Output that nobody reads, that has no room, or that is not there at all."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
PRINTING = [("vacua", "presets"), ("ls", "--json"), ("--version",), ("run", "printing.py")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with scripts."""
    (tmp_path / "printing.py").write_text("print('x' * 1_000_000)\n")
    (tmp_path / "pipe.py").write_text("raise BrokenPipeError(32, 'a socket of mine')\n")
    return tmp_path


def typed(
    folder: Path, arguments: tuple[str, ...], streams: str, *, buffered: bool = True
) -> subprocess.CompletedProcess[str]:
    """The command as a shell starts it, with redirections."""
    words = shlex.join([sys.executable, "-m", "matforge", *arguments])
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} {streams}"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@FULL
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_what_cannot_be_printed_on_a_full_disk_is_one_sentence(
    folder: Path, arguments: tuple[str, ...], buffered: bool
) -> None:
    done = typed(folder, arguments, ">/dev/full", buffered=buffered)
    assert done.returncode == 75
    assert done.stderr == (
        "matforge: standard output cannot be written: the disk is full; free some space.\n"
    )


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_a_reader_that_has_gone_is_no_matter(folder: Path, arguments: tuple[str, ...]) -> None:
    done = typed(folder, arguments, "| exec 0<&-")
    assert (done.returncode, done.stderr) == (1, "")


def test_a_broken_pipe_of_a_script_is_told(folder: Path) -> None:
    """It ended without a word."""
    done = typed(folder, ("run", "pipe.py"), "")
    assert done.returncode == 1
    assert done.stderr.endswith("BrokenPipeError: [Errno 32] a socket of mine\n")


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_without_standard_streams_a_command_does_its_work(folder: Path, arguments: tuple[str, ...]) -> None:
    done = typed(folder, arguments, ">&-")
    assert (done.returncode, done.stderr) == (0, "")
    assert typed(folder, arguments, ">&- 2>&- <&-").returncode == 0


def test_a_file_of_ours_never_takes_the_place_of_a_stream_that_was_closed(folder: Path) -> None:
    (folder / "opens.py").write_text("print(open('opens.py').fileno() > 2, file=open('told', 'w'))\n")
    assert typed(folder, ("run", "opens.py"), "0<&- >&- 2>&-").returncode == 0
    assert (folder / "told").read_text() == "True\n"


@FULL
def test_a_mistake_has_its_exit_code_although_nobody_can_be_told(folder: Path) -> None:
    assert typed(folder, ("status", "nosuch"), "2>/dev/full").returncode == 2
    assert typed(folder, ("run", "pipe.py"), "2>/dev/full", buffered=False).returncode == 1


@pytest.mark.parametrize("listed", ["presets", "geometries"])
def test_on_a_narrow_terminal_nothing_is_cut_off(listed: str) -> None:
    """Who sees "p1..." does not know what to type."""
    ours, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "matforge", "vacua", listed],
        stdout=terminal, stderr=terminal, stdin=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "40", "LINES": "40"},
    )  # fmt: skip
    os.close(terminal)
    seen = b""
    with suppress(OSError):  # how a terminal says that nobody is left
        while more := os.read(ours, 65536):
            seen += more
    os.close(ours)
    assert child.wait(60) == 0
    assert seen.count("┃".encode()) > 0
    assert "…" not in seen.decode()
