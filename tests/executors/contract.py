"""What every executor must do: subclass the two classes and say how to make one.

``ProtocolContract`` asks nothing of what chores do, so that the simulated executor can keep it too.
``RealWorkContract`` runs functions and commands for real. No test sleeps: they poll the executor,
and chores that must wait, wait for a pipe.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import chores
import pytest
from harness import ONE_CORE, Gate, Harness, pack, wait_for_end

from matforge.engine import segments
from matforge.engine.locations import location_of
from matforge.executors.protocol import (
    INLINE_LIMIT,
    Executor,
    Finished,
    Lost,
    Task,
)
from matforge.model import Attempt, CommandResult, FailureKind, Lane, OutputReference, Resources


class ProtocolContract:
    """The protocol itself; ``make`` returns a harness with two workers."""

    @classmethod
    def make(cls, tmp_path: Path) -> Harness:
        """A harness around a fresh executor."""
        raise NotImplementedError

    @pytest.fixture
    def fresh(self, tmp_path: Path) -> Iterator[Harness]:
        harness = self.make(tmp_path / "run")
        yield harness
        harness.executor.close(kill=True)

    def test_it_has_the_methods_of_an_executor(self, fresh: Harness) -> None:
        assert isinstance(fresh.executor, Executor)

    def test_its_capacity_is_known_at_once(self, fresh: Harness) -> None:
        capacity = fresh.executor.capacity()
        assert capacity.total_cores == capacity.nodes * capacity.cores_per_node == 2
        assert capacity.queue_depth > 0

    def test_every_task_ends_exactly_once(self, fresh: Harness) -> None:
        tasks = [fresh.simple("brief") for _ in range(300)]
        fresh.executor.submit(tasks[:100])
        fresh.executor.submit([])
        fresh.executor.submit(tasks[100:])
        ends = fresh.wait_for(tasks)
        assert all(isinstance(e, Finished) and e.failure is None for e in ends)
        assert fresh.executor.poll(0) == []

    def test_a_failure_is_reported_with_its_kind(self, fresh: Harness) -> None:
        assert fresh.failure(fresh.simple("failing")).kind is FailureKind.EXCEPTION

    def test_what_takes_long_is_reported_as_started_first(self, fresh: Harness) -> None:
        task = fresh.simple("endless")
        fresh.executor.submit([task])
        started = fresh.wait_until_started(task)
        assert started.host
        assert started.slot >= 0
        assert task.attempt not in fresh.ends()

    def test_a_running_task_can_be_cancelled(self, fresh: Harness) -> None:
        task, other = fresh.simple("endless"), fresh.simple("brief")
        fresh.executor.submit([task, other])
        fresh.wait_until_started(task)
        fresh.executor.cancel([task.attempt])
        assert fresh.wait_for([task])[0].failure.kind is FailureKind.CANCELLED  # type: ignore[union-attr]
        assert fresh.wait_for([other])[0].failure is None
        assert fresh.end(fresh.simple("brief")).failure is None

    def test_queued_tasks_can_be_cancelled(self, fresh: Harness) -> None:
        running = [fresh.simple("endless") for _ in range(2)]
        queued = [fresh.simple("brief") for _ in range(5)]
        fresh.executor.submit([*running, *queued])
        for task in running:
            fresh.wait_until_started(task)
        fresh.executor.cancel([t.attempt for t in queued])
        ends = fresh.wait_for(queued)
        assert {e.failure.kind for e in ends if e.failure} == {FailureKind.CANCELLED}
        assert not set(fresh.ends()) & {t.attempt for t in running}

    def test_a_task_cancelled_at_once_ends_once(self, fresh: Harness) -> None:
        tasks = [fresh.simple("brief") for _ in range(20)]
        fresh.executor.submit(tasks)
        fresh.executor.cancel([t.attempt for t in tasks])
        fresh.executor.cancel([t.attempt for t in tasks])
        for end in fresh.wait_for(tasks):
            assert end.failure is None or end.failure.kind is FailureKind.CANCELLED
        assert fresh.end(fresh.simple("brief")).failure is None

    def test_what_has_not_begun_is_given_back_and_what_runs_goes_on(self, fresh: Harness) -> None:
        running = [fresh.simple("endless") for _ in range(2)]
        fresh.executor.submit(running)
        for task in running:
            fresh.wait_until_started(task)
        waiting = [fresh.simple("brief") for _ in range(20)]
        fresh.executor.submit(waiting)
        fresh.executor.withdraw()
        fresh.poll(lambda: len(fresh.withdrawn()) == 20)
        fresh.executor.withdraw()
        assert set(fresh.withdrawn()) == {task.attempt for task in waiting}
        fresh.executor.cancel([task.attempt for task in running])
        assert all(e.failure is not None for e in fresh.wait_for(running))
        assert fresh.end(fresh.simple("brief")).failure is None
        assert len(fresh.ends()) == 3

    def test_what_is_given_back_at_once_ends_once(self, fresh: Harness) -> None:
        tasks = [fresh.simple("brief") for _ in range(20)]
        fresh.executor.submit(tasks)
        fresh.executor.withdraw()
        fresh.poll(lambda: len(fresh.withdrawn()) + len(fresh.ends()) == 20)
        assert not set(fresh.withdrawn()) & set(fresh.ends())
        assert fresh.end(fresh.simple("brief")).failure is None

    def test_unknown_attempts_are_not_cancelled(self, fresh: Harness) -> None:
        fresh.executor.cancel([Attempt("chore-nobody-0001", 1, 1)])
        done = fresh.simple("brief")
        fresh.run(done)
        fresh.executor.cancel([done.attempt])
        assert fresh.end(fresh.simple("brief")).failure is None

    def test_a_poll_without_patience_returns_at_once(self, fresh: Harness) -> None:
        assert fresh.executor.poll(0) == []

    def test_a_wake_ends_a_poll(self, fresh: Harness) -> None:
        fresh.executor.wake()
        assert fresh.executor.poll(1.0) == []

    def test_close_may_be_called_twice_and_with_work_in_flight(self, fresh: Harness) -> None:
        fresh.executor.submit([fresh.simple("endless") for _ in range(4)])
        fresh.executor.close()
        fresh.executor.close(kill=True)
        fresh.executor.wake()
        fresh.executor.poll(0)


class RealWorkContract(ProtocolContract):
    """Functions and commands, their results, and what they do to themselves and their slots."""

    @pytest.fixture(scope="class")
    @classmethod
    def shared(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
        """One executor for all tests that leave it as it was."""
        harness = cls.make(tmp_path_factory.mktemp("shared") / "run")
        yield harness
        harness.executor.close()

    # -- results

    @pytest.mark.parametrize("full", [False, True], ids=["packed", "full"])
    def test_a_result_lies_where_the_report_says(self, shared: Harness, full: bool) -> None:
        task = shared.task(chores.add, 2, 3, full=full)
        report = shared.end(task)
        assert shared.result(report) == 5
        assert report.inline is not None
        assert task.attempt.tag in report.result.path or not full  # type: ignore[union-attr]
        usage = report.usage
        assert usage.host
        assert usage.slot >= 0
        assert 0 <= usage.wall_s < 5
        assert usage.max_rss > 1 << 20
        assert abs(usage.started_at - time.time()) < 60

    @pytest.mark.parametrize("full", [False, True], ids=["packed", "full"])
    def test_a_large_result_stays_on_disk(self, shared: Harness, full: bool) -> None:
        report = shared.end(shared.task(chores.many_bytes, 3 * INLINE_LIMIT, full=full))
        assert report.inline is None
        assert shared.result(report) == b"x" * (3 * INLINE_LIMIT)

    def test_long_arguments_arrive(self, shared: Harness) -> None:
        text = "ü" * 300_000
        assert shared.value(shared.task(chores.length, text)) == len(text)
        payload = pack((([1] * 1000,), {}))
        name = "out/payload"
        (shared.run_dir / name).write_bytes(payload)
        assert shared.value(shared.task(chores.length, payload=location_of(name, payload))) == 1000

    def test_references_become_results_wherever_they_are(self, shared: Harness) -> None:
        first = shared.end(shared.task(chores.table)).result
        second = shared.end(shared.task(chores.add, 1, 1, full=True)).result
        assert first is not None
        assert second is not None
        whole, other = OutputReference("0"), OutputReference("1")
        nested = {"a": [whole["rows"][1:3], (other,)], "b": whole["name"]}
        task = shared.task(chores.echo, nested, inputs=(first, second))
        assert shared.value(task) == {"a": [[1, 2], (2,)], "b": "table"}

    def test_packed_results_can_be_found_without_an_index(self, shared: Harness) -> None:
        task = shared.task(chores.add, 20, 22)
        report = shared.end(task)
        assert report.result is not None
        records = list(segments.scan(shared.run_dir / report.result.path, report.result.path))
        mine = [r for r in records if r.chore_id == task.attempt.chore_id]
        assert [(r.kind, r.tag, r.where) for r in mine] == [("result", "e1a1", report.result)]

    def test_a_report_travels_beside_the_result(self, shared: Harness) -> None:
        report = shared.end(shared.task(chores.with_report, {"loss": 0.5, "n": [1, 2]}))
        assert report.report == {"loss": 0.5, "n": [1, 2]}
        assert shared.result(report) == "result"

    def test_a_report_must_be_small_and_plain(self, shared: Harness) -> None:
        assert "plain JSON" in shared.failure(shared.task(chores.with_report, {"loss": object()})).message
        assert "bytes" in shared.failure(shared.task(chores.with_report, {"all": "x" * 100_000})).message

    def test_functions_need_no_module(self, shared: Harness) -> None:
        offset = 10
        assert shared.value(shared.task(lambda x: x + offset, 1)) == 11

    def test_a_class_of_the_script_comes_back(self, shared: Harness) -> None:
        class Local:
            def __init__(self, value: int) -> None:
                self.value = value

        assert shared.value(shared.task(lambda: Local(3))).value == 3

    # -- failures

    def test_an_exception_comes_with_its_traceback_and_stderr(self, shared: Harness) -> None:
        failure = shared.failure(shared.task(chores.complain_and_raise))
        assert failure.kind is FailureKind.EXCEPTION
        assert failure.message == "ValueError: not today"
        assert "complain_and_raise" in failure.traceback
        assert "matforge" not in failure.traceback
        assert failure.stderr == "a complaint\n"

    def test_an_exception_that_cannot_be_shown_is_still_one(self, shared: Harness) -> None:
        assert shared.failure(shared.task(chores.raise_unprintable)).kind is FailureKind.EXCEPTION

    def test_too_little_memory_is_told_apart(self, shared: Harness) -> None:
        assert shared.failure(shared.task(chores.raise_memory_error)).kind is FailureKind.OUT_OF_MEMORY

    def test_an_interrupt_inside_a_chore_is_an_exception(self, shared: Harness) -> None:
        failure = shared.failure(shared.task(chores.interrupt_self))
        assert failure.kind is FailureKind.EXCEPTION
        assert failure.message == "KeyboardInterrupt"

    @pytest.mark.parametrize("where", ["load", "argument", "run", "pickle"])
    @pytest.mark.parametrize("how", list(chores.DETONATIONS))
    def test_crash_table(self, shared: Harness, where: str, how: str) -> None:
        if where == "load":
            task = shared.task(chores.Bomb(how))
        elif where == "argument":
            task = shared.task(chores.echo, chores.Bomb(how))
        elif where == "run":
            task = shared.task(chores.detonate, how)
        else:
            task = shared.task(chores.make_bomb, how)
        expected = {
            "raise": {
                "run": FailureKind.EXCEPTION,
                "pickle": FailureKind.CANNOT_PICKLE_RESULT,
            }.get(where, FailureKind.CANNOT_LOAD),
            "sys.exit": FailureKind.EXIT_CODE,
            "os._exit": FailureKind.EXIT_CODE,
            "abort": FailureKind.SIGNAL,
            "segfault": FailureKind.SIGNAL,
            "kill": FailureKind.WORKER_LOST,
        }[how]
        report = shared.run(task)[0]
        assert report.failure is not None
        assert report.failure.kind is expected
        assert isinstance(report, Lost) == (how == "kill")
        assert task.attempt.chore_id in report.failure.message or how == "raise"
        assert report.failure.exit_code == {"sys.exit": 3, "os._exit": 4}.get(how)
        number = {"abort": signal.SIGABRT, "segfault": signal.SIGSEGV, "kill": signal.SIGKILL}.get(how)
        assert report.failure.signal == number
        assert shared.value(shared.task(chores.add, 1, 1)) == 2

    def test_a_chore_that_ends_its_process_leaves_what_it_printed(self, shared: Harness) -> None:
        for full in (False, True):
            task = shared.task(chores.print_and_abort, full=full)
            report = shared.end(task)
            assert report.printed
            assert "Fatal Python error" in report.failure.stderr  # type: ignore[union-attr]
            folder = shared.run_dir / "out" / task.attempt.chore_id
            assert (folder / "stdout.e1a1").read_text() == "last words\n"
            assert (folder / "stderr.e1a1").read_text() == report.failure.stderr  # type: ignore[union-attr]

    def test_a_module_that_is_missing_is_named(self, shared: Harness, tmp_path: Path) -> None:
        (tmp_path / "only_here.py").write_text("def f():\n    return 1\n")
        sys.path.insert(0, str(tmp_path))
        try:
            import only_here  # type: ignore[import-not-found]

            task = shared.task(only_here.f)
        finally:
            sys.path.remove(str(tmp_path))
            sys.modules.pop("only_here", None)
        failure = shared.failure(task)
        assert failure.kind is FailureKind.CANNOT_LOAD
        assert "'only_here'" in failure.message
        assert task.attempt.chore_id in failure.message

    def test_a_result_that_cannot_be_pickled_is_told_with_its_type(self, shared: Harness) -> None:
        failure = shared.failure(shared.task(chores.return_generator))
        assert failure.kind is FailureKind.CANNOT_PICKLE_RESULT
        assert "generator" in failure.message

    def test_a_damaged_or_missing_input_is_a_matter_of_storage(self, shared: Harness) -> None:
        where = shared.end(shared.task(chores.add, 1, 1, full=True)).result
        assert where is not None
        path = shared.run_dir / where.path
        path.write_bytes(b"x" * where.length)
        task = shared.task(chores.echo, OutputReference("0"), inputs=(where,))
        failure = shared.failure(task)
        assert failure.kind is FailureKind.STORAGE
        assert str(path) in failure.message
        path.unlink()
        again = shared.failure(shared.task(chores.echo, OutputReference("0"), inputs=(where,)))
        assert again.kind is FailureKind.STORAGE

    @pytest.mark.parametrize("name", ["result.pickle.e1a1.new", "stdout.e1a1"])
    def test_a_full_disk_is_a_matter_of_storage(self, shared: Harness, name: str) -> None:
        task = shared.task(chores.say, "something", full=True)
        folder = shared.run_dir / "out" / task.attempt.chore_id
        folder.mkdir()
        (folder / name).symlink_to("/dev/full")
        failure = shared.failure(task)
        assert failure.kind is FailureKind.STORAGE
        assert "disk is full" in failure.message
        assert task.attempt.chore_id in failure.message
        assert shared.value(shared.task(chores.say, "more", full=True)) == "more"

    def test_a_folder_that_is_in_the_way_is_a_matter_of_storage(self, shared: Harness) -> None:
        task = shared.task(chores.add, 1, 1, full=True)
        (shared.run_dir / "out" / task.attempt.chore_id).write_text("a file")
        assert shared.failure(task).kind is FailureKind.STORAGE

    # -- streams

    @pytest.mark.parametrize("full", [False, True], ids=["packed", "full"])
    def test_everything_printed_is_kept(self, shared: Harness, full: bool) -> None:
        task = shared.task(chores.print_everywhere, full=full)
        report = shared.end(task)
        assert report.printed
        folder = shared.run_dir / "out" / task.attempt.chore_id
        assert sorted((folder / "stdout.e1a1").read_text().split()) == ["c", "child", "descriptor", "python"]
        assert (folder / "stderr.e1a1").read_text() == "error\n"

    def test_a_silent_packed_chore_leaves_no_files(self, shared: Harness) -> None:
        task = shared.task(chores.add, 1, 1)
        assert not shared.end(task).printed
        assert not (shared.run_dir / "out" / task.attempt.chore_id).exists()

    # -- surroundings

    def test_a_chore_knows_who_it_is_and_has_its_directory(self, shared: Harness) -> None:
        task = shared.task(chores.surroundings, full=True)
        seen = shared.value(task)
        assert seen["cwd"] == str((shared.run_dir / "out" / task.attempt.chore_id).resolve())
        env = seen["env"]
        assert env["MATFORGE_CHORE_ID"] == task.attempt.chore_id
        assert env["MATFORGE_SEED"] == str(task.seed)
        assert env["MATFORGE_RUN_DIR"] == str(shared.run_dir.resolve())
        assert env["CUDA_VISIBLE_DEVICES"] == ""
        assert env["OMP_NUM_THREADS"] == "1"

    def test_threads_follow_the_cores(self, shared: Harness) -> None:
        task = shared.task(chores.surroundings, resources=Resources(cores_per_task=2))
        assert shared.value(task)["env"]["OMP_NUM_THREADS"] == "2"

    def test_a_chore_can_have_an_environment_of_its_own(
        self, shared: Harness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wants = Resources(env={"COLOUR": "blue", "OMP_NUM_THREADS": "7"})
        env = shared.value(shared.task(chores.surroundings, resources=wants))["env"]
        assert (env["COLOUR"], env["OMP_NUM_THREADS"]) == ("blue", "7")
        bare = shared.value(shared.task(chores.surroundings, resources=Resources(inherit_env=False)))["env"]
        assert set(bare) < set(env) | {"COLOUR"}
        assert not any(name.startswith("PYTEST") for name in bare)
        assert "COLOUR" not in shared.value(shared.task(chores.surroundings))["env"]

    @pytest.mark.parametrize("mess", list(chores.MESSES))
    def test_the_next_chore_sees_nothing_of(self, shared: Harness, mess: str) -> None:
        clean = shared.value(shared.task(chores.look_around))
        tasks = [shared.task(chores.make_mess, mess) for _ in range(2)]
        looks = [shared.task(chores.look_around) for _ in range(4)]
        ends = shared.run(*tasks, *looks)
        assert [shared.result(e)[0] for e in ends[:2]] == [mess, mess]  # type: ignore[arg-type]
        for end in ends[2:]:
            assert shared.result(end) == clean  # type: ignore[arg-type]

    def test_jax_settings_of_a_function_are_undone_and_those_of_an_import_stay(
        self, shared: Harness, tmp_path: Path
    ) -> None:
        pytest.importorskip("jax")
        one_slot = Resources(env={"A_SLOT_FOR": "jax"}, cores_per_task=2)
        (tmp_path / "sets_nans.py").write_text("import jax\njax.config.update('jax_debug_nans', True)\n")
        before = shared.value(shared.task(chores.jax_settings, "", "", resources=one_slot))
        assert before[1:] == (False, False)
        changed = shared.value(
            shared.task(chores.jax_settings, "jax_enable_x64", str(tmp_path), resources=one_slot)
        )
        assert changed == (before[0], True, True)
        after = shared.value(shared.task(chores.jax_settings, "", "", resources=one_slot))
        assert after == (before[0], False, True)

    def test_an_isolated_chore_has_a_process_of_its_own(self, shared: Harness) -> None:
        alone = Resources(isolated=True)
        pids = [
            shared.value(shared.task(os.getpid, resources=alone, lane=Lane.JOB)),
            shared.value(shared.task(os.getpid, resources=alone, lane=Lane.JOB)),
            shared.value(shared.task(os.getpid)),
        ]
        assert len(set(pids)) == 3
        assert all(wait_for_end(pid) for pid in pids[:2])

    # -- commands and ranks

    def test_a_command_gives_its_exit_code_and_streams(self, shared: Harness) -> None:
        task = shared.command("sh", "-c", "echo out; echo err >&2; pwd >&2")
        report = shared.end(task)
        folder = (shared.run_dir / "out" / task.attempt.chore_id).resolve()
        value = CommandResult(0, f"{folder}/stdout", f"{folder}/stderr")
        assert shared.result(report) == value
        assert (folder / "stdout.e1a1").read_text() == "out\n"
        assert (folder / "stderr.e1a1").read_text().splitlines() == ["err", str(folder)]

    def test_references_in_a_command_become_text(self, shared: Harness) -> None:
        where = shared.end(shared.task(chores.table)).result
        assert where is not None
        task = shared.command("echo", OutputReference("0")["name"], 7, inputs=(where,))
        shared.end(task)
        assert (shared.run_dir / f"out/{task.attempt.chore_id}/stdout.e1a1").read_text() == "table 7\n"

    def test_a_command_as_plain_text_runs(self, shared: Harness) -> None:
        attempt = shared.attempt("true")
        task = Task(
            attempt, "true", ONE_CORE, Lane.JOB, command=("true",), directory=f"out/{attempt.chore_id}"
        )
        assert shared.value(task)["exit_code"] == 0

    @pytest.mark.parametrize(
        ("script", "kind", "exit_code", "number"),
        [
            ("echo oh >&2; exit 9", FailureKind.EXIT_CODE, 9, None),
            ("kill -SEGV $$", FailureKind.SIGNAL, None, 11),
            ("kill -KILL $$", FailureKind.SIGNAL, None, 9),
        ],
    )
    def test_a_command_fails_with_its_kind(
        self, shared: Harness, script: str, kind: FailureKind, exit_code: int | None, number: int | None
    ) -> None:
        failure = shared.failure(shared.command("sh", "-c", script))
        assert (failure.kind, failure.exit_code, failure.signal) == (kind, exit_code, number)
        assert failure.stderr == ("oh\n" if exit_code else "")

    def test_a_program_that_does_not_exist_is_named(self, shared: Harness) -> None:
        failure = shared.failure(shared.command("no-such-program"))
        assert failure.kind is FailureKind.START_FAILED
        assert "'no-such-program'" in failure.message

    def test_a_command_with_several_tasks_has_ranks(self, shared: Harness) -> None:
        task = shared.command(
            "sh", "-c", "echo $MATFORGE_RANK/$MATFORGE_SIZE", resources=Resources(num_tasks=2)
        )
        shared.end(task)
        said = (shared.run_dir / f"out/{task.attempt.chore_id}/stdout.e1a1").read_text()
        assert sorted(said.split()) == ["0/2", "1/2"]

    def test_one_bad_rank_ends_the_others(self, shared: Harness) -> None:
        script = 'if [ "$MATFORGE_RANK" = 1 ]; then exit 5; fi; exec sleep 1000'
        failure = shared.failure(shared.command("sh", "-c", script, resources=Resources(num_tasks=2)))
        assert (failure.kind, failure.exit_code) == (FailureKind.EXIT_CODE, 5)

    def test_a_function_with_several_tasks_gives_the_result_of_rank_0(self, shared: Harness) -> None:
        wants = Resources(num_tasks=2)
        assert shared.value(shared.task(chores.rank, -1, resources=wants, lane=Lane.JOB)) == (0, 2)
        failure = shared.failure(shared.task(chores.rank, 1, resources=wants, lane=Lane.JOB))
        assert failure.kind is FailureKind.EXCEPTION
        assert failure.message == "Rank 1 of 2: RuntimeError: rank 1 fails"

    # -- order, cancellation, loss

    def test_a_chore_of_many_cores_is_not_starved(self, fresh: Harness, tmp_path: Path) -> None:
        gate = Gate(tmp_path / "gate")
        held = fresh.task(chores.wait_at, gate.path)
        wide = fresh.task(chores.add, 1, 1, resources=Resources(cores_per_task=2))
        narrow = [fresh.task(chores.add, i, i) for i in range(20)]
        fresh.executor.submit([held])
        fresh.wait_until_started(held)
        fresh.executor.submit([wide, *narrow])
        assert fresh.executor.poll(0.2) == []
        gate.open()
        ends = fresh.wait_for([wide, *narrow])
        starts = [e.usage.started_at for e in ends if isinstance(e, Finished)]
        assert starts[0] == min(starts)

    def test_short_chores_do_not_wait_behind_a_long_one(self, fresh: Harness, tmp_path: Path) -> None:
        gate = Gate(tmp_path / "gate")
        warm_up = [fresh.task(chores.add, i, i) for i in range(50)]
        fresh.run(*warm_up)
        held = fresh.task(chores.wait_at, gate.path)
        short = [fresh.task(chores.add, i, i) for i in range(50)]
        fresh.executor.submit([*short[:20], held, *short[20:]])
        assert all(e.failure is None for e in fresh.wait_for(short))
        assert held.attempt not in fresh.ends()
        gate.open()
        assert fresh.wait_for([held])[0].failure is None

    def test_cancelling_one_chore_leaves_those_behind_it_unharmed(
        self, fresh: Harness, tmp_path: Path
    ) -> None:
        gates = [Gate(tmp_path / f"gate{i}") for i in range(2)]
        held = [fresh.task(chores.wait_at, g.path) for g in gates]
        behind = [fresh.task(chores.add, i, i) for i in range(10)]
        fresh.run(*(fresh.task(chores.add, i, i) for i in range(20)))
        fresh.executor.submit([*held, *behind])
        for task in held:
            fresh.wait_until_started(task)
        fresh.executor.cancel([held[0].attempt])
        assert all(e.failure is None for e in fresh.wait_for(behind))
        gates[1].open()
        assert fresh.wait_for(held)[1].failure is None

    @pytest.mark.parametrize("isolated", [False, True])
    def test_exit_handlers_of_chores_run_when_their_slot_ends(
        self, fresh: Harness, tmp_path: Path, isolated: bool
    ) -> None:
        farewell = tmp_path / "farewell"
        resources = Resources(isolated=isolated)
        assert fresh.value(fresh.task(chores.say_farewell, str(farewell), resources=resources)) == os.fspath(
            farewell
        )
        if not isolated:
            assert not farewell.exists()
            fresh.executor.close()
        assert fresh.wait_for_file(farewell) == "farewell"

    def test_cancelling_ends_the_whole_tree(self, fresh: Harness, tmp_path: Path) -> None:
        for task in (
            fresh.task(chores.family, str(tmp_path / "python")),
            fresh.command(sys.executable, chores.__file__, str(tmp_path / "command")),
        ):
            fresh.executor.submit([task])
            fresh.wait_until_started(task)
            notes = tmp_path / ("python" if task.function else "command")
            pids = [int(p) for p in fresh.wait_for_file(notes).split()]
            assert len(pids) == 3
            fresh.executor.cancel([task.attempt])
            assert fresh.wait_for([task])[0].failure.kind is FailureKind.CANCELLED  # type: ignore[union-attr]
            assert all(wait_for_end(pid) for pid in pids)

    def test_a_killed_slot_loses_only_its_own_chore(self, fresh: Harness, tmp_path: Path) -> None:
        gates = [Gate(tmp_path / f"gate{i}") for i in range(2)]
        notes = [tmp_path / f"pid{i}" for i in range(2)]
        tasks = [
            fresh.task(chores.note_pid_and_wait, str(n), g.path) for n, g in zip(notes, gates, strict=True)
        ]
        fresh.executor.submit(tasks)
        os.kill(int(fresh.wait_for_file(notes[0])), signal.SIGKILL)
        lost = fresh.wait_for(tasks[:1])[0]
        assert isinstance(lost, Lost)
        assert lost.failure.kind is FailureKind.WORKER_LOST
        gates[1].open()
        assert fresh.wait_for(tasks[1:])[0].failure is None
        assert fresh.value(fresh.task(chores.add, 1, 1)) == 2

    def test_closing_leaves_no_process(self, fresh: Harness, tmp_path: Path) -> None:
        notes = tmp_path / "notes"
        task = fresh.task(chores.family, str(notes))
        fresh.executor.submit([task])
        fresh.wait_until_started(task)
        pids = [int(p) for p in fresh.wait_for_file(notes).split()]
        fresh.executor.close(kill=True)
        assert all(wait_for_end(pid) for pid in pids)
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert str(fresh.run_dir) not in listed
