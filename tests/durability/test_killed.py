"""A driver that is killed anywhere is as good as one that was not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.durability.everything import Everything, EverythingThreaded, go_on, undisturbed
from tests.harness import completed_in, killed_after, records

SHAPES = pytest.mark.parametrize("layout", ["full", "packed"])
STRATEGIES = pytest.mark.parametrize("strategy", [Everything, EverythingThreaded])


@SHAPES
@STRATEGIES
def test_a_driver_killed_after_any_journal_record_ends_the_same(
    folder: Path, strategy: type[Everything], layout: str
) -> None:
    run_dir, expected = undisturbed(folder, strategy, layout=layout)
    written = records(run_dir)
    assert {r["e"] for r in written} >= {"add", "submitted", "decide", "end", "retry", "lost", "state"}
    assert {d[0] for r in written for d in r.get("d", ())} == {"spawn", "cancel", "nice"}
    first = next(n for n, r in enumerate(written) if r["e"] == "submitted") + 1
    for count in range(first, len(written) + 1):
        copy = killed_after(run_dir, count, folder / f"killed-{count}")
        started = go_on(copy, expected)
        assert not set(started) & completed_in(written[:count])
        spawned = [d[1]["key"] for r in records(copy) for d in r.get("d", ()) if d[0] == "spawn"]
        assert len(spawned) == len(set(spawned))
        shutil.rmtree(copy)
