"""Values in short: whatever a pickle asks for, nothing of it is run."""

from __future__ import annotations

import datetime
import enum
import functools
import pickle
from collections import Counter, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matforge.engine.sketch import sketch, sketch_call
from matforge.model import OutputReference
from matforge.packing import pack


@dataclass
class Point:
    x: int
    y: list[int]


@dataclass(slots=True)
class Slim:
    x: int


class Colour(enum.Enum):
    RED = 1


class Wide(list):  # type: ignore[type-arg]
    pass


Pair = namedtuple("Pair", "a b")


def shown(*args: Any, **kwargs: Any) -> str:
    """The arguments of a call as they are stored, in short."""
    payload, inputs = pack((args, kwargs))
    return sketch_call(payload, inputs)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Point(1, [2, 3]), "tests.engine.test_sketch.Point(x=1, y=[2, 3])"),
        (Slim(4), "tests.engine.test_sketch.Slim(x=4)"),
        (Colour.RED, "tests.engine.test_sketch.Colour(1)"),
        (Pair(1, "b"), "tests.engine.test_sketch.Pair(1, 'b')"),
        (Wide([1]), "tests.engine.test_sketch.Wide()"),
        (Point, "<tests.engine.test_sketch.Point>"),
        (lambda x: x, "<function>"),
        (np, "<module numpy>"),
        (ValueError("no"), "ValueError('no')"),
        (np.arange(3), "array([0, 1, 2])"),
        (np.zeros((100, 2)), "<array of float64, shape (100, 2)>"),
        (np.float32(1.5), "np.float32(1.5)"),
        (Counter("aab"), "Counter({'a': 2, 'b': 1})"),
        (datetime.date(2026, 1, 2), "datetime.date(2026, 1, 2)"),
        (Path("/a"), "PosixPath('/a')"),
        ({"k": (1, 2.5, None)}, "{'k': (1, 2.5, None)}"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_value_is_shown_as_one_would_write_it(value: Any, text: str) -> None:
    assert shown(value) == text


def test_references_are_shown_with_their_chore_and_part() -> None:
    reference = OutputReference("chore-a-0001")
    assert shown(reference[2:5]["k"], deep=[{"r": reference}]) == (
        "chore-a-0001[2:5]['k'], deep=[{'r': chore-a-0001}]"
    )


def test_what_is_long_is_cut() -> None:
    text = shown("x" * 10_000, list(range(10_000)), {str(i): i for i in range(10_000)})
    assert len(text) < 400
    assert text.count("...") == 3


def test_a_command_is_shown_as_one_would_type_it() -> None:
    payload, inputs = pack(["sh", "-c", "echo hi; exit 4", OutputReference("chore-a-0001")])
    assert sketch_call(payload, inputs) == "sh -c 'echo hi; exit 4' chore-a-0001"


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


class StatefulTrap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __setstate__(self, state: dict[str, Path]) -> None:
        state["path"].touch()


@pytest.mark.parametrize("trap", [Trap, StatefulTrap])
def test_looking_at_a_value_runs_nothing_of_it(trap: Any, tmp_path: Path) -> None:
    path = tmp_path / "sprung"
    data = pickle.dumps(trap(path))
    assert "sprung" in sketch(data)
    assert not path.exists()
    pickle.loads(data)
    assert path.exists(), "the trap does not work"


def test_a_partial_function_is_shown_without_being_made() -> None:
    assert shown(functools.partial(int, base=2)).startswith("functools.partial(<int>")


@given(st.binary(max_size=200))
def test_bytes_that_are_no_pickle_are_told_and_never_an_error(data: bytes) -> None:
    assert isinstance(sketch(data), str)
    assert isinstance(sketch_call(data), str)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


@given(PLAIN)
def test_plain_values_are_always_shown_and_bounded(value: Any) -> None:
    text = sketch(pickle.dumps(value))
    assert "cannot be shown" not in text
    assert len(text) < 20_000


def test_a_cut_off_pickle_says_that_it_cannot_be_shown() -> None:
    assert "cannot be shown" in sketch(pickle.dumps([1, 2, 3])[:-3])
