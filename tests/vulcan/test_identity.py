"""Ids of geometries."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matforge.model import UsageError
from matforge.vacua import load_geometry
from matforge.vulcan.identity import GEOMETRY_KEYS, GeometryId, bucket

KEYS = st.dictionaries(st.sampled_from(GEOMETRY_KEYS), st.integers(0, 2**31 - 1), min_size=1)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"h11": 3, "h12": 2, "ks_id": 384564, "triang_id": 0}, "045a4612c71c625b"),
        ({"h11": 3, "h12": 2}, "f5872de1ce10c010"),
        ({"cicy_id": 7890}, "26cb9bfb7c4f63b9"),
    ],
)
def test_ids_are_those_of_published_data_sets(keys: dict[str, int], expected: str) -> None:
    assert GeometryId.of(keys).id == expected


def test_the_bucket_is_that_of_published_data_sets() -> None:
    assert bucket("045a4612c71c625b") == 0


@settings(deadline=None)
@given(KEYS)
def test_the_order_of_the_keys_does_not_matter(keys: dict[str, int]) -> None:
    assert GeometryId.of(keys).id == GeometryId.of(dict(reversed(keys.items()))).id


@settings(deadline=None)
@given(KEYS, KEYS)
def test_different_keys_have_different_ids(one: dict[str, int], other: dict[str, int]) -> None:
    assert (GeometryId.of(one).id == GeometryId.of(other).id) == (one == other)


@settings(deadline=None)
@given(KEYS)
def test_a_geometry_survives_being_written_as_json(keys: dict[str, int]) -> None:
    known = GeometryId.of(keys)
    assert GeometryId.of(json.loads(json.dumps(known.as_dict()))) == known


def test_zero_is_a_value_and_none_is_not() -> None:
    assert GeometryId.of({"h11": 3, "triang_id": 0}).id != GeometryId.of({"h11": 3}).id
    assert GeometryId.of({"h11": 3, "triang_id": None}).id == GeometryId.of({"h11": 3}).id


def test_numbers_of_other_libraries_are_numbers() -> None:
    assert GeometryId.of({"h11": np.int64(3), "h12": 2.0}) == GeometryId.of({"h11": 3, "h12": 2})


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"ksid": 1, "h11": 3}, r"no key 'ksid'; known are h11, h12, ks_id"),
        ({"h11": -7}, r"h11 must be a whole number from 0"),
        ({"h11": 3.7}, r"not 3\.7"),
        ({"h11": True}, r"not True"),
        ({"h11": "3"}, r"not '3'"),
        ({"h11": 2**31}, r"from 0 to 2147483647"),
        ({}, r"at least one of its keys"),
        ({"ks_id": None}, r"at least one of its keys"),
        ({"geometry_hash": "xyz"}, r"hexadecimal"),
        (7, r"not int"),
    ],
)
def test_what_is_no_geometry_is_refused_with_a_sentence(keys: Any, sentence: str) -> None:
    """D5, D6: a typo among the keys, negative or fractional numbers."""
    with pytest.raises(UsageError, match=sentence):
        GeometryId.of(keys)


def test_a_geometry_in_no_list_is_known_by_its_topological_data() -> None:
    found = GeometryId.of(load_geometry("p11169"))
    assert found.geometry_hash == load_geometry("p11169").hash
    assert found.keys["h12"] == 2
    assert found.id != GeometryId.of({"h11": found.h11, "h12": found.h12}).id
    other = GeometryId.of({**found.as_dict(), "geometry_hash": "0" * 64})
    assert other.id != found.id


def test_the_number_in_a_list_decides_where_there_is_one() -> None:
    keys = {"h11": 3, "h12": 2, "ks_id": 384564, "triang_id": 0}
    assert GeometryId.of({**keys, "geometry_hash": "ab" * 32}).id == GeometryId.of(keys).id


def test_a_source_named_in_words_is_no_number_of_a_list() -> None:
    class Named:
        h11, h12, ks_id, triang_id, cicy_id, hash = 3, 2, "some paper", "17", None, "ab" * 32

    found = GeometryId.of(Named())
    assert (found.ks_id, found.triang_id, found.cicy_id) == (-1, 17, -1)
