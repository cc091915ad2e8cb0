"""The rolling budget: never exceeded, by however many processes, whatever is in its file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matforge.model import UsageError
from matforge.vulcan.budget import CommitBudget
from tests.vulcan.staging import NOW, Clock

ROOT = Path(__file__).parents[2]


def budget(folder: Path, clock: Clock, limit: int = 3, window_s: float = 100.0) -> CommitBudget:
    return CommitBudget(folder, limit, window_s, clock)


def test_slots_come_back_when_the_window_has_moved_on(tmp_path: Path) -> None:
    clock = Clock()
    slots = budget(tmp_path, clock)
    assert slots.remaining() == 3
    taken = []
    for _ in range(5):
        taken.append(slots.take())
        clock.now += 10
    assert taken == [True, True, True, False, False]
    assert slots.next_free() == NOW + 100
    clock.now = NOW + 100.5
    assert slots.remaining() == 1
    assert slots.take()
    assert not slots.take()


def test_looking_writes_nothing(tmp_path: Path) -> None:
    assert budget(tmp_path / "none", Clock()).remaining() == 3
    assert not (tmp_path / "none").exists()


def test_the_file_says_budget_window_and_times(tmp_path: Path) -> None:
    budget(tmp_path, Clock()).take()
    stored = json.loads((tmp_path / "_commit_budget.json").read_text())
    assert stored == {"budget": 3, "window_s": 100.0, "timestamps": [NOW]}
    assert [path.name for path in tmp_path.iterdir()] == ["_commit_budget.json"]


def test_four_processes_never_take_more_than_there_is(tmp_path: Path) -> None:
    """D16: the reference grants 230 of 90."""
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from matforge.vulcan.budget import CommitBudget
        print(sum(CommitBudget(Path({str(tmp_path)!r}), 20).take() for _ in range(15)))
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    granted = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(granted) == 20
    assert len(json.loads((tmp_path / "_commit_budget.json").read_text())["timestamps"]) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["_commit_budget.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"[1,2]", b"null", b"", b"\xff\xfe", b"{", b'{"timestamps": 3, "window_s": 1}',
        b'{"timestamps": [NaN], "window_s": 100}', b'{"timestamps": ["x"], "window_s": 100}',
        b'{"timestamps": [Infinity], "window_s": 100}', b'{"timestamps": [true], "window_s": 100}',
        b'{"timestamps": [], "window_s": "soon"}', b'{"timestamps": []}',
    ],
)  # fmt: skip
def test_a_damaged_file_counts_as_spent_until_a_window_has_passed(content: bytes, tmp_path: Path) -> None:
    """D17: the reference dies, or silently has its full budget again."""
    path = tmp_path / "_commit_budget.json"
    path.write_bytes(content)
    os.utime(path, (NOW - 40, NOW - 40))
    clock = Clock()
    slots = budget(tmp_path, clock)
    assert slots.remaining() == 0
    assert not budget(tmp_path, clock, limit=50).take()
    path.write_bytes(content)
    os.utime(path, (NOW - 40, NOW - 40))
    assert "is damaged" in slots.problem()
    clock.now = NOW + 61
    assert slots.take()
    assert slots.problem() == ""


def test_slots_dated_in_the_future_expire_one_window_from_now(tmp_path: Path) -> None:
    """D17: a clock that was set back blocks the reference for days, and shields what has expired."""
    stamps = [NOW + 864_000, NOW - 500, NOW - 50]
    (tmp_path / "_commit_budget.json").write_text(json.dumps({"window_s": 100, "timestamps": stamps}))
    clock = Clock()
    slots = budget(tmp_path, clock)
    assert slots.remaining() == 1
    assert slots.take()
    clock.now += 101
    assert slots.remaining() == 3


def test_a_handle_with_a_shorter_window_does_not_forget_for_one_with_a_longer(tmp_path: Path) -> None:
    clock = Clock()
    long, short = budget(tmp_path, clock, window_s=1000), budget(tmp_path, clock, window_s=1)
    assert all(long.take() for _ in range(3))
    clock.now += 10
    assert short.take()
    assert long.remaining() == 0


def test_a_lock_left_by_a_killed_process_is_no_obstacle(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    from matforge.lease import place

    holder = {"token": "x", **place(), "pid": dead.pid, "start": "1", "renewed_at": NOW}
    (tmp_path / "_commit_budget.json.lock").write_text(json.dumps(holder))
    assert budget(tmp_path, Clock()).take()


def test_a_person_can_reset_it(tmp_path: Path) -> None:
    slots = budget(tmp_path, Clock())
    assert all(slots.take() for _ in range(3))
    slots.reset()
    assert slots.remaining() == 3


@pytest.mark.parametrize(
    "bad", [{"limit": 0}, {"limit": -5}, {"limit": 2.5}, {"limit": True}, {"window_s": 0}]
)
def test_a_budget_that_would_never_publish_is_refused(bad: dict[str, Any], tmp_path: Path) -> None:
    """D24: the reference accepts 0 and -5, and publishes nothing without a word."""
    with pytest.raises(UsageError):
        budget(tmp_path, Clock(), **bad)


@given(
    steps=st.lists(st.floats(0, 60), max_size=40),
    limit=st.integers(1, 5),
    window_s=st.floats(1, 120),
)
def test_in_no_window_are_there_more_than_the_limit(
    tmp_path_factory: pytest.TempPathFactory, steps: list[float], limit: int, window_s: float
) -> None:
    clock = Clock()
    slots = CommitBudget(tmp_path_factory.mktemp("budget"), limit, window_s, clock)
    granted = []
    for step in steps:
        clock.now += step
        if slots.take():
            granted.append(clock.now)
    for first, late in zip(granted, granted[limit:], strict=False):
        assert late - first >= window_s - 1e-6  # what a float of today's date resolves
