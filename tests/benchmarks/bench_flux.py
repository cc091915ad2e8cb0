"""Flux: the search beside the local executor, warm chores, commands, a chain, and what an idle run costs.

Run on one broker: ``flux start python tests/benchmarks/bench_flux.py [NAME ...]``
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from matforge import Pipeline
from matforge.engine.store import find_run

PRESET = os.environ.get("BENCH_PRESET", "p11169-slice")


def trivial(i: int) -> int:
    """As little as a chore can do."""
    return i


def pipeline(folder: str, **options: object) -> Pipeline:
    """A pipeline on Flux."""
    return Pipeline(basedir=folder, executor="flux", **options)  # type: ignore[arg-type]


def search() -> dict[str, object]:
    """Wall time of a search under both executors, interleaved, median of three; do the bytes agree?"""
    took: dict[str, list[float]] = {"local": [], "flux": []}
    data = set()
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(4):  # the first compiles
            for executor, times in took.items():
                where = Path(folder) / f"{executor}{turn}"
                arguments = ["--preset", PRESET, "--executor", executor, "--dir", str(where), "-q", "--json"]
                begun = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", "matforge", "vacua", "search", *arguments],
                    check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                if turn:
                    times.append(time.perf_counter() - begun)
                data.add((find_run(where) / "vacua.parquet").read_bytes())
    median = {name: round(statistics.median(times), 2) for name, times in took.items()}
    return {**median, "ratio": round(median["flux"] / median["local"], 3), "same_bytes": len(data) == 1}


def warm(count: int = 20_000) -> dict[str, object]:
    """Trivial warm chores a second, packed, from submit to the last result."""
    with tempfile.TemporaryDirectory() as folder, pipeline(folder, layout="packed") as pipe:
        square = pipe.chore()(trivial)
        square.map(range(count))
        begun = time.perf_counter()
        pipe.submit(quiet=True).result()
        return {"chores": count, "chores_per_s": round(count / (time.perf_counter() - begun))}


PEER = """
import sys, time
from matensemble.pipeline import Pipeline
pipe = Pipeline()

@pipe.chore()
def trivial(i: int) -> int:
    return i

count = int(sys.argv[1])
for i in range(count):
    trivial(i)
begun = time.perf_counter()
pipe.submit(log_delay=5)
assert len(pipe.results()) == count
print(count / (time.perf_counter() - begun), file=open(sys.argv[2], "w"))
"""


def peer(count: int = 100) -> dict[str, object]:
    """The same through MatEnsemble, with the interpreter that ``MATFORGE_MATENSEMBLE_PYTHON`` names."""
    python = os.environ.get("MATFORGE_MATENSEMBLE_PYTHON")
    if not python:
        return {"skipped": "MATFORGE_MATENSEMBLE_PYTHON does not name an interpreter with matensemble"}
    with tempfile.TemporaryDirectory() as folder:
        script, told = Path(folder) / "peer.py", Path(folder) / "rate"
        script.write_text(PEER)
        subprocess.run(
            [python, str(script), str(count), str(told)], cwd=folder, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return {"chores": count, "matensemble_per_s": round(float(told.read_text()), 2)}


def flat(count: int = 100_000) -> dict[str, object]:
    """Jobs and memory (MiB) of the broker before and after many warm chores."""

    def broker() -> tuple[int, float]:
        pid = subprocess.run(["flux", "getattr", "broker.pid"], capture_output=True, text=True, check=True)
        listed = subprocess.run(["flux", "jobs", "-ano", "{id}"], capture_output=True, text=True, check=True)
        return len(listed.stdout.split()), round(psutil.Process(int(pid.stdout)).memory_info().rss / 2**20, 1)

    warm(1000)
    before = broker()
    rate = warm(count)["chores_per_s"]
    return {"chores": count, "chores_per_s": rate, "jobs_and_memory": [before, broker()]}


def commands(count: int = 300) -> dict[str, object]:
    """Commands a second in the job lane, and through ``flux submit --cc``."""
    begun = time.perf_counter()
    subprocess.run(
        ["flux", "submit", "--quiet", "--wait", f"--cc=1-{count}", "true"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    plain = time.perf_counter() - begun
    with tempfile.TemporaryDirectory() as folder, pipeline(folder) as pipe:
        for _ in range(count):
            pipe.exec(["true"])
        begun = time.perf_counter()
        pipe.submit(quiet=True).result()
        ours = time.perf_counter() - begun
    return {"flux_submit_per_s": round(count / plain, 1), "matforge_per_s": round(count / ours, 1)}


def chain(length: int = 50) -> dict[str, object]:
    """Milliseconds a link of a chain of job-lane chores."""
    with tempfile.TemporaryDirectory() as folder, pipeline(folder) as pipe:
        last = pipe.exec(["true"])
        for _ in range(length - 1):
            last = pipe.exec(["true"], deps=[last])
        begun = time.perf_counter()
        pipe.submit(quiet=True).result()
        return {"ms_a_link": round(1000 * (time.perf_counter() - begun) / length, 1)}


def jobs(count: int = 30) -> dict[str, object]:
    """Milliseconds a chore of those that become Flux jobs (mpi=True), one after the other."""
    with tempfile.TemporaryDirectory() as folder, pipeline(folder) as pipe:
        for _ in range(count):
            pipe.exec(["true"], num_tasks=2, mpi=True)
        begun = time.perf_counter()
        pipe.submit(quiet=True).result()
        return {"ms_a_job": round(1000 * (time.perf_counter() - begun) / count, 1)}


def idle(seconds: float = 20.0) -> dict[str, object]:
    """Share of a core that driver and agent take while one chore waits."""
    with tempfile.TemporaryDirectory() as folder:
        pipe = pipeline(folder)
        wait = pipe.chore()(time.sleep)
        wait(seconds + 10)
        run = pipe.submit(quiet=True)
        time.sleep(5)
        agents = [
            p
            for p in psutil.process_iter(["cmdline"])
            if any("worker.remote" in word for word in p.info["cmdline"] or [])
        ]
        watched = [psutil.Process(), *agents]
        before = [sum(p.cpu_times()[:2]) for p in watched]
        time.sleep(seconds)
        spent = [sum(p.cpu_times()[:2]) - b for p, b in zip(watched, before, strict=True)]
        run.cancel()
        with contextlib.suppress(Exception):
            pipe.close()
    return {"percent_of_a_core": [round(100 * s / seconds, 2) for s in spent]}


BENCHMARKS: dict[str, Callable[[], dict[str, object]]] = {
    "search": search, "warm": warm, "peer": peer, "flat": flat, "commands": commands, "chain": chain,
    "idle": idle, "jobs": jobs,
}  # fmt: skip

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHMARKS:
        print(name, BENCHMARKS[name](), flush=True)
