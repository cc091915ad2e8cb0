"""From a search to the Hub and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from matforge.vulcan import Vulcan
from matforge.vulcan.results import stage_result, target_of
from tests.vulcan.hub import LoopbackHub
from tests.vulcan.staging import REPO, counts, forge
from tests.vulcan.test_card import streamed
from tests.vulcan.vacua import octic, octic_vacua

ROOT = Path(__file__).parents[2]


def run(arguments: list[str], hub: LoopbackHub, folder: Path, **more: str) -> Any:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.endpoint, "MATFORGE_VULCAN_TOKEN": "x",
        "MATFORGE_VULCAN_STAGING_DIR": str(folder / "staging"), "MATFORGE_VULCAN_REPO": REPO, **more,
    }  # fmt: skip
    command = [sys.executable, "-m", "matforge", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)


def test_a_result_is_staged_once_however_often(tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.Table.from_pandas(octic_vacua(3).assign(n_flux=3), preserve_index=False)
    handle = forge(tmp_path)
    (tmp_path / "run").mkdir()
    first = stage_result(target_of(handle), octic(), table, tmp_path / "run")
    assert stage_result(target_of(handle), octic(), table, tmp_path / "run") == first
    assert stage_result(target_of(handle), octic(), table, tmp_path / "other") != first
    assert counts(handle)[0] == 2
    assert "hf_test" not in str(target_of(handle))


def test_where_to_stage_is_asked_before_the_search(hub: LoopbackHub, tmp_path: Path) -> None:
    done = run(
        ["vacua", "search", "--publish", "--dir", str(tmp_path / "runs")],
        hub,
        tmp_path,
        MATFORGE_VULCAN_REPO="",
    )
    assert done.returncode == 2
    assert "MATFORGE_VULCAN_REPO" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["p11169-slice", "p11169-full"])
def test_every_vacuum_of_a_search_is_streamed_back_as_it_was_found(
    preset: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    pytest.importorskip("datasets")
    search = ["vacua", "search", "--preset", preset, "--publish", "-q", "--dir", str(tmp_path / "runs")]
    done = run(search, hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.log == []
    done = run(["vulcan", "sync"], hub, tmp_path)
    assert done.returncode == 0, done.stderr
    index = json.loads(hub.repositories[REPO].files()["matforge.json"])
    rows = streamed(hub, tmp_path / "cache", sorted(next(iter(index["sources"].values()))["rows"]))
    found = pq.read_table(next((tmp_path / "runs").glob("*/vacua.parquet"))).to_pylist()
    assert len(rows) == len(found) == (6097 if preset == "p11169-full" else 21)

    def key(row: dict[str, Any]) -> Any:
        return row["flux"], row["moduli_re"], row["moduli_im"]

    for theirs, ours in zip(sorted(rows, key=key), sorted(found, key=key), strict=True):
        assert {name: theirs[name] for name in ours} == ours
        assert theirs["tadpole_charge"] == ours["n_flux"]
    assert len(Vulcan(repo=REPO, staging_dir=tmp_path / "staging").query()) == len(found)
