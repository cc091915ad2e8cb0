"""Arrays between chores: no second copy of them in memory, in either layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matforge import Pipeline
from matforge.engine.results import MAGIC

COUNT = 25_000_000
"""Doubles: 200 MB."""


@pytest.mark.parametrize("layout", ["full", "packed"])
def test_an_array_is_passed_on_whole_and_in_parts(tmp_path: Path, layout: str) -> None:
    with Pipeline(tmp_path, workers=1, layout=layout) as pipe:

        @pipe.chore()
        def make() -> Any:
            return {"x": np.arange(100_000), "y": 1}

        @pipe.chore()
        def use(value: Any) -> Any:
            value[:] = value[::-1].copy()  # whoever gets an array may write to it
            return value[:3].tolist()

        made = make()
        whole, part = use(made["x"]), use(made["x"][10:20])
        alone = pipe.chore("alone", isolated=True)(lambda: np.arange(100_000))()
        found = pipe.submit(quiet=True)
        results = found.result(60)
        assert results[whole.chore_id] == [99_999, 99_998, 99_997]
        assert results[part.chore_id] == [19, 18, 17]
        assert results[alone.chore_id].sum() == np.arange(100_000).sum()
        assert made["x"][10:13].result().tolist() == [10, 11, 12]
        assert made.result()["x"].sum() == np.arange(100_000).sum()
    path = found.run_dir / "out" / made.chore_id / "result.pickle"
    assert path.read_bytes()[:4] == MAGIC
    assert not list(path.parent.glob("result.pickle.*"))


def test_publishing_an_array_takes_no_second_copy_of_it(tmp_path: Path) -> None:
    with Pipeline(tmp_path, workers=1, layout="full") as pipe:
        made = pipe.chore("make")(lambda: np.ones(COUNT))()
        part = pipe.chore("part")(lambda piece: float(piece.sum()))(made[5:105])
        future = pipe.submit(quiet=True)
        assert future.result(120)[part.chore_id] == 100.0
    peaks = [
        json.loads((future.run_dir / "out" / r.chore_id / "metadata.json").read_text())["attempts"][0][
            "max_rss"
        ]
        for r in (made, part)
    ]
    assert 8 * COUNT < peaks[0] < 1.6 * 8 * COUNT
    assert peaks[1] < 0.7 * 8 * COUNT
