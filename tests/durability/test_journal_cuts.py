"""A journal that was cut or changed anywhere is gone on with, or refused with its offset; never misread."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from matforge.engine.store import JOURNAL_NAME
from matforge.executors.simulated import Outcome, SimulatedExecutor
from matforge.model import MatForgeError
from matforge.opening import reopen
from tests.durability.everything import behave, check_resumed, undisturbed
from tests.durability.test_lost_results import CALLS, value
from tests.harness import outcome, play, records, resume

NOT_BEGUN = r"was ended before it had begun|was ended before its script had submitted"


def first_byte_after_submitting(run_dir: Path) -> int:
    """Where a cut leaves a run that can be resumed."""
    lines = (run_dir / JOURNAL_NAME).read_bytes().splitlines(keepends=True)
    count = next(n for n, r in enumerate(records(run_dir)) if r["e"] == "submitted") + 1
    return sum(map(len, lines[:count]))


def check_cuts(folder: Path, layout: str, step: int) -> None:
    """Cut the journal of a small run at every ``step``-th byte, and at each of the end of its first part."""
    session, _ = play(folder, CALLS, value, layout=layout)
    session.wait(30)
    expected, run_dir = outcome(session), session.run_dir
    path, copy = run_dir / JOURNAL_NAME, folder / "copy"
    whole, begun = path.stat().st_size, first_byte_after_submitting(run_dir)
    cuts = {*range(0, whole, step), *range(begun - 3, begun + 300), whole}
    shutil.copytree(run_dir, copy)
    for cut in sorted(cuts, reverse=True):
        shutil.copyfile(path, copy / JOURNAL_NAME)
        os.truncate(copy / JOURNAL_NAME, cut)
        if cut < begun:
            with pytest.raises(MatForgeError, match=NOT_BEGUN):
                reopen(copy, made=SimulatedExecutor(), quiet=True)
            continue
        again, _ = resume(copy, value)
        again.wait(30)
        assert outcome(again) == expected


@pytest.mark.parametrize("layout", ["full", "packed"])
def test_a_journal_cut_anywhere_is_gone_on_with(folder: Path, layout: str) -> None:
    check_cuts(folder, layout, step=13)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["full", "packed"])
def test_a_journal_cut_at_every_byte_is_gone_on_with(folder: Path, layout: str) -> None:
    check_cuts(folder, layout, step=1)


@pytest.mark.slow
def test_a_journal_of_everything_cut_anywhere_is_gone_on_with(folder: Path) -> None:
    run_dir, expected = undisturbed(folder)
    whole, begun = (run_dir / JOURNAL_NAME).stat().st_size, first_byte_after_submitting(run_dir)
    for cut in range(begun, whole + 1, 37):
        copy = shutil.copytree(run_dir, folder / "copy")
        os.truncate(copy / JOURNAL_NAME, cut)
        check_resumed(resume(copy, behave)[0], expected)
        shutil.rmtree(copy)


def test_a_journal_changed_at_any_byte_is_refused_with_the_offset(folder: Path) -> None:
    session, _ = play(folder, CALLS, lambda task: Outcome(1.0, 1))
    session.wait(30)
    path = session.run_dir / JOURNAL_NAME
    data = path.read_bytes()
    starts = [0, *(found.end() for found in re.finditer(rb"\n", data))]
    for at in range(0, len(data) - 1, 5):
        spoilt = bytearray(data)
        spoilt[at] ^= 0x10
        path.write_bytes(spoilt)
        line = max(start for start in starts if start <= at)
        with pytest.raises(MatForgeError) as refused:
            resume(session.run_dir)
        offset = re.search(r"at byte (\d+)", str(refused.value))
        assert offset is not None
        assert int(offset[1]) == line
        assert f"truncate -s {line}" in str(refused.value)
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["missing", "twice", "swapped"])
def test_a_journal_whose_records_are_not_all_there_in_order_is_refused(folder: Path, what: str) -> None:
    session, _ = play(folder, CALLS, value)
    session.wait(30)
    path = session.run_dir / JOURNAL_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    for n in range(len(lines) - 1):
        changed = {
            "missing": [*lines[:n], *lines[n + 1 :]],
            "twice": [*lines[: n + 1], *lines[n:]],
            "swapped": [*lines[:n], lines[n + 1], lines[n], *lines[n + 2 :]],
        }[what]
        path.write_bytes(b"".join(changed))
        with pytest.raises(MatForgeError, match=r"has record \d+ at byte \d+, where \d+ belongs"):
            resume(session.run_dir)
