"""Publishing to the loopback Hub: seconds, requests and bytes for many small shards and for one large one.

Run: ``PYTHONPATH=. python tests/benchmarks/bench_vulcan_sync.py [SHARDS]`` (default 10,000, of 8 rows
each). The Hub is a process of its own, so that CPU seconds are the publisher's alone. Prints JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_TELEMETRY="1")

from matforge.vulcan import Vulcan
from tests.vulcan.staging import REPO, stage, vacua

ROOT = Path(__file__).parents[2]
HUB = """
    import sys
    from tests.vulcan.hub import LoopbackHub
    with LoopbackHub() as hub:
        hub.create({repo!r})
        print(hub.endpoint, flush=True)
        for line in sys.stdin:
            files = hub.repositories[{repo!r}].files(".parquet")
            print(len(hub.log), hub.count("/commit/"), len(files), sum(map(len, files.values())), flush=True)
"""


class Hub:
    """A loopback Hub with one repository, in a process of its own."""

    def __init__(self, repo: str = REPO) -> None:
        self.repo = repo

    def __enter__(self) -> Hub:
        command = [sys.executable, "-c", textwrap.dedent(HUB.format(repo=self.repo))]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.endpoint = self._ask("")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if line:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def figures(self) -> dict[str, int]:
        """Requests, commits, data files and their bytes so far."""
        numbers = map(int, self._ask("?\n").split())
        return dict(zip(("requests", "commits", "files", "bytes"), numbers, strict=True))


def sync(handle: Vulcan, hub: Hub) -> dict[str, Any]:
    """Publish what is pending, and what that took."""
    wall, cpu = time.perf_counter(), time.process_time()
    report = handle.sync(endpoint=hub.endpoint)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert report.ok
    assert report.n_remaining == 0
    took = {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "shards": report.n_committed}
    return {**took, "rows": report.n_rows, **hub.figures()}


def main() -> None:
    """Measure and print."""
    shards = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        with Hub() as hub:
            handle = Vulcan(repo=REPO, staging_dir=Path(folder) / "many")
            stage(handle, shards, rows=8)
            results["many small shards"] = sync(handle, hub)
            results["nothing new"] = sync(handle, hub)
        with Hub() as hub:
            handle = Vulcan(repo=REPO, staging_dir=Path(folder) / "large")
            handle.write(vacua(100_000), {"h11": 3, "h12": 2, "ks_id": 1}, tadpole_charge=12)
            results["one shard of 100,000 rows"] = sync(handle, hub)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
