"""The strategy of the search, on scripted reports: everything is refined, written and merged exactly once."""

from __future__ import annotations

import io
import pickle
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from matforge.strategies import load, names

from matforge.engine.locations import read
from matforge.executors.protocol import Task
from matforge.executors.simulated import Outcome, SimulatedExecutor
from matforge.model import Failure, FailureKind, Location, RunState
from matforge.session import Session
from tests.harness import call, killed_after, outcome, play, records, ref, resume, scratch

CHORES = ("cover_part", "cover", "isd_chunk", "newton_refine", "shard_write", "merge")
BATCH = 10
BOOM = Failure(FailureKind.EXCEPTION, "boom")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory."""
    path = scratch()
    yield path
    shutil.rmtree(path)


class _Reader(pickle.Unpickler):
    """Arguments, with (input number, path) for the references."""

    def persistent_load(self, pid: Any) -> Any:
        return pid


class Script:
    """What the chores of a search report: drawn from their keys, so that it is the same in every run.

    Parameters
    ----------
    blocks, group
        Chunks, and chunks a shard.
    salt : int
        Draws the durations.
    fails : str
        The name of a chore that fails (the first of them).
    """

    def __init__(self, blocks: int, group: int, *, salt: int = 0, fails: str = "") -> None:
        self.blocks, self.group, self.fails = blocks, group, fails
        self.random = random.Random(salt)
        self.run_dir: Path | None = None
        self.starts: dict[str, int] = {}
        self.unfinished: dict[str, int] = {}
        self.groups: dict[str, int] = {}
        self.h_blocks: list[Any] = []

    def arguments(self, task: Task) -> Any:
        """What the chore was called with."""
        payload = task.payload
        if isinstance(payload, Location):
            assert self.run_dir is not None
            payload = read(self.run_dir, payload)
        return _Reader(io.BytesIO(payload)).load()[0]

    def __call__(self, task: Task) -> Outcome:
        """What becomes of a chore."""
        duration = self.random.uniform(0.1, 5.0)
        if task.name == self.fails:
            self.fails = ""
            return Outcome(duration, failure=BOOM)
        report: dict[str, Any] = {}
        if task.name == "cover":
            report = {"blocks": self.blocks, "block": 7, "group": self.group, "batch": BATCH, "h": 1}
        elif task.name == "isd_chunk":
            _, h, group, *rest = self.arguments(task)
            if not rest:
                self.h_blocks.append(h[1])
            report = {
                "group": group,
                "starts": (0, 0, 1, 9, 10, 11, 25)[task.seed % 7],
                "unfinished": (0, 0, 0, 1, 2)[task.seed % 5],
            }
            self.starts[task.attempt.chore_id] = report["starts"]
            self.unfinished[task.attempt.chore_id] = report["unfinished"]
        elif task.name == "newton_refine":
            report = {"group": self.arguments(task)[-1], "vacua": 1}
        if "group" in report and task.name != "cover":
            self.groups[task.attempt.chore_id] = report["group"]
        return Outcome(duration, task.seed, report)


def search(folder: Path, script: Script, workers: int = 3) -> tuple[Session, SimulatedExecutor]:
    """Play a search with two cover parts to its end."""
    parts = [ref("cover_part", 1), ref("cover_part", 2)]
    calls = [call("cover_part", 0), call("cover_part", 1), call("cover", parts)]
    session, executor = play(
        folder, calls, script, load("refine_promising")(), names=CHORES, workers=workers, layout="packed"
    )
    session.wait(60)
    return session, executor


def by_name(session: Session) -> Counter[str]:
    """How many chores there were of each name."""
    return Counter(record.chore.name for record in session.engine.records.values())


def only(session: Session, name: str) -> list[Any]:
    """The chores of one name."""
    return [r.chore for r in session.engine.records.values() if r.chore.name == name]


@pytest.mark.parametrize(("blocks", "group"), [(1, 1), (12, 1), (12, 4), (13, 4), (5, 32), (40, 7)])
def test_everything_is_refined_written_and_merged_exactly_once(folder: Path, blocks: int, group: int) -> None:
    script = Script(blocks, group)
    session, executor = search(folder, script)
    assert session.manager.status.state is RunState.COMPLETED
    found = by_name(session)
    assert found["isd_chunk"] == blocks + sum(script.unfinished.values())
    assert found["newton_refine"] == sum(-(-starts // BATCH) for starts in script.starts.values())
    assert found["shard_write"] == -(-blocks // group)
    assert found["merge"] == 1
    assert executor.history[-1].chore_id == only(session, "merge")[0].id


def test_each_block_of_h_is_visited_once_and_together_they_are_everything(folder: Path) -> None:
    script = Script(9, 4)
    search(folder, script)
    assert script.h_blocks == [("h", slice(7 * k, 7 * (k + 1))) for k in range(9)]


def test_a_shard_holds_the_whole_of_its_group_and_nothing_else(folder: Path) -> None:
    script = Script(13, 4)
    session, _ = search(folder, script)
    (cover,) = only(session, "cover")
    shards = only(session, "shard_write")
    groups = []
    for shard in shards:
        members = set(shard.inputs) - {cover.id}
        number = {script.groups[name] for name in members}
        assert len(number) == 1
        groups += number
        assert members == {name for name, group in script.groups.items() if group in number}
    assert sorted(groups) == [0, 1, 2, 3]
    (merge,) = only(session, "merge")
    assert set(merge.inputs) == {cover.id, *(shard.id for shard in shards)}


def test_a_search_in_which_nothing_can_occur_is_merged_at_once(folder: Path) -> None:
    session, _ = search(folder, Script(0, 4))
    assert session.manager.status.state is RunState.COMPLETED
    assert by_name(session) == {"cover_part": 2, "cover": 1, "merge": 1}


@pytest.mark.parametrize("name", CHORES)
def test_if_anything_fails_nothing_is_merged_and_nothing_more_is_begun(folder: Path, name: str) -> None:
    session, executor = search(folder, Script(12, 4, fails=name), workers=2)
    assert session.manager.status.state is RunState.FAILED
    assert not [r for r in only(session, "merge") if r.id in session.results]
    assert session.engine.decisions.strategy_errors == []
    failed = next(i for i, f in session.failures.items() if f == BOOM)
    # what runs may end, and the queue of the executor may be drawn on; nothing is spawned any more
    written = records(session.run_dir)
    at = next(n for n, r in enumerate(written) if r["e"] == "end" and r["id"] == failed)
    answered = next(
        n for n, r in enumerate(written)
        if n >= at and r.get("id") == failed and (r["e"] == "answer" or "w" not in r)
    )  # fmt: skip
    assert not [r for r in written[answered:] if any(d[0] == "spawn" for d in r.get("d", ()))]
    assert len(executor.history) <= len(session.engine.records)


def test_keys_and_results_do_not_depend_on_who_was_faster(folder: Path) -> None:
    seen = []
    for salt, workers in ((0, 1), (1, 2), (2, 5), (3, 16), (4, 3)):
        session, _ = search(folder, Script(20, 3, salt=salt), workers)
        seen.append(outcome(session))
        assert session.manager.status.state is RunState.COMPLETED
    assert len(seen[0]) > 50
    assert all(found == seen[0] for found in seen)


def test_a_search_killed_anywhere_is_merged_once(folder: Path) -> None:
    session, _ = search(folder, Script(8, 3))
    expected, written = outcome(session), records(session.run_dir)
    first = next(n for n, r in enumerate(written) if r["e"] == "submitted") + 1
    for count in range(first, len(written), 5):
        script = Script(8, 3, salt=count)
        script.run_dir = killed_after(session.run_dir, count, folder / f"killed-{count}")
        again, _ = resume(script.run_dir, script)
        assert again.wait(60) is RunState.COMPLETED
        assert outcome(again) == expected


def test_it_is_loaded_like_any_users_strategy() -> None:
    assert "refine_promising" in names()
    maker: Callable[[], Any] = load("refine_promising")
    assert type(maker()).__name__ == "RefinePromising"
