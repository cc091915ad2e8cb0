"""Staging and reading back: CPU and wall seconds of what a campaign and its readers do most.

Run: ``PYTHONPATH=. python tests/benchmarks/bench_vulcan.py [SHARDS]`` (default 10,000, of 8 rows each).
Everything lies in a temporary folder (``TMPDIR``), so that decides which disk is measured. What was staged
is read back twice: ``by hand`` from shards that were moved to ``synced/`` one by one, and ``synced`` after
a real sync to the loopback Hub, as it is in use.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# first: it sets how the Hub's client works
from tests.benchmarks.bench_vulcan_sync import Hub, sync  # isort: skip

from matforge.vulcan import FeatureSpec, Vulcan
from matforge.vulcan.writer import SYNCED_DIRNAME, list_pending, list_shards, move_to

ROWS = 8
REPO = "bench/forge"
MEMORY = '''
import sys
from matforge.vulcan import VulcanReader
def peak() -> float:
    """Most memory ever held, in MB; what the parent held when it forked does not count."""
    text = open("/proc/self/status").read()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


import pandas, pyarrow.dataset
before = peak()
frame = VulcanReader.from_local(sys.argv[1]).query(columns=["tau_im"])
print(len(frame), peak(), before)
'''


def vacua(rows: int, seed: int, h12: int = 2) -> dict[str, Any]:
    """Random vacua, as a search gives them."""
    rng = np.random.default_rng(seed)
    return {
        "flux": list(rng.integers(-9, 10, (rows, 4 * h12 + 4))),
        "moduli_re": list(rng.normal(0, 0.5, (rows, h12))),
        "moduli_im": list(2 + rng.random((rows, h12))),
        "tau_re": rng.normal(0, 0.1, rows),
        "tau_im": 1 + rng.random(rows),
        "residual": 1e-11 * rng.random(rows),
        "is_susy": np.ones(rows, bool),
        "n_iterations": rng.integers(5, 30, rows),
    }


@contextmanager
def measured(name: str, results: dict[str, Any]) -> Iterator[None]:
    """Note wall and CPU seconds under ``name``."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    results[name] = {"wall_s": round(wall, 3), "cpu_s": round(cpu, 3)}


def write(forge: Vulcan, shards: int) -> None:
    """Stage ``shards`` batches, ten geometries in turn a thousand."""
    for number in range(shards):
        geometry = {"h11": 3, "h12": 2, "ks_id": number % 1000, "triang_id": 0}
        forge.write(
            vacua(ROWS, number), geometry, tadpole_charge=12, solver="newton", provenance={"seed": number}
        )


def bare_loop(folder: Path, again: Path, shards: int) -> None:
    """The same files with the same syncs, and nothing else: a bound on what staging can cost."""
    sources = sorted(folder.glob("h12_*.parquet"))[:shards]
    table = pq.ParquetFile(sources[0]).read()
    sidecar = (folder / f"_{sources[0].name}.meta.json").read_bytes()
    again.mkdir()
    for number in range(shards):
        sink = pa.BufferOutputStream()
        options = {"compression": "snappy", "use_dictionary": False, "store_schema": False}
        pq.write_table(table, sink, write_page_checksum=True, **options)
        temporary = again / f"{number}.tmp"
        with temporary.open("xb") as file:
            file.write(sink.getvalue())
            file.flush()
            os.fdatasync(file.fileno())
        os.link(temporary, again / f"{number}.parquet")
        temporary.unlink()
        (again / f"{number}.json.tmp").write_bytes(sidecar)
        os.replace(again / f"{number}.json.tmp", again / f"{number}.json")


def read(staging: Path, results: dict[str, Any], flow: str) -> None:
    """What a reader does, each in a reader of its own; the folder has just changed."""

    def fresh() -> Vulcan:
        return Vulcan(repo=REPO, staging_dir=staging)

    run_id = list_shards(staging, SYNCED_DIRNAME)[-1].run_id
    spec = FeatureSpec(features=["flux", "moduli_re", "moduli_im", "tau_re", "tau_im"], list_max_len=12)
    steps: dict[str, Callable[[], Any]] = {
        "catalogue, first": lambda: fresh().catalog(),
        "catalogue, again": lambda: fresh().catalog(),
        "one shard, the folder just changed": lambda: fresh().query(run_id=run_id),
        "one geometry": lambda: fresh().query(ks_id=7),
        "all rows, first": lambda: fresh().query(),
        "all rows, again": lambda: fresh().query(),
        "one split": lambda: fresh().ml_view().as_dataframe("train", feature_spec=spec),
        "one shard, listed again": lambda: fresh().query(run_id=run_id),
        "one shard": lambda: fresh().query(run_id=run_id),
    }
    for name, step in steps.items():
        if name == "one shard, listed again":
            past = (time.time_ns() - 10**10,) * 2
            os.utime(staging / SYNCED_DIRNAME, ns=past)  # it is quiet from here on
        with measured(f"{flow}: {name}", results):
            found = step()
        results[f"{flow}: {name}"]["rows"] = len(found)


def large(base: Path, results: dict[str, Any]) -> None:
    """A batch of 100,000 rows, and one column of a million."""
    forge = Vulcan(repo=REPO, staging_dir=base / "large")
    geometry = {"h11": 3, "h12": 2, "ks_id": 1, "triang_id": 0}
    for number in range(10):
        batch = vacua(100_000, number)
        with measured("write 100,000 rows", results):
            shard = forge.write(batch, geometry, tadpole_charge=12)
        move_to(shard, forge.staging_dir, SYNCED_DIRNAME)
    command = [sys.executable, "-c", MEMORY, str(forge.staging_dir)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, peak, before = map(float, ended.stdout.split())
    results["one column of a million"] = {
        "rows": int(rows), "peak_MB": round(peak), "peak_before_MB": round(before)
    }  # fmt: skip


def main(shards: int) -> dict[str, Any]:
    """All figures."""
    results: dict[str, Any] = {"shards": shards}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        forge = Vulcan(repo=REPO, staging_dir=base / "staging", project="bench")
        with measured("write", results):
            write(forge, shards)
        with measured("bare loop", results):
            bare_loop(forge.staging_dir / "pending", base / "bare", shards)
        shutil.copytree(forge.staging_dir, base / "by-hand")
        with Hub(REPO) as hub:
            results["sync"] = sync(forge, hub)
        read(forge.staging_dir, results, "synced")
        with measured("move to synced by hand", results):
            for shard in list_pending(base / "by-hand"):
                move_to(shard, base / "by-hand", SYNCED_DIRNAME)
        read(base / "by-hand", results, "by hand")
        large(base, results)
    results["peak_MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return results


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000), indent=1))
