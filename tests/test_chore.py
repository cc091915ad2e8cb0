"""References, naming functions, and what a chore is known by."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matforge.chore import NAME_LIMIT, Chore, ChoreRegistry, ChoreSpec, chore_id, content_key, nearest, slug
from matforge.model import (
    ChoreType,
    Failure,
    FailureKind,
    Lane,
    Location,
    OutputReference,
    Resources,
    UsageError,
)

A, B = OutputReference("chore-a-0001"), OutputReference("chore-b-0002")


def test_a_reference_cannot_be_iterated_over_before_it_is_known() -> None:
    with pytest.raises(TypeError, match="The result of chore-a-0001 is not known yet"):
        list(A)


def test_a_reference_that_belongs_to_no_run_says_so() -> None:
    with pytest.raises(Exception, match="is not bound to a run here; pass it to a chore instead"):
        A.result()


def test_a_reference_pickles_without_its_run() -> None:
    bound = OutputReference("chore-a-0001", (slice(1, 2),), reader=object())  # type: ignore[arg-type]
    again = pickle.loads(pickle.dumps(bound))
    assert again == bound
    assert again.reader is None


# ---------------------------------------------------------------- the registry


def square(x: int) -> int:
    """A function."""
    return x * x


def test_a_function_is_known_by_its_name_or_by_one_that_is_given() -> None:
    registry = ChoreRegistry()
    assert registry.register(square).qualname == "square"
    assert registry.register(square, name="sq").id_name == "sq"
    assert registry.get("sq").func is square
    assert list(registry) == ["square", "sq"]
    assert len(registry) == 2
    assert "sq" in registry
    assert "no" not in registry


def test_the_same_function_may_be_registered_again_but_not_another_of_its_name() -> None:
    registry = ChoreRegistry()
    registry.register(square)
    registry.register(square)
    with pytest.raises(UsageError, match="There is already a chore named 'square'; give one of the two"):
        registry.register(lambda: 0, name="square")


def test_what_cannot_be_called_cannot_be_a_chore() -> None:
    with pytest.raises(UsageError, match="A chore must be a function, not int"):
        ChoreRegistry().register(3)  # type: ignore[arg-type]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    registry = ChoreRegistry()
    with pytest.raises(UsageError, match=r"There is no chore named 'squre' \(none is known\)\."):
        registry.get("squre")
    registry.register(square)
    with pytest.raises(UsageError, match=r"'squre' \(did you mean 'square'\?\)"):
        registry.get("squre")
    assert nearest("zzz", ["a", "b"]) == " (known: a, b)"


def test_an_object_that_can_be_called_is_known_by_its_type() -> None:
    class Adder:
        def __call__(self, x: int) -> int:
            return x + 1

    assert ChoreRegistry().register(Adder()).id_name == "Adder"


# ---------------------------------------------------------------- names and keys


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("square", "square"),
        ("Class.method", "Class-method"),
        ("outer.<locals>.inner", "inner"),
        ("<lambda>", "lambda"),
        ("étude/../x y", "tude-x-y"),
        ("", "chore"),
        ("...", "chore"),
        ("x" * 100, "x" * NAME_LIMIT),
    ],
)
def test_names_become_safe_short_parts_of_paths(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_ids_have_four_digits_and_more_when_needed() -> None:
    assert chore_id("a", 7) == "chore-a-0007"
    assert chore_id("a", 123_456) == "chore-a-123456"


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_keys_differ_however_the_parts_are_cut(one: list[str], other: list[str]) -> None:
    assert (content_key(*one) == content_key(*other)) == (one == other)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({}, "needs qualname"),
        ({"qualname": 3}, "needs qualname"),
        ({"qualname": "f", "nice": "high"}, "nice must be a whole number, not 'high'"),
        ({"qualname": "f", "key": 5}, "key must be a string, not 5"),
        ({"qualname": "f", "resources": {"cores": 2}}, "resources must be a Resources"),
    ],
    ids=str,
)
def test_a_spec_that_makes_no_sense_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        ChoreSpec(**wrong)


# ---------------------------------------------------------------- chores

WHERE = Location("segments/1-driver.seg", 3, 4, 5)


def test_a_chore_survives_the_journal() -> None:
    full = Chore(
        "chore-a-0001", "ff" * 32, "a", WHERE, ("chore-b-0002",), "f",
        Resources(2, 3, 1, True, {"X": "1"}, False, True), -4, "chore-b-0002",
        Failure(FailureKind.DOES_NOT_FIT, "too wide"),
    )  # fmt: skip
    plain = Chore("chore-a-0001", "00" * 32, "a", WHERE)
    for chore in (full, plain):
        assert Chore.from_dict(chore.as_dict()) == chore
    assert plain.as_dict().keys() == {"id", "key", "name", "payload"}


@pytest.mark.parametrize(
    ("function", "resources", "lane"),
    [
        ("f", Resources(), Lane.WARM),
        ("f", Resources(cores_per_task=4, gpus_per_task=1), Lane.WARM),
        (None, Resources(), Lane.JOB),
        ("f", Resources(num_tasks=2), Lane.JOB),
        ("f", Resources(mpi=True), Lane.JOB),
        ("f", Resources(isolated=True), Lane.JOB),
    ],
)
def test_a_python_function_on_one_task_runs_warm_and_all_else_as_a_job(
    function: str | None, resources: Resources, lane: Lane
) -> None:
    chore = Chore("chore-a-0001", "00" * 32, "a", WHERE, function=function, resources=resources)
    assert chore.lane is lane
    assert chore.chore_type is (ChoreType.EXECUTABLE if function is None else ChoreType.PYTHON)


def test_a_seed_is_a_whole_number_that_every_random_generator_takes() -> None:
    assert Chore("c", "ff" * 32, "a", WHERE).seed == 2**63 - 1
    assert Chore("c", "00" * 32, "a", WHERE).seed == 0


def test_a_spec_knows_the_key_of_the_chore_that_it_becomes() -> None:
    assert ChoreSpec(qualname="f", key="a").chore_key == content_key("named", "a")
    assert ChoreSpec(qualname="f").chore_key is None


def test_a_function_bound_to_arguments_has_the_name_of_the_function() -> None:
    registry = ChoreRegistry()
    assert registry.register(functools.partial(divmod, 7)).qualname == "divmod"
    assert registry.register(functools.partial(functools.partial(pow, 2), 3)).qualname == "pow"
    assert registry.register(lambda: None).qualname == "<lambda>"
