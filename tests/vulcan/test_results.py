"""From a search to the Hub and back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from matforge.model import MatForgeError
from matforge.vulcan import Vulcan
from matforge.vulcan.results import stage_batch, target_of
from tests.vulcan import forked
from tests.vulcan.hub import LoopbackHub
from tests.vulcan.staging import REPO, counts, forge
from tests.vulcan.test_card import streamed
from tests.vulcan.test_writer import run_forked
from tests.vulcan.vacua import octic, octic_vacua

ROOT = Path(__file__).parents[2]


def environment(hub: LoopbackHub, folder: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.endpoint, "MATFORGE_VULCAN_TOKEN": "x",
        "MATFORGE_VULCAN_STAGING_DIR": str(folder / "staging"), "MATFORGE_VULCAN_REPO": REPO, **more,
    }  # fmt: skip


def run(arguments: list[str], hub: LoopbackHub, folder: Path, **more: str) -> Any:
    command = [sys.executable, "-m", "matforge", *arguments]
    variables = environment(hub, folder, **more)
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=400)


def found(rows: int, first: int = 0) -> pa.Table:
    """Some vacua, as a search has them."""
    return pa.Table.from_pandas(octic_vacua(rows, first).assign(n_flux=3), preserve_index=False)


def staged(handle: Vulcan) -> list[list[int]]:
    """The flux vectors of all staged rows, sorted."""
    return sorted(list(flux) for flux in handle.query(source="pending")["flux"])


def test_a_batch_is_staged_once_however_often(tmp_path: Path) -> None:
    handle = forge(tmp_path)
    target = target_of(handle)
    first = stage_batch(target, octic(), found(3), tmp_path / "run", "000000")
    assert stage_batch(target, octic(), found(3), tmp_path / "run", "000000") == first
    assert len(first) == counts(handle)[0] == 1
    assert stage_batch(target, octic(), found(3), tmp_path / "other", "000000") != first
    assert counts(handle)[0] == 2
    assert "hf_test" not in str(target)


def test_a_run_that_was_moved_stages_nothing_twice(tmp_path: Path) -> None:
    handle = forge(tmp_path)
    first = stage_batch(target_of(handle), octic(), found(3), tmp_path / "run", "000000")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert stage_batch(target_of(handle), octic(), found(3), tmp_path / "elsewhere", "000000") == first
    assert counts(handle)[0] == 1


def test_a_vacuum_that_several_batches_have_is_staged_by_one_of_them(tmp_path: Path) -> None:
    handle = forge(tmp_path)
    for batch, some in {"a": found(3), "b": found(3, first=2), "c": found(2), "rest": found(6)}.items():
        stage_batch(target_of(handle), octic(), some, tmp_path / "run", batch)
    assert staged(handle) == sorted(found(6)["flux"].to_pylist())
    assert counts(handle)[0] == 3  # nothing was left for c


def test_two_vacua_of_one_flux_vector_are_two_and_copies_are_one(tmp_path: Path) -> None:
    handle, run = forge(tmp_path), tmp_path / "run"
    one = octic_vacua(1).assign(n_flux=3)
    near, other = one.copy(deep=True), one.copy(deep=True)
    near["moduli_im"] = [[x + 1e-9 for x in row] for row in one["moduli_im"]]
    other["moduli_im"] = [[x + 1e-3 for x in row] for row in one["moduli_im"]]
    for batch, some in {"a": one, "b": near, "c": other}.items():
        stage_batch(target_of(handle), octic(), pa.Table.from_pandas(some), run, batch)
    assert sorted(im[0] for im in handle.query(source="pending")["moduli_im"]) == [
        one["moduli_im"][0][0],
        other["moduli_im"][0][0],
    ]


def test_batches_that_many_processes_stage_at_once_are_disjoint(tmp_path: Path) -> None:
    ended = run_forked("search", tmp_path)
    assert ended["bad"] == 0
    rows = forked.vacua(42)["flux"].tolist()
    assert ended["fluxes"] == sorted(rows[:39])


def test_a_chore_killed_at_any_step_stages_the_rest_when_it_is_run_again(tmp_path: Path) -> None:
    seen = run_forked("kill", "stage", tmp_path)
    assert [one["ended"] for one in seen] == [-9] * (len(seen) - 1) + [0]
    assert len(seen) > 20
    rows = sorted(forked.vacua(12)["flux"].tolist()[:9])
    assert all(one["again"] == 0 and one["fluxes"] == rows for one in seen)


def test_a_claim_is_on_the_disk_before_anything_of_it_is_staged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power failure could leave the shard without its claim, and it would be staged once more."""
    steps: list[str] = []
    sync, link = os.fsync, os.link

    def note_sync(descriptor: int) -> None:
        sync(descriptor)
        steps.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    def note_link(source: Any, target: Any) -> None:
        steps.append("staged")
        link(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "link", note_link)
    handle = forge(tmp_path)
    stage_batch(target_of(handle), octic(), found(3), tmp_path / "run", "a")
    file, folder, *names = steps[: steps.index("staged")]
    kept = [str(tmp_path / "run" / "staged"), str(tmp_path / "run")]
    assert file == f"{folder}/a.parquet"
    assert names == kept
    # killed after the claim was made: the one that is run again cannot know whether it is on the disk
    steps.clear()
    for path in (handle.staging_dir / "pending").glob("*"):
        path.unlink()
    stage_batch(target_of(handle), octic(), found(3), tmp_path / "run", "a")
    assert steps[: steps.index("staged")][:2] == kept


def test_a_claim_that_cannot_be_read_is_named_and_nothing_is_guessed(tmp_path: Path) -> None:
    handle, run = forge(tmp_path), tmp_path / "run"
    stage_batch(target_of(handle), octic(), found(3), run, "a")
    (run / "staged" / "000001" / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(MatForgeError, match="000001"):
        stage_batch(target_of(handle), octic(), found(3, first=2), run, "b")
    assert len(staged(handle)) == 3


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
    run_dir = next((tmp_path / "runs").iterdir())
    batches = {path.stem for path in run_dir.glob("staged/*/*.parquet")}
    assert batches <= {path.stem.removeprefix("vacua-") for path in run_dir.glob("shards/*.parquet")}
    index = json.loads(hub.repositories[REPO].files()["matforge.json"])
    rows = streamed(hub, tmp_path / "cache", sorted(next(iter(index["sources"].values()))["rows"]))
    table = pq.read_table(next((tmp_path / "runs").glob("*/vacua.parquet"))).to_pylist()
    assert len(rows) == len(table) == (6097 if preset == "p11169-full" else 21)

    def key(row: dict[str, Any]) -> Any:
        return row["flux"], row["moduli_re"], row["moduli_im"]

    for theirs, ours in zip(sorted(rows, key=key), sorted(table, key=key), strict=True):
        assert {name: theirs[name] for name in ours} == ours
        assert theirs["tadpole_charge"] == ours["n_flux"]
    assert len(Vulcan(repo=REPO, staging_dir=tmp_path / "staging").query()) == len(table)
    if preset == "p11169-full":
        assert len(batches) > 1


@pytest.mark.slow
def test_a_search_that_is_killed_and_resumed_stages_every_vacuum_once(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    region = ["--geometry", "p11169", "--nmax", "6", "--im-z", "2:5", "--block", "64", "--workers", "2"]
    command = [sys.executable, "-m", "matforge", "vacua", "search", "--publish", "-q", *region]
    process = subprocess.Popen(
        [*command, "--dir", str(tmp_path / "runs")], env=environment(hub, tmp_path), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    pending = tmp_path / "staging" / "pending"
    try:
        deadline = time.monotonic() + 240
        while len(list(pending.glob("h12*.parquet"))) < 2 and time.monotonic() < deadline:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run_dir = next((tmp_path / "runs").iterdir())
    assert not (run_dir / "vacua.parquet").exists()
    done = run(["resume", str(run_dir), "-q"], hub, tmp_path)
    assert done.returncode == 0, done.stderr
    table = pq.read_table(run_dir / "vacua.parquet")
    rows = Vulcan(repo=REPO, staging_dir=tmp_path / "staging").reader("pending").table()
    assert rows.num_rows == table.num_rows == 134
    ours, theirs = (sorted(map(str, t.select(table.column_names).to_pylist())) for t in (table, rows))
    assert ours == theirs
