"""Columns, and how a producer's own travel."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matforge.vulcan.schema import (
    EXTRA,
    NAMES,
    SCHEMA,
    SchemaError,
    conform,
    extras,
    fold_extras,
    unfold_extras,
)
from matforge.vulcan.validate import prepare
from tests.vulcan.batches import GEOMETRY, vacua


def table(**columns: Any) -> pa.Table:
    """Four vacua as they are staged."""
    return prepare(vacua(**columns), GEOMETRY, tadpole_charge=1).table("r")


def column(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Four values of which not all are missing."""
    return st.lists(values | st.none(), min_size=4, max_size=4).filter(lambda v: v != [None] * 4)


@settings(deadline=None, max_examples=40)
@given(
    column(st.integers(-5, 5)), column(st.text(max_size=3)), column(st.lists(st.integers(0, 3), max_size=2))
)
def test_what_was_folded_is_unfolded_again(numbers: list[Any], words: list[Any], lists: list[Any]) -> None:
    own = {
        "number": pa.array(numbers),
        "word": pa.array(words),
        "list": pa.array(lists, pa.list_(pa.int64())),
    }
    whole = table()
    for name, values in own.items():
        whole = whole.append_column(name, values)
    folded = fold_extras(whole)
    assert folded.column_names == list(NAMES)
    again = unfold_extras(folded)
    assert {name: again[name].to_pylist() for name in own} == {
        "number": numbers,
        "word": words,
        "list": lists,
    }
    assert again[EXTRA].null_count == 4


def test_what_was_folded_before_is_kept() -> None:
    once = fold_extras(table(label=["a", "b", "c", "d"]))
    twice = fold_extras(once.append_column("more", pa.array([1, None, 3, 4])))
    assert unfold_extras(twice)["label"].to_pylist() == ["a", "b", "c", "d"]
    assert unfold_extras(twice)["more"].to_pylist() == [1, None, 3, 4]


def test_values_of_no_common_type_become_text() -> None:
    rows = pa.array(['{"x": 1}', '{"x": "a"}', None, '{"x": [2]}'])
    mixed = table().set_column(NAMES.index(EXTRA), EXTRA, rows)
    assert unfold_extras(mixed)["x"].to_pylist() == ["1", "a", None, "[2]"]


def test_a_column_that_exists_comes_first() -> None:
    rows = pa.array(['{"x": 1}', '{"x": 2}', '{"x": 3}', None])
    both = (
        table()
        .set_column(NAMES.index(EXTRA), EXTRA, rows)
        .append_column("x", pa.array([None, 7, None, None], pa.int64()))
    )
    assert unfold_extras(both)["x"].to_pylist() == [1, 7, 3, None]


def test_a_table_of_another_tool_is_brought_into_order() -> None:
    foreign = table().select([name for name in reversed(NAMES) if name not in ("mass2", "geometry_hash")])
    foreign = foreign.set_column(
        foreign.column_names.index("flux"), "flux", foreign["flux"].cast(pa.list_(pa.int64()))
    ).append_column("own", pa.array([1, 2, 3, 4]))
    found = conform(foreign)
    assert found.schema.names == [*NAMES, "own"]
    assert pa.schema(list(found.schema)[: len(NAMES)]) == SCHEMA
    assert extras(found.schema) == ["own"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.drop_columns("tau_re"), "'tau_re' is missing"),
        (
            lambda t: t.set_column(t.column_names.index("tau_re"), "tau_re", pa.nulls(4, pa.float64())),
            "4 rows",
        ),
        (
            lambda t: t.set_column(t.column_names.index("flux"), "flux", pa.array(list("abcd"))),
            "'flux' is string",
        ),
    ],
)
def test_what_is_no_table_of_vacua_is_told(change: Any, sentence: str) -> None:
    with pytest.raises(SchemaError, match=sentence):
        conform(change(table()))
