"""The search as a user runs it: real driver, real agent, real slots."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from matforge.strategies.refine_promising import RefinePromising

from matforge.engine import journal
from matforge.model import RunState, UsageError
from matforge.opening import reopen
from matforge.session import RunFailedError
from matforge.strategy import Event, FutureProcessingStrategy, Spawn
from matforge.vacua import load_geometry
from matforge.vacua.campaign import Tuning, problem_of, search, start
from matforge.vacua.campaign.problem import unpack
from matforge.vacua.region import PRESETS, Region, preset
from tests.vacua.kill_driver import TUNING, small_region

HERE = Path(__file__).parent
PER_N = (0, 2, 4, 24, 39, 65, 161, 606, 1613, 3583)


def run_preset(name: str, base: Path, **options: Any) -> Path:
    """Run a named search to its end; its directory."""
    chosen = preset(name)
    geometry = load_geometry(chosen.geometry)
    session = start(geometry, chosen.region(geometry), basedir=base, **options)
    assert session.wait() is RunState.COMPLETED
    return session.run_dir


def summary(run: Path) -> dict[str, Any]:
    """Its summary.json."""
    return json.loads((run / "summary.json").read_text())


def digest(run: Path) -> str:
    """SHA-256 of its vacua.parquet."""
    return hashlib.sha256((run / "vacua.parquet").read_bytes()).hexdigest()


def same_vacua(one: Path, other: Path) -> bool:
    """Whether two searches found the same vacua, up to the last digits."""
    a, b = (pq.read_table(run / "vacua.parquet").to_pandas() for run in (one, other))
    same = np.array_equal(np.stack(a["flux"]), np.stack(b["flux"]))
    return same and np.abs(np.stack(a["moduli_im"]) - np.stack(b["moduli_im"])).max() < 1e-8


@pytest.fixture(scope="module")
def slice_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published slice, found once with two workers."""
    return run_preset("p11169-slice", tmp_path_factory.mktemp("slice"), workers=2)


def test_the_published_slice_has_exactly_its_21_vacua(slice_run: Path) -> None:
    found = summary(slice_run)
    assert found["count_mod_sign"] == 21
    assert found["count_both_signs"] == 42
    assert found["by_n_flux"] == {"1": 0, "2": 2, "3": 4, "4": 15}


def test_every_row_solves_its_equations_and_has_an_exact_tadpole(slice_run: Path) -> None:
    table = pq.read_table(slice_run / "vacua.parquet").to_pandas()
    assert (table["residual"] < 1e-12).all()
    for row in table.itertuples():
        f, h = np.split(np.array(row.flux, dtype=object), 2)
        half = len(f) // 2
        assert f[:half] @ h[half:] - f[half:] @ h[:half] == row.n_flux


def test_the_files_promised_are_there_with_their_columns(slice_run: Path) -> None:
    schema = pq.read_schema(slice_run / "vacua.parquet")
    assert schema.names == [
        "flux", "moduli_re", "moduli_im", "tau_re", "tau_im", "n_flux", "W0_abs", "residual", "n_iterations",
    ]  # fmt: skip
    assert str(schema.field("flux").type.value_type) == "int32"
    assert json.loads(schema.metadata[b"matforge.region"])["n_max"] == 4
    assert list((slice_run / "shards").glob("*.parquet"))
    wanted = {"min_W0_abs", "wall_s", "core_s", "stages", "region", "geometry_hash", "versions"}
    assert wanted <= summary(slice_run).keys()


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 1},
        {"workers": 4},
        {"tuning": Tuning(block=100, batch=500, group=3)},
        {"tuning": Tuning(budget=5_000)},
        {"layout": "packed"},
        {"layout": "full"},
    ],
    ids=lambda o: next(iter(o.items()))[0] + "=" + str(next(iter(o.values())))[:40],
)
def test_the_bytes_do_not_depend_on_how_the_work_is_done(
    slice_run: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    assert digest(run_preset("p11169-slice", tmp_path, **{"workers": 2, **options})) == digest(slice_run)


def test_a_budget_makes_chunks_hand_back_work_that_the_strategy_spawns_again(tmp_path: Path) -> None:
    run = run_preset("p11169-slice", tmp_path, workers=2, tuning=Tuning(budget=5_000))
    records, _ = journal.read(run / "journal.jsonl")
    reports = [r["p"] for r in records if r["e"] == "end" and "starts" in r.get("p", {})]
    assert sum(report["unfinished"] for report in reports) > 10
    assert len(reports) == summary(run)["stages"]["blocks"] + sum(r["unfinished"] for r in reports)


def test_searching_without_complex_conjugation_gives_the_same_vacua(slice_run: Path, tmp_path: Path) -> None:
    run = run_preset("p11169-slice", tmp_path, workers=2, tuning=Tuning(conjugation=False, leaf=0.08))
    assert same_vacua(run, slice_run)


def test_search_in_python_returns_the_table(tmp_path: Path) -> None:
    table = search("octic", {"im_z": [[2, 7]], "s": [0.866, 30], "n_max": 3}, basedir=tmp_path, workers=2)
    assert np.bincount(table["n_flux"].to_numpy()).tolist() == [0, 2, 11, 41]


def test_a_region_without_vacua_gives_an_empty_table(tmp_path: Path) -> None:
    geometry = load_geometry("p11169")
    session = start(geometry, Region.parse(geometry, "2:5", "2:10", 1), basedir=tmp_path, workers=2)
    assert session.wait() is RunState.COMPLETED
    assert pq.read_table(session.run_dir / "vacua.parquet").num_rows == 0
    assert summary(session.run_dir)["min_W0_abs"] is None


def test_a_damaged_shard_never_looks_like_a_result(slice_run: Path, tmp_path: Path) -> None:
    from matforge.vacua.campaign import chores

    shard = sorted((slice_run / "shards").iterdir())[0].relative_to(slice_run)
    rows = pq.read_table(slice_run / shard).num_rows
    with pytest.raises(RuntimeError, match="not complete"):
        chores._read_shard(slice_run, {"file": str(shard), "rows": rows + 1})


# ---------------------------------------------------------------- killed and resumed


def killed_after(record: int, base: Path) -> Path | None:
    """Start the small search and let its driver die after that record; None if it ended before."""
    command = [sys.executable, str(HERE / "kill_driver.py"), "start", str(record), str(base)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), *sys.path])}
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=240)
    if ended.returncode == 0:
        return None
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    return next(base.iterdir())


def resumed_exactly(run: Path, expected: str) -> None:
    """Resume; same bytes, and what had completed was left alone."""
    before, _ = journal.read(run / "journal.jsonl")
    done = {r["id"]: run / r["r"][0] for r in before if r["e"] == "end" and "r" in r}
    stamps = {name: path.stat().st_mtime_ns for name, path in done.items()}
    session = reopen(run, quiet=True)
    assert session.wait() is RunState.COMPLETED
    assert digest(run) == expected
    assert {name: path.stat().st_mtime_ns for name, path in done.items()} == stamps
    after, _ = journal.read(run / "journal.jsonl")
    ends = [r["id"] for r in after if r["e"] == "end"]
    assert len(ends) == len(set(ends))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small search (N_flux <= 6), not disturbed."""
    base = tmp_path_factory.mktemp("undisturbed")
    session = start(load_geometry("p11169"), small_region(), tuning=TUNING, basedir=base, workers=2)
    assert session.wait() is RunState.COMPLETED
    assert summary(session.run_dir)["count_mod_sign"] == 134
    return session.run_dir


def n_records(run: Path) -> int:
    """Records of its journal."""
    return len(journal.read(run / "journal.jsonl")[0])


@pytest.mark.parametrize("fraction", [0.4, 0.7, 0.95])
def test_a_killed_search_resumes_to_the_same_bytes(
    undisturbed: Path, tmp_path: Path, fraction: float
) -> None:
    run = killed_after(int(fraction * n_records(undisturbed)), tmp_path)
    assert run is not None
    resumed_exactly(run, digest(undisturbed))


@pytest.mark.slow
def test_a_search_killed_after_every_journal_record_resumes_to_the_same_bytes(
    undisturbed: Path, tmp_path: Path
) -> None:
    first = [r["e"] for r in journal.read(undisturbed / "journal.jsonl")[0]].index("submitted")
    for record in range(first, n_records(undisturbed)):
        base = tmp_path / str(record)
        run = killed_after(record, base)
        if run is not None:
            resumed_exactly(run, digest(undisturbed))


class BreaksAChunk(RefinePromising):
    """Gives one chunk an h that is no h."""

    inline = True

    def _cover(self, event: Event) -> list[Spawn]:
        spawned = super()._cover(event)
        problem, _, group = spawned[-1].spec.args
        spawned[-1] = self._spawn("isd_chunk", problem, "no array", group)
        return spawned


class ForgetsAChunk(RefinePromising):
    """Gives every chunk but the last, which it gives a part of its block."""

    inline = True

    def _cover(self, event: Event) -> list[Spawn]:
        spawned = super()._cover(event)
        problem, h, group = spawned[-1].spec.args
        spawned[-1] = self._spawn("isd_chunk", problem, h[:5], group)
        return spawned


class SearchesABlockTwice(RefinePromising):
    """Gives the last chunk the block of the first, cut to the same number of h."""

    inline = True

    def _cover(self, event: Event) -> list[Spawn]:
        spawned = super()._cover(event)
        problem, _, group = spawned[-1].spec.args
        rest = event.report["h"] % event.report["block"]
        spawned[-1] = self._spawn("isd_chunk", problem, event.ref["h"][:rest], group)
        return spawned


class IgnoresLeftovers(RefinePromising):
    """Does not search what chunks hand back when their budget is spent."""

    inline = True

    def _chunk(self, event: Event) -> list[Spawn]:
        return super()._chunk(replace(event, report={**event.report, "unfinished": 0}))


@pytest.mark.parametrize("strategy", [BreaksAChunk, ForgetsAChunk, SearchesABlockTwice, IgnoresLeftovers])
def test_a_search_that_is_not_complete_has_no_table(
    tmp_path: Path, strategy: type[FutureProcessingStrategy]
) -> None:
    geometry = load_geometry("p11169")
    region = Region.parse(geometry, "2:5", "2:10", 4)
    tuning = Tuning(budget=5_000 if strategy is IgnoresLeftovers else 2_000_000)
    session = start(geometry, region, basedir=tmp_path, workers=2, strategy=strategy(), tuning=tuning)
    assert session.wait() is RunState.FAILED
    with pytest.raises(RunFailedError):
        session.outcome()
    assert not (session.run_dir / "vacua.parquet").exists()


def test_a_damaged_cover_in_the_cache_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATFORGE_CACHE_DIR", str(tmp_path / "cache"))
    first = run_preset("octic-n10", tmp_path / "first", workers=2)
    for array in (tmp_path / "cache" / "covers").glob("*/*.npy"):
        array.write_bytes(array.read_bytes()[:-8])
    again = run_preset("octic-n10", tmp_path / "again", workers=2)
    assert digest(again) == digest(first)


def test_a_cover_that_another_node_joins_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matforge.vacua import cover
    from matforge.vacua.campaign import chores, covers

    monkeypatch.setenv("MATFORGE_CACHE_DIR", str(tmp_path))
    geometry = load_geometry("octic")
    problem = problem_of(geometry, Region.parse(geometry, "2:7", ":30", 2))
    parts = [chores.cover_part(problem, part).result for part in range(covers.N_PARTS)]
    assemble, final = cover.assemble, covers.cover_dir(*unpack(problem))

    def race(paths: list[str], directory: Path) -> Any:
        monkeypatch.setattr(cover, "assemble", assemble)
        covers.publish(final, lambda beside: assemble(paths, beside))
        for path in paths:
            shutil.rmtree(path)
        return assemble(paths, directory)

    monkeypatch.setattr(cover, "assemble", race)
    assert len(chores.cover(problem, parts).result["h"]) > 0
    shutil.rmtree(final)
    with pytest.raises(FileNotFoundError):  # parts that nobody has joined are no such thing
        chores.cover(problem, parts)


def test_a_cover_that_is_not_there_is_not_removed_for_another_search_may_just_publish_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matforge.vacua.campaign import covers

    path = tmp_path / "cover"
    removed = []
    monkeypatch.setattr(shutil, "rmtree", lambda what, **_: removed.append(what))
    assert not covers.whole(path)
    assert removed == []
    path.mkdir()  # damaged: it has no manifest
    assert not covers.whole(path)
    assert removed == [path]


def test_a_flux_quantum_beyond_32_bits_is_no_silent_loss() -> None:
    from matforge.vacua.campaign import chores

    geometry = load_geometry("octic")
    region = Region.parse(geometry, "2:7", ":30", 2)
    fluxes = np.array([[2**31 - 1, 0, 1, 0, 0, 2**31 - 1, 0, 1]])
    moduli, tau = np.array([[2.49 + 3j]]), np.array([2j])  # folding by two shifts makes them larger
    with pytest.raises(OverflowError, match="beyond 32 bits"):
        chores._canonical(geometry, region, fluxes, moduli, tau, Tuning(conjugation=False))


def test_a_tuning_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="batch"):
        Tuning(batch=-1)


# ---------------------------------------------------------------- the published and exhausted counts


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, entry in PRESETS.items() if entry.expected])
def test_every_preset_has_exactly_its_known_count(name: str, tmp_path: Path) -> None:
    found = summary(run_preset(name, tmp_path, workers=2))
    known = preset(name)
    assert found["count_mod_sign"] == known.expected
    if known.by_n_flux:
        assert tuple(found["by_n_flux"].values()) == known.by_n_flux


def test_the_full_region_has_exactly_6097_vacua_and_18_double_ones(tmp_path: Path) -> None:
    run = run_preset("p11169-full", tmp_path, workers=2)
    found = summary(run)
    assert tuple(found["by_n_flux"].values()) == PER_N
    assert found["count_both_signs"] == 12_194
    assert found["count_mod_sign"] - found["distinct_fluxes"] == 18
    assert found["min_W0_abs"] == pytest.approx(0.235406, abs=1e-6)
