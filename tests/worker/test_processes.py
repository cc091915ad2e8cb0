"""What the operating system tells of processes, memory and cores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from matforge.worker import processes
from matforge.worker.endings import Stage, StageMark, end_of, signal_name, start_failure

# each runs in a process of its own, because adopting orphans cannot be undone by a test


def run_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_children_and_all_that_falls_to_their_killer_end() -> None:
    said = run_python(
        "import os, subprocess\n"
        "from matforge.worker import processes\n"
        "assert processes.adopt_orphans()\n"
        "kept = subprocess.Popen(['sleep', '1000'])\n"
        "tree = subprocess.Popen(['sh', '-c', 'setsid sh -c \"sleep 1000 & sleep 1000\" & sleep 1000'])\n"
        "while len(processes.descendants_of(os.getpid())) < 5: pass\n"
        "print(processes.kill_children(spare=[kept.pid]))\n"
        "assert processes.children_of(os.getpid()) == [kept.pid]\n"
        "kept.kill(); kept.wait(); tree.returncode = -9\n"
        "assert not processes.has_children()\n"
    )
    assert int(said) >= 4


def test_processes_of_a_token_are_found_and_others_are_not() -> None:
    mine = {**os.environ, processes.TOKEN: "0123"}
    other = {**os.environ, processes.TOKEN: "01234"}
    with (
        subprocess.Popen(["sleep", "1000"], env=mine) as one,
        subprocess.Popen(["sleep", "1000"], env=other) as two,
    ):
        # until it has become sleep, its environment is still ours
        while b"sleep" not in Path(f"/proc/{one.pid}/cmdline").read_bytes():
            pass
        assert processes.sweep("0123") >= 1
        assert one.wait(10) == -signal.SIGKILL
        assert two.poll() is None
        two.kill()


def test_a_process_whose_parent_has_ended_already_ends_itself() -> None:
    program = "from matforge.worker import processes; processes.die_with_parent(1); print('still here')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")


def test_kills_for_want_of_memory_are_counted_where_the_kernel_says(tmp_path: Path) -> None:
    unified, old, bare = tmp_path / "v2", tmp_path / "v1", tmp_path / "none"
    for folder in (unified, old, bare):
        folder.mkdir()
    (unified / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\noom_group_kill 0\n")
    (old / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 1\noom_kill 7\n")
    assert processes.oom_kills([unified, old], vmstat) == 2
    assert processes.oom_kills([bare, old], vmstat) == 5
    assert processes.oom_kills([bare], vmstat) == 7
    assert processes.oom_kills([bare], tmp_path / "missing") == 0


def test_the_machine_is_known() -> None:
    assert 1 <= len(processes.usable_cores()) <= len(os.sched_getaffinity(0))
    assert processes.memory_limit() > 1 << 28
    assert processes.memory_of([os.getpid()]) > 1 << 20


def test_a_tail_is_the_end_of_a_file_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xff" + b"x" * 50 + b"end")
    assert processes.tail(path, 5) == "xxend"
    assert processes.tail(path).startswith("\ufffdx")
    assert processes.tail(tmp_path / "missing") == ""


@pytest.mark.parametrize(
    ("code", "oom", "lost", "kind"),
    [
        (0, False, False, "exit code"),
        (3, True, False, "exit code"),
        (-9, False, True, "worker lost"),
        (-9, True, False, "out of memory"),
        (-15, True, True, "worker lost"),
        (-2, False, True, "worker lost"),
        (-11, True, False, "signal"),
        (-6, False, False, "signal"),
    ],
)
def test_how_a_slot_ended_says_whose_fault_it_was(code: int, oom: bool, lost: bool, kind: str) -> None:
    was_lost, failure = end_of("chore-a-0001", code, oom=oom, stderr="tail")
    assert (was_lost, failure.kind.value) == (lost, kind)
    assert failure.message.startswith("chore-a-0001: ")
    assert failure.stderr == "tail"
    assert failure.signal == (-code if code < 0 else None)
    assert failure.exit_code == (code if code >= 0 else None)


def test_the_stage_of_a_slot_is_read_from_outside(tmp_path: Path) -> None:
    assert StageMark.read(tmp_path) is Stage.IDLE
    mark = StageMark(tmp_path)
    for stage in Stage:
        mark.set(stage)
        assert StageMark.read(tmp_path) is stage
    _, failure = end_of("chore-a-0001", -11, oom=False, stderr="", stage=Stage.PICKLING)
    assert failure.message == (
        "chore-a-0001: its process was ended by SIGSEGV while its result was being pickled."
    )


def test_memory_of_a_family_is_divided_among_those_who_share_it() -> None:
    said = run_python(
        "import os, signal\n"
        "from matforge.worker import processes\n"
        "held = b'x' * (64 << 20)\n"
        "pids = [os.getpid()]\n"
        "for _ in range(3):\n"
        "    pid = os.fork()\n"
        "    if pid == 0: signal.pause()\n"
        "    pids.append(pid)\n"
        "print(processes.memory_of(pids) >> 20, processes.proportional_memory_of(pids) >> 20)\n"
        "for pid in pids[1:]: os.kill(pid, 9); os.waitpid(pid, 0)\n"
    )
    resident, proportional = map(int, said.split())
    assert resident > 4 * 64
    assert 64 < proportional < 2 * 64


def test_a_stopped_process_is_told_from_one_that_waits() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        assert not processes.is_stopped(process.pid)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert processes.is_stopped(process.pid)
        process.kill()
    assert not processes.is_stopped(process.pid)


def test_signals_have_names() -> None:
    assert signal_name(11) == "SIGSEGV"
    assert signal_name(200) == "signal 200"


def test_a_start_that_fails_is_told_in_one_sentence() -> None:
    failure = start_failure("Traceback:\n  x\nImportError: no zmq\n\n", "it ended", "host", {"A": "1"})
    assert failure.message.count("\n") == 0
    assert "ImportError: no zmq" in failure.message
    assert "environment (A)" in failure.message


def test_a_process_has_ended_before_its_parent_asks_for_it() -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    assert not processes.ends_within(child.pid, 0.0)
    child.stdin.close()
    assert processes.ends_within(child.pid, 30.0)
    child.wait()
    assert processes.ends_within(child.pid, 0.0)


def test_a_process_leaves_after_its_exit_handlers_and_with_what_it_has_printed() -> None:
    said = run_python(
        "import atexit, sys, threading\n"
        "from matforge.worker import processes\n"
        "atexit.register(print, 'handler', end='')\n"
        "threading.Thread(target=threading.Event().wait).start()\n"  # it would be waited for
        "print('first')\n"
        "processes.leave()\n"
        "print('never')\n"
    )
    assert said == "first\nhandler"


def test_an_exit_handler_that_fails_keeps_no_process() -> None:
    program = (
        "import atexit\n"
        "from matforge.worker import processes\n"
        "atexit.register(print, 'the other', flush=True)\n"
        "atexit.register(lambda: 1 / 0)\n"
        "processes.leave()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "the other\n")
    assert "ZeroDivisionError" in done.stderr


def test_the_end_of_a_pipe_is_noticed_and_silence_is_not_taken_for_it() -> None:
    reader, writer = os.pipe()
    assert not processes.readable_within(reader, 0.01)
    os.close(writer)
    assert processes.readable_within(reader, 30.0)
    os.close(reader)
