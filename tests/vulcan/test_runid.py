"""Run ids."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matforge.model import UsageError
from matforge.vulcan.layout import RUN_ID_LIMIT
from matforge.vulcan.runid import DEFAULT_TEMPLATE, check_run_id, check_template, render, slug, unique

NOW = datetime(2026, 3, 25, 12, 30, 45, tzinfo=UTC)
KKLT = "{date}_{project}_h12-{h12}_ks-{ks_id}_conifold-{conifold_id?}_variant-{variant?}_seed-{seed?}"
VALUES = st.none() | st.integers() | st.text(max_size=60) | st.floats(allow_nan=False)


def test_the_template_of_a_campaign_gives_readable_ids() -> None:
    values = {"project": "kklt-scan", "h12": 2, "ks_id": 384564, "conifold_id": 7, "variant": "isd-only"}
    expected = "2026-03-25-123045_kklt-scan_h12-2_ks-384564_conifold-7_variant-isd-only_seed-42"
    assert render(KKLT, {**values, "seed": 42}, NOW) == expected


def test_what_is_optional_may_be_missing() -> None:
    expected = "2026-03-25-123045_demo_h11-3_h12-2_ks-na_triang-0_seed-na"
    assert render(DEFAULT_TEMPLATE, {"project": "demo", "h11": 3, "h12": 2, "triang_id": 0}, NOW) == expected


@pytest.mark.parametrize("values", [{}, {"ks_id": None}])
def test_what_is_required_must_be_there(values: dict[str, Any]) -> None:
    """D3: a required value given as None was rendered as if it had one."""
    with pytest.raises(KeyError, match="'ks_id'") as raised:
        render("run-{ks_id}", values, NOW)
    assert isinstance(raised.value, UsageError)
    assert str(raised.value).startswith("The run-id template")


@settings(deadline=None)
@given(VALUES, VALUES)
def test_different_values_stay_different(one: Any, other: Any) -> None:
    """D3: -1 and 1, a/b and a.b, None and a Chinese name were the same word."""
    assert (slug(one) == slug(other)) == (
        one is other or (None not in (one, other) and str(one) == str(other))
    )


@pytest.mark.parametrize(
    ("value", "word"),
    [(-1, "m1"), (1, "1"), (-384564, "m384564"), (None, "na"), ("isd-only", "isd-only"), (0, "0")],
)
def test_plain_values_stay_readable(value: Any, word: str) -> None:
    assert slug(value) == word


@settings(deadline=None)
@given(st.text(max_size=300) | st.integers() | st.floats())
def test_any_value_makes_a_good_id(value: Any) -> None:
    """D3: two underscores, line ends and 300 characters made the write fail."""
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", check_run_id(render("run_{x}_end", {"x": value}, NOW)))


@pytest.mark.parametrize(
    "template",
    [
        "{seed:05d}",
        "{}",
        "{0}",
        "{a.b}",
        "{a[0]}",
        "{a!r}",
        "{a",
        "a}",
        "a b",
        "a/b",
        "a__b",
        "",
        "_a",
        "a\n",
    ],
)
def test_a_template_that_is_none_is_refused_when_it_is_given(template: str) -> None:
    """D3: formats and empty placeholders raised raw errors at the first write."""
    with pytest.raises(UsageError, match="template"):
        check_template(template)


@pytest.mark.parametrize("run_id", ["abc\n", "", "a__b", "_a", "-a", "a/b", "ä", None, 7, "a" * 161])
def test_a_run_id_that_cannot_name_a_file_is_refused(run_id: Any) -> None:
    """D3: a line end at the end was accepted, and a long id was an error of the file system."""
    with pytest.raises(UsageError, match="run id"):
        check_run_id(run_id)


def test_a_function_makes_the_id_itself() -> None:
    assert render(lambda **values: f"job-{values['seed']}", {"seed": 7}, NOW) == "job-7"
    with pytest.raises(UsageError, match="run id"):
        render(lambda **values: "a/b", {}, NOW)


def test_without_a_template_ids_are_random() -> None:
    assert render(None, {}) != render(None, {})


@settings(deadline=None)
@given(st.integers(1, RUN_ID_LIMIT))
def test_made_unique_an_id_is_still_an_id_and_a_new_one(length: int) -> None:
    run_id = "a" * length
    assert check_run_id(unique(run_id)) != check_run_id(unique(run_id))
