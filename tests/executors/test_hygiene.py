"""What a chore does to its slot is its own affair: the next one there sees nothing of it."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import chores
import pytest
from harness import Harness, wait_for_end

from matforge.executors.local import LocalExecutor
from matforge.executors.protocol import Finished, Task
from matforge.model import FailureKind, Lane, Resources

UNSEEN = {"a watchdog", "random state"}
"""Messes that no look around can tell; they have tests of their own."""


@pytest.fixture(scope="module")
def one_slot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    harness = Harness(LocalExecutor(1), tmp_path_factory.mktemp("hygiene") / "run")
    yield harness
    harness.executor.close(kill=True)


@pytest.mark.parametrize("mess", sorted(set(chores.MESSES) - UNSEEN))
def test_a_look_around_would_tell(one_slot: Harness, mess: str) -> None:
    clean = one_slot.value(one_slot.task(chores.look_around))
    failure_or_look = one_slot.end(one_slot.task(chores.make_mess_and_look, mess))
    if failure_or_look.failure is None:
        assert one_slot.result(failure_or_look) != clean


@pytest.mark.parametrize("mess", list(chores.MESSES))
def test_only_what_cannot_be_undone_costs_the_slot(one_slot: Harness, mess: str) -> None:
    _, pid = one_slot.value(one_slot.task(chores.make_mess, mess))
    after = one_slot.value(one_slot.task(os.getpid))
    replaced = mess in chores.REPLACING or (mess == "priority" and os.geteuid() != 0)
    assert (after != pid) is replaced


def test_no_mixture_of_messes_adds_up(one_slot: Harness) -> None:
    random = Random(11)
    clean = one_slot.value(one_slot.task(chores.look_around))
    messes = random.choices(list(chores.MESSES), k=60)
    tasks = [
        t for m in messes for t in (one_slot.task(chores.make_mess, m), one_slot.task(chores.look_around))
    ]
    looks = one_slot.run(*tasks)[1::2]
    for mess, look in zip(messes, looks, strict=True):
        assert isinstance(look, Finished)
        assert (mess, one_slot.result(look)) == (mess, clean)


def test_a_watchdog_does_not_bite_the_next_chore(one_slot: Harness) -> None:
    _, pid = one_slot.value(one_slot.task(chores.make_mess, "a watchdog"))
    assert one_slot.value(one_slot.task(chores.hold_the_lock, 0.2)) == "done"
    assert one_slot.value(one_slot.task(os.getpid)) == pid


def test_what_a_module_sets_while_it_is_imported_stays(one_slot: Harness, tmp_path: Path) -> None:
    (tmp_path / "sets_things.py").write_text(
        "import logging, os\n"
        "import numpy\n"
        "numpy.seterr(divide='raise')\n"
        "logging.getLogger('sets_things').setLevel(10)\n"
        "os.environ['SET_BY_IMPORT'] = 'yes'\n"
    )
    expected = ("raise", 10, "yes")
    assert one_slot.value(one_slot.task(chores.import_and_look, "sets_things", str(tmp_path))) == expected
    assert one_slot.value(one_slot.task(chores.what_modules_set)) == expected
    # what functions set on top of it is undone, down to what the module has set
    one_slot.value(one_slot.task(chores.make_mess, "numpy"))
    one_slot.value(one_slot.task(chores.make_mess, "environment removed"))
    assert one_slot.value(one_slot.task(chores.what_modules_set)) == expected


def test_global_generators_begin_at_the_chores_own_seed(one_slot: Harness, tmp_path: Path) -> None:
    first = [one_slot.task(chores.draw) for _ in range(3)]
    again = [replace(task, attempt=replace(task.attempt, number=2)) for task in first]

    def drawn(harness: Harness, tasks: list[Task]) -> list[Any]:
        return [harness.result(e) for e in harness.run(*tasks) if isinstance(e, Finished)]

    seen = drawn(one_slot, first)
    assert len(set(seen)) == 3
    one_slot.value(one_slot.task(chores.make_mess, "random state"))
    assert drawn(one_slot, again[::-1]) == seen[::-1]
    # neither does it matter whether NumPy is there before the chore begins
    fresh = Harness(LocalExecutor(1, max_chores=1), tmp_path / "run")
    try:
        mine = [replace(fresh.task(chores.draw), seed=task.seed) for task in first]
        assert drawn(fresh, mine) == seen
    finally:
        fresh.executor.close(kill=True)


def test_ranks_draw_different_numbers_and_the_same_every_time(tmp_path: Path) -> None:
    two = Harness(LocalExecutor(2), tmp_path / "run")
    ranks = Resources(num_tasks=2)
    drawn = []
    try:
        for _ in range(2):
            task = two.task(chores.draw_to_file, resources=ranks, lane=Lane.JOB)
            assert two.end(replace(task, seed=7)).failure is None
            folder = two.run_dir / "out" / task.attempt.chore_id
            drawn.append([(folder / f"drawn-{rank}").read_text() for rank in range(2)])
    finally:
        two.executor.close(kill=True)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 2


@pytest.mark.parametrize("how", ["sys.exit", "os._exit", "abort", "segfault"])
def test_only_the_guilty_one_fails(one_slot: Harness, how: str) -> None:
    before = [one_slot.task(chores.add, i, i) for i in range(10)]
    guilty = one_slot.task(chores.detonate, how)
    after = [one_slot.task(chores.add, i, i) for i in range(10)]
    ends = one_slot.run(*before, guilty, *after)
    kind = FailureKind.EXIT_CODE if how.endswith("exit") else FailureKind.SIGNAL
    assert [e.failure.kind for e in ends if e.failure is not None] == [kind]
    assert ends[10].failure is not None


def test_what_a_chore_has_started_ends_with_it(one_slot: Harness, tmp_path: Path) -> None:
    note = tmp_path / "family"
    one_slot.value(one_slot.task(chores.family_and_return, str(note)))
    pids = [int(pid) for pid in note.read_text().split()]
    assert len(pids) == 2
    assert all(wait_for_end(pid) for pid in pids)


def test_the_directory_of_slots_may_be_full(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    harness = Harness(LocalExecutor(1), tmp_path / "run")
    try:
        # arguments as long as these go through a file there
        failures = [harness.failure(harness.task(chores.say, "x" * (4 << 20)))]
        assert harness.value(harness.task(chores.say, "short")) == "short"
        with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        failures.append(harness.failure(harness.task(functools.partial(print, "short", end=""))))
        (small_disk / "filler").unlink()
        for failure in failures:
            assert failure.kind is FailureKind.STORAGE
            assert str(small_disk) in failure.message
            assert "the disk is full" in failure.message
        assert harness.value(harness.task(chores.say, "short")) == "short"
    finally:
        harness.executor.close(kill=True)


@pytest.mark.parametrize(
    ("mess", "full"), [("a limit of files", True), ("a limit of file sizes", True), ("umask", True)]
)
def test_a_result_is_written_as_if_the_chore_had_changed_nothing(
    one_slot: Harness, mess: str, full: bool
) -> None:
    report = one_slot.end(one_slot.task(chores.make_mess, mess, full=full))
    assert one_slot.result(report)[0] == mess
    assert report.result is not None
    assert (one_slot.run_dir / report.result.path).stat().st_mode & 0o777 == 0o644
