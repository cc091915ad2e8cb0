"""Packing arguments, naming functions, and what a chore is known by."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import pickle
import subprocess
import sys
import threading
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matforge.chore import (
    NAME_LIMIT,
    Chore,
    ChoreRegistry,
    ChoreSpec,
    chore_id,
    content_key,
    nearest,
    pack,
    slug,
)
from matforge.model import (
    ChoreType,
    Failure,
    FailureKind,
    Lane,
    Location,
    OutputReference,
    Resources,
    UsageError,
    apply_path,
)

A, B = OutputReference("chore-a-0001"), OutputReference("chore-b-0002")


@dataclasses.dataclass
class Holder:
    """Something of a user's that holds a reference."""

    reference: Any
    other: int = 0


class _Resolver(pickle.Unpickler):
    """What a worker does: results in place of references."""

    results: list[Any]

    def persistent_load(self, pid: Any) -> Any:
        number, path = pid
        return apply_path(self.results[number], path)


def unpack(payload: bytes, *results: Any) -> Any:
    """The arguments, with these results for the inputs."""
    resolver = _Resolver(io.BytesIO(payload))
    resolver.results = list(results)
    return resolver.load()


# ---------------------------------------------------------------- packing


@pytest.mark.parametrize(
    ("arguments", "inputs", "expected"),
    [
        ((1, "x", None), (), (1, "x", None)),
        ((A,), ("chore-a-0001",), ("ra",)),
        ((A, B), ("chore-a-0001", "chore-b-0002"), ("ra", "rb")),
        ((B, A), ("chore-b-0002", "chore-a-0001"), ("ra", "rb")),
        ((A, [1, A]), ("chore-a-0001",), ("ra", [1, "ra"])),
        (([[[A]]],), ("chore-a-0001",), ([[["ra"]]],)),
        (({"k": (A, {"deep": B})},), ("chore-a-0001", "chore-b-0002"), ({"k": ("ra", {"deep": "rb"})},)),
        (({A: 1},), ("chore-a-0001",), ({"ra": 1},)),
        (({A},), ("chore-a-0001",), ({"ra"},)),
        ((Holder(A, 3),), ("chore-a-0001",), (Holder("ra", 3),)),
        ((OrderedDict(x=A),), ("chore-a-0001",), (OrderedDict(x="ra"),)),
        ((A[0], A[1:]), ("chore-a-0001",), ("r", "a")),
    ],
)
def test_references_are_found_wherever_they_are_nested(arguments: Any, inputs: Any, expected: Any) -> None:
    payload, found = pack((arguments, {}))
    assert found == inputs
    assert unpack(payload, "ra", "rb") == (expected, {})


def test_references_in_an_array_of_objects_are_found() -> None:
    payload, found = pack((np.array([A, 2], dtype=object),))
    assert found == (A.chore_id,)
    assert unpack(payload, "ra")[0].tolist() == ["ra", 2]


def test_a_reference_to_a_part_is_taken_out_by_the_worker() -> None:
    payload, found = pack((A["energy"][2:4], A["name"]))
    assert found == (A.chore_id,)
    assert unpack(payload, {"energy": [1, 2, 3, 4, 5], "name": "x"}) == ([3, 4], "x")


def test_sets_are_packed_in_an_order_that_is_the_same_in_every_process() -> None:
    program = (
        "from matforge.chore import pack\n"
        "value = {'a', 'bc', 'def', 'ghij', 1, None}, [{('x', 1), ('yz', 2)}], {'k': frozenset('mnop')}\n"
        "print(pack((value, {}))[0].hex())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(told) == 1
    args, _ = pickle.loads(bytes.fromhex(told.pop()))
    assert args == ({"a", "bc", "def", "ghij", 1, None}, [{("x", 1), ("yz", 2)}], {"k": frozenset("mnop")})


def test_what_is_in_two_places_stays_one_beside_sets() -> None:
    words, numbers = {"a", "bc"}, [1, 2]
    around: list[Any] = [words, words]
    around.append(around)
    holder = SimpleNamespace(numbers=numbers)
    (one, two, three, held), _ = pickle.loads(pack(((words, around, numbers, holder), {}))[0])
    assert one == words
    assert two[0] is two[1] is one
    assert two[2] is two
    assert held.numbers is three


def test_a_container_that_holds_itself_is_packed() -> None:
    knot: list[Any] = [A]
    knot.append(knot)
    payload, _ = pack(knot)
    again = unpack(payload, "ra")
    assert again[0] == "ra"
    assert again[1] is again


def test_what_is_nested_too_deeply_is_told() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UsageError, match="cannot be pickled"):
        pack(((deep,), {}))
    while type(deep) is list:  # taken apart by hand: the interpreter would do it recursively
        deep = deep.pop()


@pytest.mark.parametrize(
    ("args", "kwargs", "culprit"),
    [
        ((1, threading.Lock()), {}, "The argument 2, of type lock, cannot be pickled"),
        ((1,), {"gate": threading.Lock()}, "The argument 'gate', of type lock, cannot be pickled"),
        (([A, {"x": threading.Lock()}],), {}, "The argument 1, of type list, cannot be pickled"),
    ],
)
def test_an_argument_that_cannot_be_pickled_is_named(args: Any, kwargs: Any, culprit: str) -> None:
    with pytest.raises(UsageError, match=culprit):
        pack((args, kwargs))


def test_a_function_of_the_script_goes_by_value() -> None:
    payload, _ = pack((lambda x: x + 1,))
    assert unpack(payload)[0](1) == 2


def test_what_was_recorded_does_not_change_with_the_arguments() -> None:
    value = [1]
    payload, _ = pack((value,))
    value.append(2)
    assert unpack(payload) == ([1],)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(PLAIN)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    payload, inputs = pack(((value,), {}))
    assert inputs == ()
    assert unpack(payload) == ((value,), {})


# ---------------------------------------------------------------- references


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
