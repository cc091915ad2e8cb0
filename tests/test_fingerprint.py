"""A function's fingerprint: the same for the same function, another when what it does may have changed."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import matforge
from matforge.fingerprint import SEEDED, fingerprint


def made(source: str, **names: Any) -> Callable[..., Any]:
    """``f`` of a script, as if it had been read anew."""
    space: dict[str, Any] = {"__name__": "__main__", **names}
    exec(source, space)
    function: Callable[..., Any] = space["f"]
    return function


BASE = "def f(x, y=1):\n    return x + y\n"


@pytest.mark.parametrize(
    "changed",
    [
        "def f(x, y=1):\n    return x - y\n",
        "def f(x, y=2):\n    return x + y\n",
        "def f(x, *, y=1):\n    return x + y\n",
        "def f(x, y=1):\n    return x + y + 1\n",
        "def f(x, z=1):\n    return x + z\n",
        "def f(x, y=1):\n    return (lambda: x + y)()\n",
    ],
)
def test_a_changed_function_has_another_fingerprint(changed: str) -> None:
    assert fingerprint(made(BASE)) == fingerprint(made(BASE))
    assert fingerprint(made(changed)) != fingerprint(made(BASE))


def test_where_the_code_stands_and_what_comments_say_is_all_the_same() -> None:
    assert fingerprint(made("\n\n# moved\n" + BASE)) == fingerprint(made(BASE))


def test_a_declared_version_counts() -> None:
    assert fingerprint(made(BASE), "v1") != fingerprint(made(BASE), "v2")


HELPER = """
SCALE = {scale}
def helper(x):
    return x {sign} SCALE
def f(x):
    return [helper(v) for v in x]
"""


def test_what_a_function_calls_and_reads_counts_as_far_down_as_it_goes() -> None:
    digests = {fingerprint(made(HELPER.format(scale=s, sign=o))) for s in (1, 2) for o in "+*"}
    assert len(digests) == 4
    assert fingerprint(made(HELPER.format(scale=1, sign="+"))) in digests


def test_what_stands_beside_it_and_is_not_used_does_not_count() -> None:
    assert fingerprint(made("def other(): return 7\n" + BASE)) == fingerprint(made(BASE))


def test_functions_that_call_each_other_come_to_an_end() -> None:
    source = "def g(x):\n    return f(x - {n})\ndef f(x):\n    return g(x) if x else 0\n"
    assert fingerprint(made(source.format(n=1))) == fingerprint(made(source.format(n=1)))
    assert fingerprint(made(source.format(n=1))) != fingerprint(made(source.format(n=2)))


def test_the_values_of_a_closure_count() -> None:
    def outer(offset: Any) -> Callable[[int], Any]:
        return lambda x: x + offset

    assert fingerprint(outer(1)) == fingerprint(outer(1))
    assert len({fingerprint(outer(v)) for v in (1, 2, 1.0, "1", (1,), np.arange(3), np.arange(4))}) == 7


def test_partials_methods_and_classes_count_with_all_they_hold() -> None:
    source = """
class C:
    rate = {rate}
    def go(self):
        return {value}
def f():
    return C().go()
"""
    digests = {fingerprint(made(source.format(rate=r, value=v))) for r in (1, 2) for v in (3, 4)}
    assert len(digests) == 4
    plain = made(BASE)
    assert fingerprint(functools.partial(plain, y=1)) != fingerprint(functools.partial(plain, y=2))


def test_a_module_of_the_users_own_counts_by_what_is_taken_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_module(name: str, body: str) -> str:
        (tmp_path / f"{name}.py").write_text(body)
        module = importlib.import_module(name)
        module.__name__ = "helpers"  # what another day's version of it would be called
        return fingerprint(made("def f(x):\n    return helpers.RATE * x\n", helpers=module))

    monkeypatch.syspath_prepend(str(tmp_path))
    assert with_module("one", "RATE = 2\n") == with_module("same", "UNUSED = 1\nRATE = 2\n")
    assert with_module("other", "RATE = 3\n") != with_module("one", "RATE = 2\n")


@pytest.mark.parametrize(
    "source",
    [
        "import matforge\ndef f():\n    return matforge.seed()\n",
        "from matforge import seed\ndef f():\n    return seed()\n",
        "import os\ndef f():\n    return os.environ['MATFORGE_SEED']\n",
        "from matforge import seed\ndef g():\n    return seed()\ndef f():\n    return g()\n",
    ],
)
def test_a_function_that_asks_for_its_seed_is_known(source: str) -> None:
    assert fingerprint(made(source)).endswith(SEEDED)
    assert not fingerprint(made(BASE)).endswith(SEEDED)
    assert callable(matforge.seed)
