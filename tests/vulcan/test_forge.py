"""The handle: configuration, and the tutorial as it is written."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matforge.model import UsageError
from matforge.vacua import load_geometry, table
from matforge.vulcan import Vulcan
from matforge.vulcan.layout import default_staging_dir
from matforge.vulcan.runid import MissingValueError
from tests.vulcan.batches import GEOMETRY, REPO, files_below, forge, vacua


def test_a_token_is_never_shown(tmp_path: Path) -> None:
    handle = forge(tmp_path, token="hf_secret")
    assert "secret" not in repr(handle)
    assert "me/forge" in repr(handle)
    assert handle.resolve_token() == "hf_secret"


def test_a_token_does_not_travel_with_a_handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MATFORGE_VULCAN_TOKEN", "STRINGFORGE_VULCAN_TOKEN", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    handle = Vulcan(repo=REPO, staging_dir=tmp_path, token="hf_secret")
    handle.query()  # a reader is not sent along either
    sent = pickle.dumps(handle)
    assert b"hf_secret" not in sent
    arrived = pickle.loads(sent)
    assert (arrived.repo, arrived.staging_dir, arrived.resolve_token()) == (REPO, tmp_path, None)
    assert len(arrived.query()) == 0
    assert handle.resolve_token() == "hf_secret"


def test_two_handles_know_nothing_of_each_other(tmp_path: Path) -> None:
    one, other = forge(tmp_path / "a"), forge(tmp_path / "b", repo="me/other")
    one.write(vacua(), GEOMETRY, tadpole_charge=12)
    assert (len(one.list_pending()), len(other.list_pending())) == (1, 0)


def test_nothing_is_created_before_the_first_write(tmp_path: Path) -> None:
    handle = forge(tmp_path)
    assert handle.list_pending() == []
    assert len(handle.query()) == len(handle.catalog()) == 0
    assert files_below(tmp_path) == []
    assert not handle.staging_dir.exists()


@pytest.mark.parametrize("prefix", ["MATFORGE", "STRINGFORGE"])
def test_the_environment_configures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    values = {
        "REPO": "me/set",
        "STAGING_DIR": str(tmp_path / "s"),
        "PROJECT": "p",
        "BUDGET": "7",
        "TOKEN": "t",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"{prefix}_VULCAN_{name}", value)
    handle = Vulcan.from_env()
    found = (handle.repo, handle.staging_dir, handle.project, handle.budget, handle.resolve_token())
    assert found == ("me/set", tmp_path / "s", "p", 7, "t")
    assert Vulcan.from_env(repo="me/given", budget=3, project="q").repo == "me/given"
    monkeypatch.setenv("MATFORGE_VULCAN_REPO", "me/first")
    assert Vulcan.from_env().repo == "me/first"
    monkeypatch.setenv(f"{prefix}_VULCAN_BUDGET", " ")
    assert Vulcan.from_env().budget == 90


@pytest.mark.parametrize("value", ["many", "0", "-5", "1.5"])
def test_a_budget_that_is_none_names_the_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """D24: budgets of 0 and -5 were accepted, and nothing was ever published."""
    monkeypatch.setenv("MATFORGE_VULCAN_REPO", "me/forge")
    monkeypatch.setenv("STRINGFORGE_VULCAN_BUDGET", value)
    with pytest.raises(UsageError, match="STRINGFORGE_VULCAN_BUDGET must be a whole number of at least 1"):
        Vulcan.from_env()


def test_without_a_repository_the_variable_is_named() -> None:
    with pytest.raises(ValueError, match="set MATFORGE_VULCAN_REPO"):
        Vulcan.from_env()


@pytest.mark.parametrize(
    "arguments",
    [
        {"repo": ""},
        {"repo": "not a repo!!"},
        {"repo": "forge"},
        {"repo": "a/b/c"},
        {"repo": "me/forge\n"},
        {"repo": None},
        {"budget": 0},
        {"budget": -5},
        {"budget": True},
        {"budget": "90"},
        {"window_s": 0},
        {"window_s": float("nan")},
        {"run_id_template": "{seed:05d}"},
        {"extra_kwargs": [1]},
        {"staging_dir": 7},
        {"project": 3},
        {"project": ""},
        {"splits": "row"},
        {"token": 5},
    ],
)
def test_what_cannot_work_is_refused_at_once(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """D24: a repository that is none, and budgets that allow nothing, were accepted."""
    with pytest.raises(UsageError):
        forge(tmp_path, **arguments)


def test_the_staging_folder_is_that_of_the_argument_the_environment_or_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Vulcan(repo="me/forge").staging_dir == default_staging_dir({})
    assert default_staging_dir({}).name == "vulcan_staging"
    monkeypatch.setenv("MATFORGE_VULCAN_STAGING_DIR", str(tmp_path / "env"))
    assert Vulcan(repo="me/forge").staging_dir == tmp_path / "env"
    assert Vulcan(repo="me/forge", staging_dir=str(tmp_path)).staging_dir == tmp_path
    monkeypatch.chdir(tmp_path)
    assert Vulcan(repo="me/forge", staging_dir="s").staging_dir == tmp_path / "s"


def test_values_for_run_ids_are_those_of_the_call_then_of_the_handle(tmp_path: Path) -> None:
    handle = forge(
        tmp_path, run_id_template="{project}_{array_id}_{variant?}_{seed?}", extra_kwargs={"array_id": 7}
    )
    assert handle.render_run_id() == "demo_7_na_na"
    assert handle.render_run_id(array_id=8, variant="isd-only", seed=-1) == "demo_8_isd-only_m1"
    handle.extra_kwargs = {"array_id": 9, "variant": "x"}
    shard = handle.write(
        vacua(), GEOMETRY, tadpole_charge=1, provenance={"seed": 3}, extra_kwargs={"variant": "y"}
    )
    assert shard.run_id.startswith("demo_9_y_3_")


def test_a_template_may_name_geometry_solver_and_seed(tmp_path: Path) -> None:
    handle = forge(tmp_path, run_id_template="{ks_id}-{solver}-{seed}")
    shard = handle.write(vacua(), GEOMETRY, tadpole_charge=1, solver="newton", provenance={"seed": 5})
    assert re.fullmatch(r"384564-newton-5_[0-9a-f]{12}", shard.run_id)
    with pytest.raises(MissingValueError, match="'seed'"):
        handle.write(vacua(), GEOMETRY, tadpole_charge=1, solver="newton")
    assert len(handle.list_pending()) == 1


@pytest.mark.parametrize("template", [None, lambda **values: "always"])
def test_other_templates_add_shards_too(tmp_path: Path, template: Any) -> None:
    handle = forge(tmp_path, run_id_template=template)
    assert len({handle.write(vacua(), GEOMETRY, tadpole_charge=1).run_id for _ in range(3)}) == 3


@pytest.mark.parametrize(
    "arguments",
    [{"geometry": {}}, {"run_id": "a/b"}, {"run_id": "a" * 300}, {"extra_kwargs": 3}, {"solver": 3}],
)
def test_other_arguments_are_checked_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        forge(tmp_path).write(vacua(), **{"geometry": GEOMETRY, "tadpole_charge": 1, **arguments})
    assert files_below(tmp_path) == []


def test_a_frame_that_was_read_can_be_staged_again(tmp_path: Path) -> None:
    handle = forge(tmp_path)
    handle.write(vacua(score=2.5), GEOMETRY, tadpole_charge=12, solver="newton", provenance={"seed": 1})
    rows = handle.query(source="pending")
    again = handle.write(rows, GEOMETRY)
    both = handle.query(source="pending")
    assert len(both) == 8
    assert set(both["run_id"]) == {again.run_id, rows["run_id"][0]}
    assert both["score"].tolist() == [2.5] * 8


def test_the_table_of_a_search_is_staged_as_it_is_and_read_back_equal(tmp_path: Path) -> None:
    geometry = load_geometry("p11169")
    rng = np.random.default_rng(1)
    fluxes = rng.integers(-9, 10, (50, 12))
    moduli, tau = rng.random((50, 2)) + 2j, rng.random(50) + 1j
    found = table.unpolished(fluxes, moduli, tau)
    handle = forge(tmp_path)
    shard = handle.write(found, geometry, provenance={"geometry": geometry.name})
    back = handle.reader("pending").table(columns=found.column_names)
    assert back.to_pydict() == found.to_pydict()
    rows = handle.query(source="pending", geometry_hash=geometry.hash)
    assert rows["tadpole_charge"].tolist() == found["n_flux"].to_pylist()
    assert rows["geometry_id"].unique().tolist() == [shard.record.geometry_id]
    assert (rows["h12"][0], rows["ks_id"][0]) == (2, -1)
