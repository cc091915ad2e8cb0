"""What single things cost: a result that is kept or taken from the cache, a command, an isolated function.

Run as ``python tests/benchmarks/bench_costs.py``; the figures stand in docs/cache.md and docs/workers.md.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from matforge import Pipeline

CHORES = 3_000
PROGRAMS = 100


def trivial(number: int) -> int:
    """Nearly nothing."""
    return number


def run(folder: Path, chores: int, **options: Any) -> tuple[float, float]:
    """Seconds of the driver's processor, and on the clock, for one chore of a packed run."""
    pipe = Pipeline(folder, workers=2, layout="packed")
    pipe.chore(name="trivial", **options)(trivial).map(range(chores))
    return ended(pipe, chores)


def ended(pipe: Pipeline, chores: int) -> tuple[float, float]:
    """See :func:`run`."""
    spent, begun = time.process_time(), time.perf_counter()
    results = pipe.submit(quiet=True).result()
    assert len(results) == chores
    return (time.process_time() - spent) / chores, (time.perf_counter() - begun) / chores


def cached() -> dict[str, float]:
    """Milliseconds of the driver for a chore whose result is taken, and for keeping one."""
    with tempfile.TemporaryDirectory() as folder:
        plain, _ = run(Path(folder), CHORES)
        keeping, _ = run(Path(folder), CHORES, cache=True)
        taking, _ = run(Path(folder), CHORES, cache=True)
    return {"hit_ms": round(1000 * taking, 2), "keep_ms": round(1000 * (keeping - plain), 2)}


def programs() -> dict[str, float]:
    """Milliseconds on the clock from one command, or isolated function, to the next, on one core."""
    with tempfile.TemporaryDirectory() as folder:
        pipe = Pipeline(folder, workers=1)
        for _ in range(PROGRAMS):
            pipe.exec(["true"])
        _, command = ended(pipe, PROGRAMS)
        pipe = Pipeline(folder, workers=1)
        pipe.chore(name="trivial", isolated=True)(trivial).map(range(PROGRAMS // 4))
        _, isolated = ended(pipe, PROGRAMS // 4)
    return {"command_ms": round(1000 * command, 1), "isolated_ms": round(1000 * isolated, 1)}


if __name__ == "__main__":
    print(json.dumps(cached() | programs()))
