"""The tutorial of the reference, names apart, as it is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from matforge.vulcan import FeatureSpec, Vulcan
from matforge.vulcan.writer import SYNCED_DIRNAME, list_pending, move_to


def test_the_tutorial_runs_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRINGFORGE_VULCAN_REPO", "aschachner/vacua_forge_demo")
    monkeypatch.setenv("STRINGFORGE_VULCAN_STAGING_DIR", str(tmp_path))
    monkeypatch.setenv("STRINGFORGE_VULCAN_PROJECT", "demo")
    monkeypatch.setenv("STRINGFORGE_VULCAN_BUDGET", "90")
    forge = Vulcan.from_env()
    stage(forge, tmp_path)
    publish(forge)
    read(forge)
    learn(forge)
    counts = {
        sub: sum(1 for _ in (tmp_path / sub).rglob("*.parquet")) for sub in ("pending", "synced", "failed")
    }
    assert counts == {"pending": 0, "synced": 4, "failed": 0}
    assert (tmp_path / "_commit_budget.json").exists()


def test_the_python_of_the_page_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "vulcan.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 3
    assert len(names["rows"]) == 8
    assert sum(names["sizes"].values()) == 8


def batch() -> pd.DataFrame:
    n_vacua = 8
    rng = np.random.default_rng(42)
    return pd.DataFrame(
        {
            "flux": [list(rng.integers(-3, 4, size=6)) for _ in range(n_vacua)],
            "moduli_re": [list(rng.normal(0, 0.5, size=2)) for _ in range(n_vacua)],
            "moduli_im": [list(2.0 + 0.5 * rng.standard_normal(2)) for _ in range(n_vacua)],
            "tau_re": rng.normal(0, 0.1, size=n_vacua),
            "tau_im": 2.5 + 1.0 * rng.random(n_vacua),
            "residual": 1e-11 * rng.random(n_vacua),
            "is_susy": [True] * n_vacua,
            "solver_name": ["newton"] * n_vacua,
            "n_iterations": rng.integers(5, 30, size=n_vacua),
        }
    )


def stage(forge: Vulcan, folder: Path) -> None:
    kklt_forge = Vulcan(
        repo="aschachner/vacua_forge_demo",
        staging_dir=folder,
        project="kklt-scan",
        run_id_template=(
            "{date}_{project}_h12-{h12}_ks-{ks_id}_conifold-{conifold_id?}_variant-{variant?}_seed-{seed?}"
        ),
    )
    run_id = kklt_forge.render_run_id(h12=2, ks_id=384564, conifold_id=7, variant="isd-only", seed=42)
    pattern = r"\d{4}-\d\d-\d\d-\d{6}_kklt-scan_h12-2_ks-384564_conifold-7_variant-isd-only_seed-42"
    assert re.fullmatch(pattern, run_id)
    shard = forge.write(
        batch(),
        geometry={"h11": 3, "h12": 2, "ks_id": 384564, "triang_id": 0},
        tadpole_charge=12,
        solver={"name": "newton", "config_hash": "abc123"},
        provenance={"git_sha": "deadbeef", "seed": 42, "wall_clock_s": 3.4},
    )
    assert re.fullmatch(r"[-\d]{17}_demo_h11-3_h12-2_ks-384564_triang-0_seed-42_[0-9a-f]{12}", shard.run_id)
    assert shard.path_in_repo == f"h12_2/h11_3/bucket_0/run_{shard.run_id}.parquet"
    assert shard.n_rows == 8
    assert shard.sidecar_path.parent == shard.parquet_path.parent
    for i, ks in enumerate([12345, 67890, 11111]):
        geom_i = {"h11": 3, "h12": 2, "ks_id": ks, "triang_id": 0}
        forge.write(batch(), geometry=geom_i, tadpole_charge=12, provenance={"seed": 100 + i})


def publish(forge: Vulcan) -> None:
    assert len(forge.list_pending()) == 4
    report = forge.sync(max_batch=2, dry_run=True)
    assert (report.n_commits, report.n_committed, report.n_failed) == (2, 4, 0)
    assert forge.remaining_budget() == 88
    for shard in list_pending(forge.staging_dir):
        move_to(shard, forge.staging_dir, SYNCED_DIRNAME)
    assert len(forge.list_pending()) == 0


def read(forge: Vulcan) -> None:
    reader = forge.reader()
    catalog = reader.catalog()
    assert len(catalog) == 4
    assert catalog[["run_id", "h11", "h12", "ks_id", "n_rows"]].head()["n_rows"].tolist() == [8] * 4
    rows = forge.query(ks_id=384564)
    assert len(rows[["run_id", "tau_im", "is_susy", "solver_name"]]) == 8
    assert len(forge.query(h12=2, solver_name="newton", is_susy=True)) == 32


def learn(forge: Vulcan) -> None:
    view = forge.ml_view()
    assert len(view.split_assignments()) == 4
    spec = FeatureSpec(
        features=["flux", "moduli_re", "moduli_im", "tau_re", "tau_im", "is_susy"],
        list_max_len=12,
        list_fill=0,
        keep_geometry_id=True,
    )
    parts: dict[str, Any] = {
        name: view.as_dataframe(name, feature_spec=spec) for name in ("train", "val", "test")
    }
    assert {name: len(df) for name, df in parts.items()} == {"train": 16, "val": 8, "test": 8}
    assert {name: df["geometry_id"].nunique() for name, df in parts.items()} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }
    assert all(len(flux) == 12 for flux in parts["train"]["flux"])
    pytest.importorskip("datasets", reason="the extra 'datasets' is not installed")
    assert len(list(view.as_hf_dataset("train"))) == 16
