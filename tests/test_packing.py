"""Arguments become bytes, and the references in them inputs."""

from __future__ import annotations

import dataclasses
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

from matforge.model import (
    OutputReference,
    UsageError,
    apply_path,
)
from matforge.packing import pack

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
        "from matforge.packing import pack\n"
        "value = {'a', 'bc', 'def', 'ghij', 1, None}, [{('x', 1), ('yz', 2)}], {'k': frozenset('mnop')}\n"
        "value += {frozenset(('Na', 'Cl')): 1.5},\n"
        "value += {frozenset('qrst'), frozenset('uv'), ('w', frozenset('xy'))},\n"
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
    assert args == (
        {"a", "bc", "def", "ghij", 1, None}, [{("x", 1), ("yz", 2)}], {"k": frozenset("mnop")},
        {frozenset(("Na", "Cl")): 1.5}, {frozenset("qrst"), frozenset("uv"), ("w", frozenset("xy"))},
    )  # fmt: skip


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
