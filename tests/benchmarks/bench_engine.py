"""What a chore costs the driver, and how long it takes to go on with a large run.

    python tests/benchmarks/bench_engine.py [CHORES ...] [--simulated] [--profile]

Trivial warm chores on the real local executor, packed. Figures are CPU seconds of this process
alone (``time.process_time``), with graph, journal, store and the driver's end of the executor; the
agent and the slots are processes of their own. ``--simulated`` replaces the executor, so that the
engine is seen without it; ``--profile`` says where the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from matforge import Pipeline
from matforge.engine.store import JOURNAL_NAME
from matforge.executors.local import LocalExecutor
from matforge.executors.protocol import Executor
from matforge.executors.simulated import Outcome, SimulatedExecutor
from matforge.manager import FluxManager
from matforge.opening import begin, reopen
from matforge.settings import Settings

GOAL_MS = 0.3
GOAL_RESUME_S = 5.0


def trivial(x: int) -> int:
    """As little as a chore can do."""
    return x


def executor(simulated: bool) -> Executor:
    """Two slots, real or not."""
    if simulated:
        # a thousandth of a second each: the journal is synced about as often as in a real run
        return SimulatedExecutor(lambda task: Outcome(0.001, task.seed), workers=2)
    return LocalExecutor(2)


def measure(chores: int, folder: Path, simulated: bool, profile: bool) -> dict[str, float]:
    """CPU milliseconds a chore of each step, and seconds to resume."""
    figures: dict[str, float] = {"chores": chores}
    pipe = Pipeline(folder)
    function = pipe.chore()(trivial)
    began = time.process_time()
    for number in range(chores):
        function(number)
    figures["record_ms"] = 1e3 * (time.process_time() - began) / chores

    profiler = cProfile.Profile() if profile else None
    if profiler is not None:
        FluxManager.run = _profiled(FluxManager.run, profiler)  # type: ignore[method-assign]
    began, wall = time.process_time(), time.perf_counter()
    settings = Settings(folder, layout="packed", quiet=True, log_delay=1.0)
    session = begin(settings, pipe.registry, pipe._calls, executor=executor(simulated))
    figures["begin_ms"] = 1e3 * (time.process_time() - began) / chores
    session.wait()
    assert len(session.outcome()) == chores
    figures["driver_ms"] = 1e3 * (time.process_time() - began) / chores
    figures["chores_per_s"] = chores / (time.perf_counter() - wall)
    figures["journal_bytes"] = (session.run_dir / JOURNAL_NAME).stat().st_size / chores
    if profiler is not None:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(35)

    cut(session.run_dir, 2 + chores + chores // 2)
    for label in ("half", "whole"):
        began, wall = time.process_time(), time.perf_counter()
        again = reopen(session.run_dir, made=executor(simulated), quiet=True)
        figures[f"resume_{label}_s"] = time.process_time() - began
        figures[f"resume_{label}_wall_s"] = time.perf_counter() - wall
        again.wait()
        assert len(again.outcome()) == chores
    return figures


def _profiled(run: Any, profiler: cProfile.Profile) -> Any:
    def wrapped(manager: FluxManager) -> Any:
        profiler.enable()
        try:
            return run(manager)
        finally:
            profiler.disable()

    return wrapped


def cut(run_dir: Path, count: int) -> None:
    """Forget all journal records but the first ``count``."""
    with (run_dir / JOURNAL_NAME).open("rb") as file:
        for _ in range(count):
            file.readline()
        end = file.tell()
    os.truncate(run_dir / JOURNAL_NAME, end)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chores", nargs="*", type=int, default=[20_000, 100_000])
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    for chores in options.chores:
        folder = Path(tempfile.mkdtemp(prefix="bench-engine-"))
        try:
            figures = measure(chores, folder, options.simulated, options.profile)
        finally:
            shutil.rmtree(folder)
        print("  ".join(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)
        good = figures["driver_ms"] < GOAL_MS and figures["resume_half_s"] < GOAL_RESUME_S
        print("within the goals" if good else "BEYOND THE GOALS", flush=True)


if __name__ == "__main__":
    main()
