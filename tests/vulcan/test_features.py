"""What a model is trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matforge.model import UsageError
from matforge.vulcan import FeatureSpec
from matforge.vulcan.schema import SCHEMA

LISTS = st.lists(st.lists(st.integers(-9, 9), max_size=6) | st.none(), min_size=1, max_size=8)


def table(**columns: Any) -> pa.Table:
    """Some columns of vacua."""
    rows = len(next(iter(columns.values())))
    found = {name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}
    return pa.table({**found, "geometry_id": pa.array(["g"] * rows)})


@settings(deadline=None)
@given(LISTS, st.integers(6, 9), st.integers(-2, 2))
def test_short_lists_are_filled_up_and_nothing_else_changes(lists: list[Any], length: int, fill: int) -> None:
    found = FeatureSpec(["flux"], list_max_len=length, list_fill=fill).apply(table(flux=lists))
    expected = [(row or []) + [fill] * (length - len(row or [])) for row in lists]
    assert found["flux"].to_pylist() == expected
    assert found.schema.field("flux").type == pa.list_(pa.int32(), length)


def test_a_fill_that_is_no_whole_number_makes_lists_floats() -> None:
    """D10: NaN became -2147483648."""
    found = FeatureSpec(["flux"], list_max_len=3, list_fill=float("nan")).apply(
        table(flux=[[1, 2], [3, 4, 5]])
    )
    np.testing.assert_array_equal(np.array(found["flux"].to_pylist()), [[1.0, 2.0, np.nan], [3.0, 4.0, 5.0]])


def test_what_is_cut_is_said() -> None:
    """D10: entries were dropped in silence."""
    spec = FeatureSpec(["flux"], list_max_len=2)
    with pytest.warns(UserWarning, match="flux: 1 of 2 lists were cut to 2 entries"):
        assert spec.apply(table(flux=[[1, 2, 3], [4]]))["flux"].to_pylist() == [[1, 2], [4, 0]]


def test_lists_that_are_missing_are_filled_too() -> None:
    """D10: mass2 stayed a mixture of lists and nothing."""
    spec = FeatureSpec(["mass2", "tau_re"], list_max_len=2, list_fill=-1, keep_geometry_id=False)
    found = spec.apply(table(mass2=[[0.5], None], tau_re=[1.0, 2.0]))
    assert found["mass2"].to_pylist() == [[0.5, -1], [-1, -1]]
    assert found.column_names == ["mass2", "tau_re"]


def test_lengths_and_fills_may_differ_by_column() -> None:
    spec = FeatureSpec(["flux", "mass2"], list_max_len={"flux": 2}, list_fill={"flux": 7})
    found = spec.apply(table(flux=[[1]], mass2=[[0.5]]))
    assert found.to_pylist() == [{"flux": [1, 7], "mass2": [0.5], "geometry_id": "g"}]


def test_the_types_of_no_rows_are_those_of_some() -> None:
    """D10: an empty split had columns without a shape."""
    spec, some = FeatureSpec(["flux", "is_susy"], list_max_len=4), table(flux=[[1]], is_susy=[True])
    assert spec.apply(some).schema == spec.apply(some.slice(0, 0)).schema


def test_the_geometry_is_not_there_twice() -> None:
    assert FeatureSpec(["geometry_id", "tau_re"]).columns == ("geometry_id", "tau_re")
    assert FeatureSpec(["tau_re"]).columns == ("tau_re", "geometry_id")


@pytest.mark.parametrize(
    "arguments",
    [
        {"features": "tau_re"},
        {"features": []},
        {"features": None},
        {"features": ["a", "a"]},
        {"features": [1]},
        {"features": ["flux"], "list_max_len": 0},
        {"features": ["flux"], "list_max_len": 1.5},
        {"features": ["flux"], "list_max_len": {"flux": -1}},
        {"features": ["flux"], "list_fill": "0"},
        {"features": ["flux"], "list_fill": {"flux": None}},
    ],
)
def test_what_is_no_spec_is_refused(arguments: dict[str, Any]) -> None:
    """D10: a name instead of a list of names was taken letter by letter."""
    with pytest.raises(UsageError, match=r"features|list_max_len|list_fill"):
        FeatureSpec(**arguments)
