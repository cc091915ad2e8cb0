"""Sessions: kept as found, by any number of processes, also when the search fails."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matforge.model import UsageError
from matforge.vulcan.problems import BatchError
from matforge.vulcan.vault import SessionStore, VaultDamagedError
from tests.vulcan.staging import Clock
from tests.vulcan.vacua import octic, octic_vacua

ROOT = Path(__file__).parents[3]


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore(tmp_path / "sessions", clock=Clock())


def test_what_was_kept_is_loaded_each_vacuum_once(store: SessionStore) -> None:
    first = store.write(octic_vacua(3), model=octic(), tags=["a"], notes="one")
    second = store.write(octic_vacua(3, 2), model="octic", tags=["b"])
    assert first != second
    assert len(store.load()) == 5
    assert len(store.load(tags="a")) == 3
    assert set(store.load(run_id=second)["run_id"]) == {second}
    assert store.load(model="p11169").empty
    assert list(store.load(model="p11169")[["flux", "tau_im"]].columns) == ["flux", "tau_im"]
    assert len(store.load(limit=2)) == 2


def test_the_tags_of_a_run_are_found(store: SessionStore) -> None:
    """D29: in the reference they are not."""
    run = store.write(octic_vacua(2), model=octic(), tags=["scan", "b"], notes="why")
    store.write(octic_vacua(2, 5), model=octic())
    found = store.runs(tags="scan")
    assert found[["run_id", "rows", "notes"]].to_numpy().tolist() == [[run, 2, "why"]]
    assert len(store.runs()) == 2


def test_a_vacuum_is_found_again(store: SessionStore) -> None:
    frame = octic_vacua(3)
    store.write(frame, model=octic())
    row = frame.iloc[1]
    z = np.array(row["moduli_re"]) + 1j * np.array(row["moduli_im"])
    assert store.exists(row["flux"], z, model=octic())
    assert not store.exists(row["flux"], z + 0.01, model=octic())
    assert len(store.similar(row["flux"], z + 0.01, model=octic())) == 1
    assert len(store.similar(np.array(row["flux"]), model=octic())) == 1
    assert store.similar([0] * 8, model=octic()).empty


def test_the_writer_keeps_what_it_was_given_also_when_the_body_fails(store: SessionStore) -> None:
    frame = octic_vacua(4)

    def search() -> None:
        with store.writer(model=octic(), tags=["t"]) as writer:
            assert writer.append(frame.iloc[0].to_dict())
            assert not writer.append(frame.iloc[0].to_dict())
            assert writer.append_batch(frame) == 3
            raise RuntimeError("the search died")

    with pytest.raises(RuntimeError, match="the search died"):
        search()
    assert len(store.load(tags="t")) == 4


@pytest.mark.parametrize(
    "bad",
    [
        {"flux": [1]},
        {"flux": [[1]]},
        {"tau_re": float("nan")},
        {"flux": [1, 2]},
        {"moduli_im": None},
        "no mapping",
    ],
)
def test_a_row_that_is_no_vacuum_is_told_at_once_and_costs_no_other(bad: Any, store: SessionStore) -> None:
    """D29: told at the end, and all rows were lost."""
    frame = octic_vacua(3)
    row = frame.iloc[2].to_dict()
    with store.writer(model=octic()) as writer:
        writer.append_batch(frame.iloc[:2])
        with pytest.raises(UsageError):
            writer.append({**row, **bad} if isinstance(bad, dict) else bad)
        if isinstance(bad, dict):
            with pytest.raises(UsageError):
                writer.append_batch({name: [value] for name, value in {**row, **bad}.items()})
        assert writer.append(row)
    assert len(store.load()) == 3


def test_the_writer_keeps_only_what_its_filter_takes(store: SessionStore) -> None:
    with store.writer(model=octic(), filter_fn=lambda row: row["tau_im"] > 2, run_id="mine") as writer:
        writer.append_batch(octic_vacua(8))
    kept = store.load()
    assert (kept["tau_im"] > 2).all()
    assert len(kept) == int((octic_vacua(8)["tau_im"] > 2).sum())
    assert writer.run_id == "mine"
    with store.writer(model=octic()):
        pass
    assert len(store.runs()) == 1


@pytest.mark.parametrize("options", [{"run_id": "../.."}, {"run_id": ""}, {"tags": [""]}, {"model": None}])
def test_what_cannot_be_kept_is_told_before_the_search(options: dict[str, Any], store: SessionStore) -> None:
    """D29: the reference finds out at the end, and the rows are lost."""
    with pytest.raises(UsageError):
        store.writer(**{"model": octic(), **options})
    with pytest.raises(UsageError):
        store.write(octic_vacua(1), **{"model": octic(), **options})


def test_rows_that_make_no_sense_are_refused(store: SessionStore) -> None:
    """D27: half a flux quantum is cut to a whole one by the reference."""
    frame = octic_vacua(2)
    frame.at[0, "flux"] = [1.7, *frame.at[0, "flux"][1:]]
    with pytest.raises(BatchError, match="flux"):
        store.write(frame, model=octic())
    assert not store.folder.exists()


def test_deleting_needs_to_be_told_what(store: SessionStore) -> None:
    """D29: without a filter the reference deletes everything."""
    run = store.write(octic_vacua(1), model=octic())
    store.write(octic_vacua(1, 3), model=octic())
    with pytest.raises(UsageError, match="Which sessions"):
        store.delete()
    assert store.delete(run_id=run) == 1
    assert len(store.load()) == 1
    assert store.delete(everything=True) == 1
    assert store.load().empty


def test_four_processes_write_at_once(store: SessionStore) -> None:
    """D28: in the reference the catalogue is corrupted and rows are lost."""
    script = """
        import sys
        from matforge.vulcan.vault import SessionStore
        store, seed = SessionStore(sys.argv[1]), int(sys.argv[2])
        for n in range(15):
            frame = dict(flux=[[seed, n, 0, 0, 0, 0, 0, 1]], moduli_re=[[0.1]], moduli_im=[[2.0]],
                         tau_re=[0.0], tau_im=[2.0])
            store.write(frame, identity=dict(h11=149, h12=1))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(store.folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen([*command, str(seed)], env=environment) for seed in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    assert len(store.load()) == 60
    assert len(store.runs()) == 60


def test_a_damaged_session_is_named(store: SessionStore) -> None:
    store.write(octic_vacua(1), model=octic())
    path = next(store.folder.rglob("*.parquet"))
    path.write_bytes(b"PAR1")
    with pytest.raises(VaultDamagedError, match=path.name):
        store.load()
