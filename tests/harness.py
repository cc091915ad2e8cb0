"""Runs on the simulated executor: what becomes of a chore depends on its key, never on when it runs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matforge.chore import Call, ChoreRegistry
from matforge.engine import journal, results
from matforge.engine.store import JOURNAL_NAME
from matforge.executors.protocol import Task
from matforge.executors.simulated import Outcome, SimulatedExecutor
from matforge.model import OutputReference, Resources
from matforge.opening import begin, reopen
from matforge.packing import pack
from matforge.session import Session
from matforge.settings import Settings
from matforge.strategy import FutureProcessingStrategy

Behaviour = Callable[[Task], Outcome]


def nothing(*args: Any) -> None:
    """Stands for every function: the simulated executor calls none."""


def registry(*names: str) -> ChoreRegistry:
    """A registry of functions that nobody will call."""
    entries = ChoreRegistry()
    for name in names:
        entries.register(nothing, name=name)
    return entries


def call(name: str, *arguments: Any, nice: int = 0, key: str | None = None, cores: int = 1) -> Call:
    """A recorded call; ``arguments`` may hold references."""
    payload, inputs = pack((arguments, {}))
    return Call(name, payload, inputs, name, Resources(cores_per_task=cores), nice, key)


def ref(name: str, sequence: int) -> OutputReference:
    """A reference to the chore that was recorded as number ``sequence``."""
    return OutputReference(f"chore-{name}-{sequence:04d}")


def scratch() -> Path:
    """A new folder, in memory where that is possible: these tests write many small files."""
    return Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))


def play(
    base: Path,
    calls: Sequence[Call],
    behaviour: Behaviour = lambda task: Outcome(),
    strategy: FutureProcessingStrategy | None = None,
    *,
    names: Sequence[str] = (),
    executor: SimulatedExecutor | None = None,
    workers: int = 3,
    **settings: Any,
) -> tuple[Session, SimulatedExecutor]:
    """Begin a run; its session and executor."""
    known = registry(*dict.fromkeys([*names, *(c.name for c in calls)]))
    executor = executor or SimulatedExecutor(behaviour, workers=workers)
    options = Settings(**{"basedir": base, "quiet": True, "log_delay": 60.0, **settings})
    return begin(options, known, calls, strategy, executor=executor), executor


def resume(
    run_dir: Path, behaviour: Behaviour = lambda task: Outcome(), *, workers: int = 3
) -> tuple[Session, SimulatedExecutor]:
    """Go on with a run; its session and the new executor."""
    executor = SimulatedExecutor(behaviour, workers=workers)
    return reopen(run_dir, made=executor, quiet=True), executor


def outcome(session: Session) -> dict[str, tuple[str, Any, str, str]]:
    """What became of every chore, by key: state, result, kind of failure and the key of its root."""
    run = session.engine
    found = {}
    for name, node in run.graph.nodes.items():
        where, failure = run.records[name].result, node.failure
        assert node.state is not None
        value = None if where is None else results.load(run.store.path, where)
        root = run.records[failure.root].chore.key if failure and failure.root else ""
        found[run.records[name].chore.key] = (
            node.state.value, value, failure.kind.value if failure else "", root,
        )  # fmt: skip
    return found


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The journal."""
    return journal.read(run_dir / JOURNAL_NAME)[0]


def killed_after(run_dir: Path, count: int, copy: Path) -> Path:
    """The run directory as it would be, had the driver died right after journal record ``count``.

    Everything else is as it was at the end: files that nobody had heard of yet lie about.
    """
    shutil.copytree(run_dir, copy)
    with (copy / JOURNAL_NAME).open("rb") as file:
        for _ in range(count):
            file.readline()
        end = file.tell()
    os.truncate(copy / JOURNAL_NAME, end)
    return copy


def completed_in(found: Sequence[dict[str, Any]]) -> set[str]:
    """Chores that journal records say have completed."""
    return {r["id"] for r in found if r["e"] == "end" and r["s"] == "completed"}
