"""Splits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matforge.model import UsageError
from matforge.vulcan.identity import GeometryId
from matforge.vulcan.splits import SplitSpec

IDS = [GeometryId.of({"h11": 3, "h12": 2, "ks_id": i, "triang_id": 0}).id for i in range(10_000)]


@pytest.mark.parametrize(
    ("geometry_id", "split"),
    [("045a4612c71c625b", "val"), ("37e60191405f5905", "train"), ("f0bed63046a05489", "test")],
)
def test_a_geometry_is_in_the_split_that_published_sets_have_it_in(geometry_id: str, split: str) -> None:
    assert SplitSpec().of_geometry(geometry_id) == split


def test_the_splits_have_the_sizes_asked_for() -> None:
    assert Counter(SplitSpec().assign(IDS)) == {"train": 7981, "val": 970, "test": 1049}


def test_another_salt_is_another_assignment() -> None:
    same = sum(a == b for a, b in zip(SplitSpec().assign(IDS), SplitSpec(salt="x").assign(IDS), strict=True))
    assert 6000 < same < 7200  # 0.66 if independent


@settings(deadline=None)
@given(st.lists(st.sampled_from(IDS[:50]), max_size=80))
def test_a_geometry_is_in_one_split(ids: list[str]) -> None:
    assigned = SplitSpec().assign(ids)
    assert len({*zip(ids, assigned, strict=True)}) == len(set(ids))


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), max_size=60))
def test_by_row_the_vacua_of_one_flux_vector_stay_together(fluxes: list[list[int]]) -> None:
    column = pa.array(fluxes, pa.list_(pa.int32()))
    assigned = SplitSpec(by="row").assign(["g"] * len(fluxes), column)
    pairs = {(tuple(flux), split) for flux, split in zip(fluxes, assigned, strict=True)}
    assert len(pairs) == len({tuple(flux) for flux in fluxes})


def test_by_row_a_single_geometry_is_split() -> None:
    column = pa.array([[i, i + 1] for i in range(2000)], pa.list_(pa.int32()))
    counts = Counter(SplitSpec(by="row").assign(["g"] * 2000, column))
    assert 1500 < counts["train"] < 1700
    assert counts["val"] + counts["test"] + counts["train"] == 2000


@settings(deadline=None)
@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.integers(0, 9), min_size=n, max_size=n).filter(sum)))
def test_every_place_belongs_to_a_split_of_some_size(weights: list[int]) -> None:
    spec = SplitSpec(tuple(w / sum(weights) for w in weights), tuple(f"s{i}" for i in range(len(weights))))
    empty = {name for name, w in zip(spec.names, weights, strict=True) if w == 0}
    assert not set(spec.assign(IDS[:200])) & empty
    assert SplitSpec.from_dict(spec.as_dict()) == spec


@pytest.mark.parametrize(
    "arguments",
    [
        {"fractions": (0.8, 0.2)},
        {"fractions": (0.8, 0.3, -0.1)},
        {"fractions": (0.8, 0.1, 0.2)},
        {"fractions": "abc"},
        {"fractions": (float("nan"), 0.5, 0.5)},
        {"fractions": ()},
        {"names": "abc"},
        {"names": ("a", "a", "b")},
        {"names": ("a", "b", "c/d")},
        {"salt": 7},
        {"by": "flux"},
    ],
)
def test_what_is_no_split_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"[Ss]plits"):
        SplitSpec(**arguments)


def test_a_split_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="no split 'dev'; known are train, val, test"):
        SplitSpec().check("dev")
