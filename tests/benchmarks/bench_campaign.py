"""What a whole search costs, as a user starts it: wall time, processor time, memory of all processes.

    python tests/benchmarks/bench_campaign.py [PRESET ...] [--workers N] [--cold]

Prints one line a preset. Memory is the largest sum of the proportional set sizes of the driver,
the agent and the slots. ``--cold`` uses an empty cache, so kernels are compiled and the cover is built.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil


def proportional_mb(process: psutil.Process) -> float:
    """Sum over the process and all below it, MB."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 1e6


def measure(preset: str, workers: int, environment: dict[str, str], base: Path) -> None:
    """Run one preset and print its line."""
    command = [sys.executable, "-m", "matforge", "vacua", "search", "--preset", preset, "-q", "--json"]
    command += ["--dir", str(base / preset), "--workers", str(workers)]
    began = time.perf_counter()
    search = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    process, peak = psutil.Process(search.pid), 0.0
    while search.poll() is None:
        peak = max(peak, proportional_mb(process))
        psutil.wait_procs([process], timeout=0.25)
    wall = time.perf_counter() - began
    assert search.stdout is not None
    summary = json.loads(search.stdout.read())
    print(
        f"{preset:<14} {summary['count_mod_sign']:>7,} vacua  {wall:6.1f} s wall  "
        f"{summary['core_s']:7.1f} core-s in chores  {peak:6.0f} MB"
    )


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("presets", nargs="*", default=["p11169-slice", "p11169-full"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if options.cold:
            environment["MATFORGE_CACHE_DIR"] = str(Path(folder) / "cache")
            environment["NUMBA_CACHE_DIR"] = str(Path(folder) / "numba")
        for preset in options.presets:
            measure(preset, options.workers, environment, Path(folder))


if __name__ == "__main__":
    main()
