"""What is checked of a batch before anything is written."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matforge.model import UsageError
from matforge.vulcan.problems import BatchError
from matforge.vulcan.schema import FLOOR, SCHEMA
from matforge.vulcan.validate import document, prepare, repeated
from tests.vulcan.batches import GEOMETRY, files_below, forge, vacua

NAN, INF = float("nan"), float("inf")


def problems(frame: Any, **arguments: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Column and rows of everything that is wrong."""
    with pytest.raises(BatchError) as raised:
        prepare(frame, **{"geometry": GEOMETRY, "tadpole_charge": 12, **arguments})
    return [(problem.column, problem.rows) for problem in raised.value.problems]


@pytest.mark.parametrize(
    ("column", "value", "rows"),
    [
        ("tau_re", [0.1, NAN, 0.2, None], (1, 3)),
        ("tau_im", [1.0, INF, 2.0, 3.0], (1,)),
        ("tau_im", [1.0, 0.0, -2.0, 3.0], (1, 2)),
        ("moduli_re", [[0.1, 0.2], [NAN, 0.2], [0.1, 0.2], [0.3, 0.4]], (1,)),
        ("moduli_im", [[0.1, 0.2], [1.0, 0.2], [0.1, INF], [0.3, 0.4]], (2,)),
        ("moduli_im", [[1.0, 2.0], [1.0], [1.0, 2.0, 3.0], [1.0, 2.0]], (1, 2)),
        ("flux", [[1] * 6, [2] * 3, [3] * 6, [4] * 6], (1,)),
        ("flux", [[1] * 6, [], [3] * 6, [4] * 6], (1,)),
        ("flux", [[1] * 6, None, [3] * 6, [4] * 6], (1,)),
        ("flux", [[1, 2], [1, None], [3, 4], [5, 6]], (1,)),
        ("flux", [[1, 2], [1, 1.5], [3, 4], [5, 6]], (1,)),
        ("flux", [[1, 2], [1, 2**31], [3, 4], [5, 6]], (1,)),
        ("flux", [[1, 2], "ab", [3, 4], [5, 6]], (1,)),
        ("flux", [[1, 2], [1j, 2], [3, 4], [5, 6]], (1,)),
        ("tadpole_charge", [12, 12.9, 12, 12], (1,)),
        ("n_iterations", [1, 2, 3, 2**40], (3,)),
        ("residual", [1e-9, INF, 1e-9, 1e-9], (1,)),
        ("mass2", [[1.0], None, [NAN], [2.0]], (2,)),
        ("geometry_id", ["a", "b", "c", "d"], (0, 1, 2, 3)),
        ("ks_id", [1, 384564, 3, 4], (0, 2, 3)),
    ],
)
def test_what_is_wrong_with_a_column_is_told_with_its_rows(
    column: str, value: list[Any], rows: tuple[int, ...]
) -> None:
    """D4, D5: all of this was written, changed or truncated without a word."""
    assert (column, rows) in problems(vacua(**{column: value}))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("is_susy", [1, 0, 1, 2]),
        ("solver_name", [1, 2, 3, 4]),
        ("tau_re", ["a", "b", "c", "d"]),
        ("created_at", ["2026-01-01"] * 4),
        ("moduli_re", [1.0, 2.0, 3.0, 4.0]),
        ("split", ["train"] * 4),
        ("extra_data", ["{}"] * 4),
        ("z", [1j, 2j, 3j, 4j]),
    ],
)
def test_a_column_of_another_kind_is_told(column: str, value: list[Any]) -> None:
    """D6: a complex column of one's own was an error of the parquet library."""
    assert column in [name for name, _ in problems(vacua(**{column: value}))]


def test_everything_wrong_is_told_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    frame = vacua(tau_im=[1.0, NAN, 1.0, -1.0], ks_id=[1, 2, 3, 4], n_iterations=[1, 2, 3, 4.5])
    handle = forge(tmp_path)
    with pytest.raises(BatchError) as raised:
        handle.write(frame.drop(columns="flux"), GEOMETRY)
    found = {problem.column for problem in raised.value.problems}
    assert found == {"", "tau_im", "ks_id", "n_iterations", "tadpole_charge"}
    text = str(raised.value)
    assert "because of 5 problems" in text
    assert "flux must be there" in text
    assert (
        "ks_id is not that of the geometry (384564); stage one geometry at a time (rows 0, 1, 2, 3)" in text
    )
    assert files_below(tmp_path) == []


def test_many_rows_are_not_all_listed() -> None:
    with pytest.raises(BatchError, match=r"rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more\)"):
        prepare(vacua(30, tau_re=[NAN] * 30), GEOMETRY, tadpole_charge=1)


@pytest.mark.parametrize("name", FLOOR)
def test_a_column_that_must_be_there_is_missed(name: str) -> None:
    with pytest.raises(BatchError, match=f"the column {name} must be there"):
        prepare(vacua().drop(columns=name), GEOMETRY, tadpole_charge=1)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(BatchError, match="no rows"):
        prepare(vacua().head(0), GEOMETRY, tadpole_charge=1)


def test_the_same_vacuum_twice_is_a_mistake_but_one_flux_vector_may_have_two_vacua() -> None:
    """D5: duplicates are pairs (flux, z), not flux vectors."""
    frame = vacua(5)
    frame["flux"] = [[1] * 12] * 5
    assert prepare(frame, GEOMETRY, tadpole_charge=1).n_rows == 5
    twice = pd.concat([frame, frame.iloc[[1, 3]]], ignore_index=True)
    assert problems(twice) == [("", (5, 6))]


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 1.0, -1.5, 2.0]), min_size=3, max_size=3), min_size=1, max_size=40
    )
)
def test_repeated_rows_are_exactly_those_that_were_there_before(rows: list[list[float]]) -> None:
    before = [index for index, row in enumerate(rows) if row in rows[:index]]
    assert repeated(np.array(rows)).tolist() == before


def test_the_tadpole_comes_from_the_column_the_argument_or_n_flux() -> None:
    def charges(frame: pd.DataFrame, **arguments: Any) -> list[int]:
        return prepare(frame, GEOMETRY, **arguments).columns["tadpole_charge"].to_pylist()

    frame = vacua(3, n_flux=[1, 2, 3])
    assert charges(frame) == [1, 2, 3]
    assert charges(frame, tadpole_charge=7) == [7, 7, 7]
    assert charges(frame.assign(tadpole_charge=[4, 5, 6]), tadpole_charge=7) == [4, 5, 6]
    with pytest.raises(BatchError, match="tadpole_charge is not known"):
        prepare(vacua(3), GEOMETRY)
    with pytest.raises(BatchError, match=r"must be a whole number of 32 bits, not 12\.9"):
        prepare(vacua(3), GEOMETRY, tadpole_charge=12.9)


def test_names_of_columns_are_text_and_stand_there_once() -> None:
    """D6: both were raw errors."""
    assert problems(vacua().rename(columns={"tau_re": 5})) == [("", ()), ("", ())]
    frame = pd.concat([vacua(), vacua()[["tau_re"]]], axis=1)
    assert problems(frame) == [("tau_re", ())]


def test_what_is_no_batch_is_refused() -> None:
    for frame in (None, 7, "abc", [1, 2]):
        with pytest.raises(UsageError, match="A batch is a data frame"):
            prepare(frame, GEOMETRY)
    with pytest.raises(BatchError, match="different lengths"):
        prepare({"flux": [[1]], "tau_re": [1.0, 2.0]}, GEOMETRY)


def test_every_column_gets_the_type_of_the_schema() -> None:
    frame = vacua(
        residual=np.float32(1e-9), is_susy=True, n_iterations=np.int64(7), seed=3.0, wall_clock_s=1,
        mass2=[[1, 2], None, [3.5], []], solver_name=pd.Categorical(["a"] * 4),
        created_at=datetime(2026, 1, 2), F_terms_re=[[0.0]] * 4, F_terms_im=[[0.0]] * 4,
    )  # fmt: skip
    table = prepare(frame, GEOMETRY, tadpole_charge=12).table("run")
    assert table.schema == SCHEMA
    assert table["mass2"].to_pylist() == [[1.0, 2.0], None, [3.5], []]
    assert table["seed"].to_pylist() == [3] * 4
    assert str(table["created_at"][0].as_py()) == "2026-01-02 00:00:00+00:00"


@pytest.mark.parametrize("kind", ["frame", "table", "mapping"])
def test_frames_tables_and_mappings_are_the_same_batch(kind: str) -> None:
    frame = vacua(tau_re=[0.5, 0.25, -0.5, 0.0])
    whole = {name: frame[name].tolist() for name in frame}
    given_as = {"frame": frame, "table": pa.table(whole), "mapping": whole}[kind]
    now = datetime(2026, 1, 2)
    expected = prepare(frame, GEOMETRY, tadpole_charge=1, now=now).table("r")
    assert prepare(given_as, GEOMETRY, tadpole_charge=1, now=now).table("r").equals(expected)


def test_lists_of_any_make_are_lists() -> None:
    frame = vacua()
    expected = prepare(frame, GEOMETRY, tadpole_charge=1).columns["flux"]
    rng_like = frame.assign(flux=pd.Series([[np.int64(x) for x in row] for row in frame["flux"]]))
    arrays = frame.assign(flux=pd.Series([np.array(row, float) for row in frame["flux"]]))
    mixed = frame.assign(
        flux=pd.Series([np.array(r, float) if i % 2 else np.array(r) for i, r in enumerate(frame["flux"])])
    )
    for other in (rng_like, arrays, mixed):
        assert prepare(other, GEOMETRY, tadpole_charge=1).columns["flux"].equals(expected)


def test_the_producer_may_have_columns_of_its_own() -> None:
    own = {"label": ["a", None, "b", "c"], "weights": [[1], [2, 3], None, []], "score": [1.0, NAN, 2.0, 3.0]}
    table = prepare(vacua(**own), GEOMETRY, tadpole_charge=1).table("r")
    assert table.column_names[-3:] == list(own)
    assert table["score"].to_pylist() == [1.0, None, 2.0, 3.0]


def test_provenance_keeps_what_json_can_hold() -> None:
    """D6: numbers of numpy became strings."""
    value = {
        "n": np.int64(4),
        "x": np.float32(0.5),
        "a": np.arange(2),
        "p": Path("b"),
        "t": datetime(2026, 1, 2),
    }
    expected = {"n": 4, "x": 0.5, "a": [0, 1], "p": "b", "t": "2026-01-02T00:00:00"}
    assert document("provenance", value) == expected
    with pytest.raises(UsageError, match=r"provenance\['f'\] is a function"):
        document("provenance", {"f": lambda: 0})
    with pytest.raises(UsageError, match="must be text, not 3"):
        document("provenance", {"a": {3: 4}})
    with pytest.raises(UsageError, match="must be a mapping"):
        document("provenance", 7)


def test_solver_and_provenance_fill_columns_that_are_not_there() -> None:
    provenance = {"git_sha": "deadbeef", "seed": 42, "wall_clock_s": 3.5}
    solver = {"name": "newton", "config_hash": "abc123"}
    columns = prepare(vacua(seed=7), GEOMETRY, tadpole_charge=1, solver=solver, provenance=provenance).columns
    found = {
        name: columns[name][0].as_py() for name in ("solver_name", "solver_config_hash", "git_sha", "seed")
    }
    assert found == {
        "solver_name": "newton", "solver_config_hash": "abc123", "git_sha": "deadbeef", "seed": 7
    }  # fmt: skip
    assert (
        prepare(vacua(), GEOMETRY, tadpole_charge=1, solver="newton").columns["solver_name"][0].as_py()
        == "newton"
    )
    with pytest.raises(BatchError, match="seed must be a number, but holds string"):
        prepare(vacua(), GEOMETRY, tadpole_charge=1, provenance={"seed": "x"})


def test_a_slice_of_a_table_is_that_slice(tmp_path: Path) -> None:
    """Columns that fit are staged as they are, wherever in their memory they begin."""
    frame = vacua(20)
    whole = pa.table({name: frame[name].tolist() for name in frame})
    whole = whole.append_column("mass2", pa.array([[1.0], None] * 10))
    whole = whole.append_column("n_iterations", pa.array([1, None] * 10, pa.int32()))
    handle = forge(tmp_path)
    handle.write(whole.slice(5, 7), GEOMETRY, tadpole_charge=1)
    back = handle.reader("pending").table(columns=whole.column_names)
    assert back.to_pydict() == whole.slice(5, 7).to_pydict()
