"""A function's fingerprint: the same for the same function, another when what it does may have changed."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import matforge
from matforge import sources
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


CHANGES = {
    "a list of a class": ("class C:\n    t = [1, 2]\ndef f(i):\n    return C.t[i]\n", "2]", "3]"),
    "a member of an enumeration": (
        "import enum\nclass C(enum.Enum):\n    A = 1\ndef f():\n    return C.A.value\n", "A = 1", "A = 2",
    ),
    "a cached method": (
        "import functools\nclass C:\n    @functools.lru_cache\n    def m(self):\n        return 1\n"
        "def f():\n    return C().m()\n", "return 1", "return 2",
    ),
    "a cached property": (
        "import functools\nclass C:\n    @functools.cached_property\n    def m(self):\n        return 1\n"
        "def f():\n    return C().m\n", "return 1", "return 2",
    ),
    "a bound argument of a method": (
        "from functools import partialmethod\nclass C:\n    def m(self, k):\n        return k\n"
        "    n = partialmethod(m, 1)\ndef f():\n    return C().n()\n", "(m, 1)", "(m, 2)",
    ),
    "a class in a class": (
        "class C:\n    class D:\n        def m(self):\n            return 1\n"
        "def f():\n    return C.D().m()\n",
        "return 1", "return 2",
    ),
    "a descriptor": (
        "class D:\n    def __get__(self, one, kind):\n        return 1\nclass C:\n    a = D()\n"
        "def f():\n    return C().a\n", "return 1", "return 2",
    ),
    "a metaclass": (
        "class M(type):\n    def __call__(cls):\n        return 1\nclass C(metaclass=M):\n    pass\n"
        "def f():\n    return C()\n", "return 1", "return 2",
    ),
    "one of several implementations": (
        "import functools\n@functools.singledispatch\ndef g(x):\n    return 0\n@g.register(int)\ndef _(x):\n"
        "    return 1\ndef f(x):\n    return g(x)\n", "return 1", "return 2",
    ),
    "the state of an object that cannot be pickled": (
        "from types import SimpleNamespace\no = SimpleNamespace(g=lambda x: x, k=1)\ndef f(x):\n"
        "    return o.k * o.g(x)\n", "k=1", "k=2",
    ),
    "a function in an object": (
        "from collections import OrderedDict\ndef g():\n    return 1\nt = OrderedDict(a=g)\ndef f():\n"
        "    return t['a']()\n", "return 1", "return 2",
    ),
    "the factory of a dictionary": (
        "from collections import defaultdict\nt = defaultdict(lambda: 1)\ndef f(x):\n    return t[x]\n",
        ": 1", ": 2",
    ),
    "a method of a kind of number": (
        "class N(int):\n    def m(self):\n        return 1\nn = N(3)\ndef f():\n    return n.m()\n",
        "return 1", "return 2",
    ),
    "what a decorator that is an object holds": (
        "import functools\nclass W:\n    def __init__(self, g):\n        functools.update_wrapper(self, g)\n"
        "        self.k = 1\n    def __call__(self, x):\n        return self.k * self.__wrapped__(x)\n"
        "@W\ndef g(x):\n    return x\ndef f(x):\n    return g(x)\n", "self.k = 1", "self.k = 2",
    ),
    "an attribute of a function": ("def f():\n    return f.k\nf.k = 1\n", "f.k = 1", "f.k = 2"),
    "an attribute with a slot": (
        "class C:\n    __slots__ = ('a',)\n    def __init__(self, a):\n        self.a = a\no = C(1)\n"
        "def f():\n    return o.a\n", "C(1)", "C(2)",
    ),
    "a number of many digits": ("k = 10**5000\ndef f():\n    return k\n", "5000", "5001"),
    "how numba compiles": (
        "import numba\n@numba.njit(fastmath=True)\ndef g(x):\n    return x\ndef f(x):\n    return g(x)\n",
        "=True", "=False",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_a_function_uses_counts(what: str) -> None:
    source, old, new = CHANGES[what]
    changed = source.replace(old, new)
    assert changed != source
    assert fingerprint(made(source)) == fingerprint(made(source))
    assert fingerprint(made(changed)) != fingerprint(made(source))


MODULES = {
    "a module in a package": (
        "import a_package.part\ndef f(x):\n    return a_package.part.g(x)\n",
        {"a_package/__init__.py": "", "a_package/part.py": "def g(x):\n    return x + 1\n"},
    ),
    "a module that is imported when it is called": (
        "def f(x):\n    import a_module\n    return a_module.g(x)\n",
        {"a_module.py": "def g(x):\n    return x + 1\n"},
    ),
    "a function that is imported when it is called": (
        "def f(x):\n    from a_package.part import g\n    return g(x)\n",
        {"a_package/__init__.py": "", "a_package/part.py": "def g(x):\n    return x + 1\n"},
    ),
    "what such a module imports": (
        "def f(x):\n    from a_package import part\n    return part.g(x)\n",
        {
            "a_package/__init__.py": "",
            "a_package/part.py": "from .other import h\ndef g(x):\n    return h(x)\n",
            "a_package/other.py": "def h(x):\n    return x + 1\n",
        },
    ),
}


@pytest.mark.parametrize("what", MODULES)
def test_a_module_of_the_users_own_counts_wherever_it_is_imported(what: str, tmp_path: Path) -> None:
    source, files = MODULES[what]

    def in_a_new_process(folder: str, change: Callable[[str], str]) -> str:
        for name, text in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(change(text))
        script = tmp_path / folder / "script.py"
        script.write_text(f"{source}\nfrom matforge.fingerprint import fingerprint\nprint(fingerprint(f))\n")
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
        return done.stdout

    as_it_was = in_a_new_process("one", lambda text: text)
    assert in_a_new_process("two", lambda text: f"# said for people\n{text}") == as_it_was
    assert in_a_new_process("three", lambda text: text.replace("+ 1", "+ 2")) != as_it_was


def test_a_library_counts_by_its_version_also_where_it_is_installed_under_another_name() -> None:
    assert sources.version_of("sklearn") == f"scikit-learn {metadata.version('scikit-learn')}"
    assert sources.version_of("numpy.linalg") == metadata.version("numpy")
    assert sources.version_of("json") == ""


def test_what_the_compiler_warns_of_is_told_with_the_file_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "a_module_to_be_warned_of.py"
    path.write_text("def g(x):\n    return x is 1\n")
    with pytest.warns(SyntaxWarning) as told:
        assert sources.Sources().digest([path.stem])
    assert told[0].filename == str(path)


def test_a_function_that_cannot_be_looked_at_is_like_no_other() -> None:
    source = (
        "class Lazy:\n    def __getattr__(self, name):\n        raise RuntimeError('not here')\n"
        "lazy = Lazy()\ndef f():\n    return lazy\n"
    )
    assert fingerprint(made(source)) != fingerprint(made(source))


def test_an_object_that_holds_a_set_is_the_same_in_every_process() -> None:
    source = "class C:\n    s = {'a', 'bc', 'def'}\nfrom types import SimpleNamespace\n" + (
        "o = SimpleNamespace(s={'a', 'bc', ('d', 'e')})\ndef f(x):\n    return x in o.s or x in C.s\n"
    )
    program = f"{source}\nfrom matforge.fingerprint import fingerprint\nprint(fingerprint(f))"
    told = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(told) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import matforge\ndef f():\n    return matforge.seed()\n",
        "from matforge import seed\ndef f():\n    return seed()\n",
        "import os\ndef f():\n    return os.environ['MATFORGE_SEED']\n",
        "from matforge import seed\ndef g():\n    return seed()\ndef f():\n    return g()\n",
        "def f():\n    import matforge\n    return matforge.seed()\n",
        "def f():\n    from matforge import seed\n    return seed()\n",
    ],
)
def test_a_function_that_asks_for_its_seed_is_known(source: str) -> None:
    assert fingerprint(made(source)).endswith(SEEDED)
    assert not fingerprint(made(BASE)).endswith(SEEDED)
    assert callable(matforge.seed)
