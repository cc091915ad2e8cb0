"""Trivial chores on the local executor: CPU of the driver per chore, and chores a second.

Run: ``PYTHONPATH=. python tests/benchmarks/bench_local.py [CHORES] [WORKERS] [packed|full]``
"""

from __future__ import annotations

import pickle
import sys
import tempfile
import time
from pathlib import Path

import cloudpickle
import psutil

from matforge.executors.local import LocalExecutor
from matforge.executors.protocol import Finished, RunContext, Task
from matforge.model import Attempt, Resources


def trivial(number: int) -> int:
    """As little as a chore can do."""
    return number


def worker_cpu(agent: psutil.Process) -> dict[str, float]:
    """CPU seconds of the agent, and of its slots together."""
    slots = [sum(p.cpu_times()[:2]) for p in agent.children()]
    return {"agent": sum(agent.cpu_times()[:2]), "slots": sum(slots)}


def run(chores: int, workers: int, layout: str) -> dict[str, float]:
    """Feed the executor as a manager does: never more in flight than it asks for."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        registry = run_dir / "out" / "registry"
        registry.mkdir(parents=True)
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        (registry / "trivial").write_bytes(cloudpickle.dumps(trivial))
        executor = LocalExecutor(workers, max_chores=10**6)
        executor.start(RunContext(run_dir, "bench", 1))
        resources = Resources()
        tasks = []
        for i in range(chores + 1):
            name = f"chore-trivial-{i:06d}"
            directory = f"out/{name}" if layout == "full" else None
            payload = pickle.dumps(((i,), {}))
            tasks.append(
                Task(
                    Attempt(name, 1, 1), "trivial", resources, function="trivial", payload=payload,
                    directory=directory, seed=i,
                )
            )  # fmt: skip
        executor.submit(tasks[:1])
        while not any(isinstance(r, Finished) for r in executor.poll(10.0)):
            pass  # the slot is warm now
        depth = executor.capacity().queue_depth + workers
        agent = psutil.Process(executor._agent.process.pid) if executor._agent else psutil.Process()
        before = worker_cpu(agent)
        sent, done = 1, 0
        wall, cpu = time.perf_counter(), time.thread_time()
        while done < chores:
            room = depth - (sent - 1 - done)
            if room > 0 and sent < len(tasks):
                executor.submit(tasks[sent : sent + room])
                sent = min(sent + room, len(tasks))
            for report in executor.poll(10.0):
                if isinstance(report, Finished):
                    assert report.failure is None, report.failure
                    done += 1
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
        after = worker_cpu(agent)
        executor.close()
    spent = {f"{k}_us_per_chore": round(1e6 * (after[k] - before.get(k, 0.0)) / chores, 1) for k in after}
    return {"chores_per_s": chores / wall, "driver_us_per_chore": round(1e6 * cpu / chores, 1), **spent}


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    slots = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    print(run(count, slots, sys.argv[3] if len(sys.argv) > 3 else "packed"))
