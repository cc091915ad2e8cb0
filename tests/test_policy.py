"""What failures cost, how long one waits after them, and how times and sizes are written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matforge.model import FailureKind, UsageError
from matforge.policy import (
    DEFAULT_POLICY,
    LONGEST_PAUSE_S,
    RULES,
    Policy,
    memory_bytes,
    pause_before,
    policy_of,
    seconds,
)


def test_every_kind_of_failure_has_a_rule() -> None:
    assert set(RULES) == set(FailureKind)
    assert all(rule.why for rule in RULES.values())


def test_a_lost_place_costs_nothing_and_what_can_never_succeed_is_not_tried_again() -> None:
    free = {kind for kind, rule in RULES.items() if rule.cost == 0}
    assert free >= {FailureKind.WORKER_LOST, FailureKind.NODE_LOST, FailureKind.WALLTIME}
    assert RULES[FailureKind.EXCEPTION].cost == 1
    useless = {kind for kind, rule in RULES.items() if rule.cost is None}
    assert useless == {
        FailureKind.CANNOT_PICKLE_RESULT,
        FailureKind.DEPENDENCY_FAILED,
        FailureKind.DOES_NOT_FIT,
        FailureKind.CANCELLED,
    }


@given(st.sampled_from(list(FailureKind)), st.integers(1, 40))
def test_pauses_grow_up_to_a_minute(kind: FailureKind, tries: int) -> None:
    pause = pause_before(kind, tries)
    assert 0 <= pause <= pause_before(kind, tries + 1) <= LONGEST_PAUSE_S
    assert (pause > 0) == RULES[kind].pauses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (90, 90.0),
        (0.5, 0.5),
        ("90", 90.0),
        ("90s", 90.0),
        ("20m", 1200.0),
        ("1h30m", 5400.0),
        ("1.5 h", 5400.0),
        ("2d", 172800.0),
        ("20:00", 1200.0),
        ("01:02:03", 3723.0),
        ("1-02:03:04", 93784.0),
    ],
)
def test_times_are_numbers_or_texts(text: Any, expected: float) -> None:
    assert seconds(text, "timeout") == expected


@pytest.mark.parametrize(
    "wrong", [0, -1, "soon", "", "10 minutes", True, None, float("inf"), float("nan"), "::"]
)
def test_other_times_are_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="timeout must be a positive time like 90"):
        seconds(wrong, "timeout")


@pytest.mark.parametrize(
    ("text", "expected"),
    [(5, 5), ("4GiB", 4 * 2**30), ("500 MB", 500 * 10**6), ("2g", 2 * 10**9), ("1.5Ki", 1536), ("12", 12)],
)
def test_sizes_are_numbers_or_texts(text: Any, expected: int) -> None:
    assert memory_bytes(text) == expected


@pytest.mark.parametrize("wrong", [0, -1, "much", "4 apples", True, None, 1.5, "0GiB"])
def test_other_sizes_are_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="memory must be a positive amount like"):
        memory_bytes(wrong)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"retries": -1}, "retries must be a whole number of at least 0, not -1"),
        ({"retries": 1.5}, "retries must be a whole number"),
        ({"retries": True}, "retries must be a whole number"),
        ({"on_failure": "panic"}, "on_failure must be 'continue' or 'stop', not 'panic'"),
        ({"timeout": "soon"}, "timeout must be a positive time"),
        ({"expected": -3}, "expected must be a positive time"),
    ],
)
def test_other_policies_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        policy_of(**wrong)


policies = st.builds(
    Policy,
    retries=st.none() | st.integers(0, 5),
    timeout=st.none() | st.floats(1, 100),
    expected=st.none() | st.floats(1, 100),
    on_failure=st.sampled_from([None, "continue", "stop"]),
)


@given(policies, policies)
def test_defaults_fill_in_what_is_not_said_and_nothing_else(one: Policy, defaults: Policy) -> None:
    both = one.over(defaults)
    for name in Policy.__slots__:
        said = getattr(one, name)
        assert getattr(both, name) == (said if said is not None else getattr(defaults, name))
    assert Policy.from_dict(both.as_dict()) == both
    assert both.over(DEFAULT_POLICY) == both


def test_what_is_not_said_is_the_default_itself() -> None:
    assert policy_of() is DEFAULT_POLICY
    assert DEFAULT_POLICY.as_dict() == {}
    assert not DEFAULT_POLICY.stops
