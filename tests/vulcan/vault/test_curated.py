"""The vault: what is designated was checked, is found again, and can be taken back."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from matforge.model import UsageError
from matforge.vulcan.problems import BatchError
from matforge.vulcan.vault import SessionStore, ValidationError, Vault, VaultDamagedError, VaultNotFoundError
from matforge.vulcan.vault.catalogue import CATALOGUE_NAME
from tests.vulcan.hub import LoopbackHub
from tests.vulcan.staging import Clock, forge, publish
from tests.vulcan.vacua import octic, octic_vacua

ROOT = Path(__file__).parents[3]
DAY = 86_400.0


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "vault", clock=Clock())


def put(vault: Vault, frame: pd.DataFrame | None = None, label: str = "paper", **options: Any) -> list[int]:
    """Designate as me, on the octic."""
    given = octic_vacua(3) if frame is None else frame
    return vault.designate(given, label, "me@example.org", **{"model": octic(), **options})


# ---------------------------------------------------------------- where


def test_the_environment_says_where_the_vault_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRINGFORGE_VAULT", str(tmp_path / "old"))
    assert Vault().folder == tmp_path / "old"
    monkeypatch.setenv("MATFORGE_VAULT", str(tmp_path / "new"))
    assert Vault().folder == tmp_path / "new"
    assert Vault(tmp_path / "given").folder == tmp_path / "given"
    assert not list(tmp_path.iterdir())


def test_without_checkout_and_environment_one_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matforge.vulcan.vault import places

    monkeypatch.setattr(places, "__file__", str(tmp_path / "a" / "b" / "c" / "places.py"))
    with pytest.raises(VaultNotFoundError, match="set MATFORGE_VAULT"):
        Vault()
    assert issubclass(VaultNotFoundError, LookupError)


# ---------------------------------------------------------------- designate


def test_the_last_line_of_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D1: in the reference the catalogue's rows come back, without moduli and tau."""
    monkeypatch.setenv("MATFORGE_VAULT", str(tmp_path / "vault"))
    db, model, results = Vault(), octic(), octic_vacua(6)
    db.deposit(
        results, SessionStore(tmp_path / "sessions"), model=model, designate=True, label="demo_cluster_run",
        committed_by="demo@example.com", validate_before_designate=False, tags=["demo", "Nmax_10"],
    )  # fmt: skip
    df = db.load_local_vacua(model=model, label="demo_cluster_run")
    shown = df[["flux", "moduli_re", "moduli_im", "tau_re", "tau_im"]].head()
    assert len(df) == 6
    assert [list(row) for row in shown["flux"]] == results["flux"].tolist()[:5]
    assert np.array_equal(shown["tau_im"], results["tau_im"][:5])
    assert len(SessionStore(tmp_path / "sessions").load()) == 6


def test_what_was_designated_is_found_with_all_its_columns(vault: Vault) -> None:
    frame = octic_vacua(3).assign(mine=[1.5, 2.5, 3.5], tags=[["a"], [], ["a", "b"]])
    assert put(vault, frame, tags=["c"], notes="look") == [1, 2, 3]
    found = vault.load()
    assert found["mine"].tolist() == [1.5, 2.5, 3.5]
    assert [list(t) for t in found["tags"]] == [["a", "c"], ["c"], ["a", "b", "c"]]
    assert (found["N_flux"] == found["tadpole_charge"]).all()
    assert set(found["committed_by"]) == {"me@example.org"}
    assert set(vault.query()["notes"]) == {"look"}
    assert found["validated"].all()


def test_the_catalogue_is_asked_by_many_things(vault: Vault) -> None:
    put(vault, octic_vacua(3), "one", tags=["x", "y"])
    put(vault, octic_vacua(3, 10), "two", tags=["x"])
    vault.designate(
        octic_vacua(2, 20).assign(is_susy=True), "three", "you", identity={"h11": 5, "h12": 1}, validate=False
    )
    assert vault.query(label="two")["designated_id"].tolist() == [4, 5, 6]
    assert len(vault.query(tags=["y", "x"])) == 3
    assert len(vault.query(model="octic")) == 6
    assert len(vault.query(identity={"h11": 5})) == 2
    assert len(vault.query(committed_by="you", is_susy=True)) == 2
    assert vault.query(ids=[2, 5, 99])["designated_id"].tolist() == [2, 5]
    assert len(vault.query(limit=4)) == 4
    smallest = int(vault.query()["N_flux"].min())
    assert set(vault.query(n_flux_max=smallest)["N_flux"]) == {smallest}
    empty = vault.load(label="none")
    assert len(empty) == 0
    assert list(empty[["flux", "moduli_re", "tau_im"]].columns) == ["flux", "moduli_re", "tau_im"]
    with pytest.raises(UsageError, match="no key 'ksid'"):
        vault.query(identity={"ksid": 1})


def nan_tau(frame: pd.DataFrame) -> None:
    frame.loc[1, "tau_im"] = np.nan


def nan_moduli(frame: pd.DataFrame) -> None:
    frame.at[1, "moduli_re"] = [np.nan]


def half_a_flux(frame: pd.DataFrame) -> None:
    frame.at[1, "flux"] = [1.7, *frame.at[1, "flux"][1:]]


def twice(frame: pd.DataFrame) -> None:
    for name in frame.columns:
        frame.at[1, name] = frame.at[0, name]


def off_the_solution(frame: pd.DataFrame) -> None:
    frame.loc[1, "tau_re"] += 1e-3


def another_flux(frame: pd.DataFrame) -> None:
    frame.at[1, "flux"] = [-x for x in frame.at[1, "flux"][:4]] + frame.at[1, "flux"][4:]


@pytest.mark.parametrize(
    "spoil",
    [nan_tau, nan_moduli, half_a_flux, twice, off_the_solution, another_flux],
    ids=lambda f: f.__name__,
)
def test_a_row_that_is_no_vacuum_is_named_and_nothing_is_designated(spoil: Any, vault: Vault) -> None:
    """D27: NaN passes the reference's checks, halves of a flux are cut, duplicates accepted."""
    frame = octic_vacua(4)
    spoil(frame)
    with pytest.raises((ValidationError, BatchError), match=r"\(row 1\)"):
        put(vault, frame)
    assert len(vault.query()) == 0
    assert not (vault.folder / "data").exists()
    assert put(vault, frame, force=True) == [1, 2, 3]
    good = [f for n, f in enumerate(octic_vacua(4)["flux"]) if n != 1]
    assert [list(f) for f in vault.load()["flux"]] == good


def test_nan_fails_even_where_nothing_is_checked(vault: Vault) -> None:
    """D27: NaN moduli pass in the reference."""
    frame = octic_vacua(2)
    nan_moduli(frame)
    with pytest.raises(BatchError, match="moduli_re"):
        put(vault, frame, validate=False)


def test_the_tadpole_has_a_limit(vault: Vault) -> None:
    frame = octic_vacua(6)
    with pytest.raises(ValidationError, match="N_flux outside 1 to 1"):
        put(vault, frame, tadpole_limit=1)
    assert len(put(vault, frame)) == 6


def test_without_the_geometry_nothing_is_checked_and_that_is_said(vault: Vault) -> None:
    """D27: without a model the reference silently checks no physics."""
    with pytest.raises(UsageError, match="Without the geometry nothing can be checked"):
        vault.designate(octic_vacua(1), "paper", "me", identity={"h11": 149, "h12": 1})
    vault.designate(octic_vacua(1), "paper", "me", identity={"h11": 149, "h12": 1}, validate=False)
    assert not vault.query()["validated"].any()
    with pytest.raises(UsageError, match="Which geometry"):
        vault.designate(octic_vacua(1), "paper", "me", validate=False)
    with pytest.raises(UsageError, match="is not that of"):
        put(vault, identity={"h11": 3, "h12": 1})


def test_vacua_that_break_supersymmetry_need_only_be_critical_points(vault: Vault) -> None:
    """D27: in the reference they can never be designated with a model."""
    frame = octic_vacua(2).assign(is_susy=[False, True])
    assert put(vault, frame) == [1, 2]
    off = octic_vacua(2, 10).assign(is_susy=False)
    off_the_solution(off)
    with pytest.raises(ValidationError, match=r"gradient of the scalar potential exceeds 1e-08 \(row 1\)"):
        put(vault, off)


def test_the_same_vacuum_in_another_form_is_the_same(vault: Vault) -> None:
    put(vault, octic_vacua(2))
    turned = octic_vacua(2)
    turned["flux"] = [[-x for x in flux] for flux in turned["flux"]]
    half = 4
    turned["tau_re"] += 1.0
    turned["flux"] = [[*(np.add(f[:half], f[half:])), *f[half:]] for f in turned["flux"]]
    with pytest.raises(ValidationError, match="the same vacuum is there already"):
        put(vault, turned)
    vault.retract([1, 2], "try again", "me")
    assert put(vault, turned) == [3, 4]


@pytest.mark.parametrize("label", ["", "../../x", "a b", "paper\n", "catalog", "x" * 101, None])
def test_a_label_can_name_a_file(label: Any, vault: Vault) -> None:
    """D27: the reference accepts ../../x and a line break."""
    with pytest.raises(UsageError, match="label"):
        put(vault, label=label)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda v: v.designate(None, "paper", "me", model="octic"), "data frame"),
        (lambda v: put(v, f_term_tol=float("nan")), "f_term_tol is a number above 0"),
        (lambda v: put(v, tadpole_limit="9"), "tadpole_limit is a whole number"),
        (lambda v: put(v, octic_vacua(1).assign(tags=[3])), "Tags are a list of words"),
        (lambda v: v.query(ids="12"), "by their numbers"),
        (lambda v: v.query(label=3), "label is text"),
        (lambda v: v.query(is_susy="yes"), "is_susy is True or False"),
        (lambda v: v.query(n_flux_max=True), "n_flux_max is a whole number"),
        (lambda v: v.query(identity=3), "identity is a mapping"),
        (lambda v: v.query(tags=3), "Tags are a list of words"),
        (lambda v: v.query(limit=-1), "limit must be at least 0"),
        (lambda v: v.retract("12", "why", "me"), "by their numbers"),  # was 1 and 2
        (lambda v: v.retract([True], "why", "me"), "by their numbers"),
        (lambda v: v.retract([], "why", "me"), "Which vacua"),
        (lambda v: v.purge(30), "length of time"),
    ],
)
def test_what_makes_no_sense_is_told_in_words(call: Any, sentence: str, vault: Vault) -> None:
    put(vault)
    with pytest.raises(UsageError, match=sentence):
        call(vault)
    assert not vault.query()["retracted"].any()


def test_rows_without_tags_have_none_and_numbers_of_numpy_are_numbers(vault: Vault) -> None:
    put(vault, octic_vacua(3).assign(tags=["a", None, ["b", "c"]]))
    assert [list(tags) for tags in vault.query()["tags"]] == [["a"], [], ["b", "c"]]
    vault.retract(np.int64(2), "why", "me")
    vault.retract(np.array([3]), "why", "me")
    assert vault.query()["designated_id"].tolist() == [1]


@pytest.mark.parametrize("options", [{"committed_by": " "}, {"committed_by": "a\nb"}, {"tags": [""]}])
def test_people_and_tags_are_words(options: dict[str, Any], vault: Vault) -> None:
    with pytest.raises(UsageError):
        vault.designate(octic_vacua(1), "paper", **{"committed_by": "me", "model": "octic", **options})


# ---------------------------------------------------------------- many, and killed


SCRIPT = """
    import sys, numpy as np
    from pathlib import Path
    from matforge.vulcan.vault import Vault
    vault, seed = Vault(sys.argv[1]), int(sys.argv[2])
    dice = np.random.default_rng(seed)
    for n in range({times}):
        frame = dict(flux=dice.integers(-9, 9, (1, 8)).tolist(), moduli_re=[[0.1]],
                     moduli_im=[[2.0 + seed + n]], tau_re=[0.0], tau_im=[2.0])
        ids = vault.designate(frame, "many", "me", identity=dict(h11=149, h12=1), validate=False)
        print(*ids, flush=True)
"""


def start(vault: Vault, seed: int, times: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT.format(times=times)), str(vault.folder), str(seed)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_four_processes_designate_without_losing_or_repeating_a_number(vault: Vault) -> None:
    processes = [start(vault, seed, 10) for seed in range(4)]
    ids = [int(word) for process in processes for word in process.communicate(timeout=60)[0].split()]
    assert sorted(ids) == list(range(1, 41))
    assert vault.load()["designated_id"].tolist() == list(range(1, 41))
    assert vault.problems() == []


def test_killed_while_it_designates_the_vault_is_whole(vault: Vault) -> None:
    """D28: in the reference a file is cut short, and every later query fails."""
    said = []
    for seed in range(3):
        process = start(vault, seed, 10_000)
        assert process.stdout is not None
        said += [int(process.stdout.readline()) for _ in range(3 + seed)]
        process.kill()
        said += [int(line) for line in process.stdout.read().split() if line]
        process.stdout.close()
        process.wait()
    found = vault.load()["designated_id"].tolist()
    assert set(said) <= set(found)
    assert len(found) <= len(said) + 3
    assert put(vault)[0] == max(found) + 1


def test_a_damaged_file_is_named(vault: Vault) -> None:
    """D28: raw ArrowInvalid in the reference."""
    put(vault)
    data = next((vault.folder / "data").rglob("*.parquet"))
    content = data.read_bytes()
    data.write_bytes(content[:50])
    with pytest.raises(VaultDamagedError, match=data.name):
        vault.load()
    assert len(vault.query()) == 3
    data.unlink()
    assert vault.problems() == [f"{data.relative_to(vault.folder)} is missing."]
    (vault.folder / CATALOGUE_NAME).write_bytes(b"PAR1")
    with pytest.raises(VaultDamagedError, match=CATALOGUE_NAME):
        vault.query()


# ---------------------------------------------------------------- retract, purge


def test_what_was_taken_back_is_given_only_when_asked_for(vault: Vault) -> None:
    """D29: the reference ignores include_retracted in one place, and gives retracted rows in another."""
    put(vault)
    vault.retract(2, "wrong branch", "me")
    assert vault.load_local_vacua(label="paper")["designated_id"].tolist() == [1, 3]
    assert vault.load(ids=[1, 2])["designated_id"].tolist() == [1]
    everything = vault.load_local_vacua(include_retracted=True)
    assert everything["retracted"].tolist() == [False, True, False]
    assert everything["reason"].tolist()[1] == "wrong branch"
    assert vault.retractions()[["designated_id", "by"]].to_numpy().tolist() == [[2, "me"]]


def test_a_retraction_has_a_reason_a_person_and_a_vacuum(vault: Vault) -> None:
    put(vault)
    with pytest.raises(UsageError, match="reason"):
        vault.retract(1, " ", "me")
    with pytest.raises(UsageError, match="who"):
        vault.retract(1, "why", "")
    with pytest.raises(KeyError, match="no vacuum 9"):
        vault.retract([1, 9], "why", "me")
    assert not vault.query()["retracted"].any()


def test_purging_needs_two_words_and_leaves_nothing_but_the_record(tmp_path: Path) -> None:
    """D29: the reference gives numbers again, and leaves data behind."""
    clock = Clock()
    vault = Vault(tmp_path / "vault", clock=clock)
    put(vault, octic_vacua(3))
    put(vault, octic_vacua(2, 10), "other")
    vault.retract([2, 4, 5], "why", "me")
    assert vault.purge("30d", dry_run=False, confirm=True) == []
    clock.now += 31 * DAY
    assert vault.purge("30d") == [2, 4, 5]
    assert vault.purge("4w", dry_run=False) == [2, 4, 5]
    assert len(vault.query(include_retracted=True)) == 5
    archive = tmp_path / "removed.parquet"
    assert vault.purge("30d", dry_run=False, confirm=True, archive=archive) == [2, 4, 5]
    assert vault.load(include_retracted=True)["designated_id"].tolist() == [1, 3]
    assert vault.problems() == []
    assert len(list((vault.folder / "data").rglob("*.parquet"))) == 1
    assert pd.read_parquet(archive)["designated_id"].tolist() == [2, 4, 5]
    assert len(vault.retractions()) == 3
    vault.retract([1, 3], "all", "me")
    clock.now += DAY
    vault.purge("12h", dry_run=False, confirm=True)
    assert put(vault, octic_vacua(1, 20)) == [6]
    with pytest.raises(UsageError, match="length of time"):
        vault.purge("soon")


def test_an_archive_of_an_earlier_purge_is_not_replaced(vault: Vault, tmp_path: Path) -> None:
    """What it held was gone for good."""
    put(vault, octic_vacua(3))
    archive = tmp_path / "removed.parquet"
    vault.retract(1, "why", "me")
    assert vault.purge("0h", dry_run=False, confirm=True, archive=archive) == [1]
    vault.retract(2, "why", "me")
    with pytest.raises(UsageError, match=r"removed\.parquet is there already.* Nothing was removed"):
        vault.purge("0h", dry_run=False, confirm=True, archive=archive)
    assert pd.read_parquet(archive)["designated_id"].tolist() == [1]
    assert vault.query(include_retracted=True)["designated_id"].tolist() == [2, 3]


# ---------------------------------------------------------------- from a forge


def test_a_write_of_a_forge_is_promoted_before_and_after_it_was_published(
    hub: LoopbackHub, vault: Vault, tmp_path: Path
) -> None:
    handle = forge(tmp_path / "staging")
    first = handle.write(octic_vacua(3), octic(), tadpole_charge=5).run_id
    assert vault.promote(handle, first, "paper", "me", model=octic()) == [1, 2, 3]
    second = handle.write(octic_vacua(2, 10).assign(mine="x"), octic(), tadpole_charge=5).run_id
    publish(handle, hub)
    assert vault.promote(handle, second, "paper", "me", validate=False) == [4, 5]
    found = vault.load()
    assert found["source_run_id"].tolist() == [first] * 3 + [second] * 2
    assert found["mine"].tolist()[3:] == ["x", "x"]
    assert set(vault.query(model=octic())["designated_id"]) == {1, 2, 3, 4, 5}
    with pytest.raises(FileNotFoundError):
        vault.promote(handle, "none", "paper", "me", model=octic())


def test_a_disk_that_is_full_is_told_with_the_file_and_costs_nothing(vault: Vault) -> None:
    put(vault, octic_vacua(2))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # no file may grow beyond that
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            put(vault, octic_vacua(3, 10))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert str(caught.value.filename).startswith(str(vault.folder))
    assert put(vault, octic_vacua(3, 10)) == [3, 4, 5]
    assert list(vault.folder.rglob(".*")) == []
