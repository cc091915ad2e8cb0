"""Writers that are killed, and writers at the same time: a program that forks after importing once.

Usage: ``forked.py kill ACTION FOLDER``, ``forked.py crowd FOLDER`` or ``forked.py search FOLDER``; prints
one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from matforge.vulcan import layout
from matforge.vulcan.results import stage_batch, target_of
from matforge.vulcan.writer import SYNCED_DIRNAME, list_pending, list_shards, move_to
from tests.vulcan.batches import GEOMETRY, forge, vacua

STEPS = frozenset(
    ("open", "write", "flush", "fdatasync", "link", "unlink", "replace", "rename", "mkdir", "close", "stat")
)
"""Calls into the operating system before which a writer may be killed."""
PROCESSES, WRITES = 6, 10


def die_before(step: int) -> None:
    """Kill this process before its ``step``-th call into the operating system."""
    left = step

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        if event == "c_call" and argument.__name__ in STEPS:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.setprofile(watch)


def forked(work: Callable[[], None]) -> int:
    """Do ``work`` in a child; how it ended (a negative number is a signal)."""
    child = os.fork()
    if child == 0:
        try:
            work()
            sys.setprofile(None)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write(folder: Path) -> None:
    """Stage one batch under an id of its own."""
    forge(folder).write(vacua(), GEOMETRY, tadpole_charge=12, run_id="one")


def move(folder: Path) -> None:
    """Publish what is pending."""
    handle = forge(folder)
    for shard in list_pending(handle.staging_dir):
        move_to(shard, handle.staging_dir, SYNCED_DIRNAME)


def stage_overlapping(folder: Path, batches: int = 2, rows: int = 6) -> None:
    """Stage batches of a search, each of which has half of its vacua in common with the next."""
    found = pa.table(vacua(3 * batches + rows).assign(n_flux=3))
    for number in range(batches):
        some = found.slice(3 * number, rows)
        stage_batch(target_of(forge(folder)), GEOMETRY, some, folder / "run", str(number))


def staged_fluxes(folder: Path) -> list[list[int]]:
    """The flux vectors of all staged rows, sorted."""
    shards = list_pending(forge(folder).staging_dir)
    tables = [pq.ParquetFile(shard.parquet_path).read(columns=["flux"]) for shard in shards]
    return sorted(flux for table in tables for flux in table["flux"].to_pylist())


def search(folder: Path) -> dict[str, Any]:
    """Batches are staged by several processes at once, each batch by all of them."""
    children = []
    for _ in range(PROCESSES):
        child = os.fork()
        if child == 0:
            try:
                stage_overlapping(folder, batches=12)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(1)
            os._exit(0)
        children.append(child)
    bad = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    return {"bad": bad, "fluxes": staged_fluxes(folder)}


def state_of(folder: Path) -> dict[str, Any]:
    """What lies there, and whether it can be read."""
    staging = forge(folder).staging_dir
    found: dict[str, Any] = {"strange": []}
    for state in ("pending", "synced"):
        inside = layout.contents(staging, state)
        found[state] = [shard.n_rows for shard in list_shards(staging, state)]
        found["strange"] += [str(path) for path in inside.foreign]
        found[f"{state}_sidecars"] = sum(
            path.name.endswith(".meta.json") for path in staging.glob(f"{state}/_*")
        )
    return found


def kill(action: str, folder: Path) -> list[dict[str, Any]]:
    """Kill at every step in turn, until the work is done unharmed; the states after the kill and after
    doing it again.
    """
    work = {"write": write, "move": move, "stage": stage_overlapping}[action]
    seen = []
    for step in range(500):
        place = folder / str(step)
        if action == "move":
            assert forked(lambda place=place: write(place)) == 0
        ended = forked(lambda place=place, step=step: (die_before(step), work(place)))
        after = state_of(place)
        again = forked(lambda place=place: work(place))
        seen.append({"ended": ended, "after": after, "again": again, "finally": state_of(place)})
        if action == "stage":
            seen[-1]["fluxes"] = staged_fluxes(place)
        if ended == 0:
            return seen
    raise AssertionError("it never ends")


def crowd(folder: Path) -> dict[str, int]:
    """Several processes stage the same batch again and again, and once under one id."""

    def work() -> None:
        for _ in range(WRITES):
            forge(folder).write(vacua(), GEOMETRY, tadpole_charge=12, provenance={"seed": 42})
        write(folder)

    children = []
    for _ in range(PROCESSES):
        child = os.fork()
        if child == 0:
            try:
                work()
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(1)
            os._exit(0)
        children.append(child)
    bad = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    return {"bad": bad, "shards": len(list_pending(forge(folder).staging_dir))}


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        print(json.dumps(kill(sys.argv[2], Path(sys.argv[3]))))
    else:
        print(json.dumps({"crowd": crowd, "search": search}[sys.argv[1]](Path(sys.argv[2]))))
