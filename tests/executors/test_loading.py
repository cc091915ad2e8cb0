"""Whatever can be called can be a chore: where its code comes from is our affair, not the user's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import sys
from matforge import Pipeline
pipe = Pipeline(basedir={base!r}, workers=1)

def results(*references):
    found = pipe.submit(quiet=True).result(60)
    print(*(found[r.chore_id] for r in references))
"""

SCRIPTS = {
    "a function of the script, and what it calls": """
        SCALE = 10
        def helper(x):
            return x * SCALE
        @pipe.chore()
        def double(x):
            return helper(2 * x)
        results(double(1), double(2))
        """,
    "a closure": """
        def make(offset):
            def shift(x):
                return x + offset
            return shift
        results(pipe.chore("ten")(make(10))(1), pipe.chore("twenty")(make(20))(1))
        """,
    "a lambda": """
        results(pipe.chore()(lambda x: x + 10)(1), pipe.chore("other")(lambda x: x + 20)(1))
        """,
    "a module beside the script": """
        import beside
        @pipe.chore()
        def use(x):
            import beside_too
            return beside.ten(x) + beside_too.TEN
        results(pipe.chore()(beside.ten)(1), use(1))
        """,
    "methods, callable objects and partial functions": """
        import functools
        class Shift:
            def __init__(self, by):
                self.by = by
            def __call__(self, x):
                return x + self.by
            def method(self, x):
                return x - self.by
            @classmethod
            def of_class(cls, x):
                return cls(100)(x)
            @staticmethod
            def static(x):
                return x
        ten = Shift(10)
        results(
            pipe.chore("object")(ten)(1), pipe.chore("method")(ten.method)(1),
            pipe.chore()(Shift.of_class)(1), pipe.chore()(Shift.static)(1),
            pipe.chore("partial")(functools.partial(pow, 2))(10), pipe.chore()(len)("abc"),
        )
        """,
    "a class of the script as argument and result": """
        import dataclasses
        @dataclasses.dataclass
        class Point:
            x: int
        @pipe.chore()
        def mirrored(point):
            return Point(-point.x)
        @pipe.chore()
        def same_class(point):
            return type(point) is Point
        far = mirrored(Point(3))
        found = pipe.submit(quiet=True)
        value = found.result(60)[far.chore_id]
        print(type(value) is Point, value)
        """,
    "a recursive function, and one that calls another chore's code": """
        @pipe.chore()
        def fall(n):
            return 1 if n == 0 else n * fall(n - 1)
        @pipe.chore()
        def twice(n):
            return 2 * fall(n)
        results(fall(5), twice(3))
        """,
    "a function of a notebook": """
        # cells are compiled one by one and run in the namespace of __main__, which has no file then
        import types
        shell = types.ModuleType("__main__")
        sys.modules["__main__"] = shell
        shell.__dict__.update(pipe=pipe, results=results, get_ipython=lambda: None)
        cells = ["import math\\nroot = math.sqrt", "def f(x):\\n    return root(x) + shift",
                 "shift = 1\\ng = pipe.chore()(f)", "results(g(9), pipe.chore()(lambda x: f(x))(16))"]
        for number, cell in enumerate(cells):
            exec(compile(cell, f"<ipython-input-{number}>", "exec"), shell.__dict__)
        """,
    "a function without a module": """
        space = {}
        exec("def f(x):\\n    return x + ONE\\nONE = 1", space)
        results(pipe.chore()(space["f"])(1))
        """,
}

EXPECTED = {
    "a function of the script, and what it calls": "20 40",
    "a closure": "11 21",
    "a lambda": "11 21",
    "a module beside the script": "11 21",
    "methods, callable objects and partial functions": "11 -9 101 1 1024 3",
    "a class of the script as argument and result": "True Point(x=-3)",
    "a recursive function, and one that calls another chore's code": "120 12",
    "a function of a notebook": "4.0 5.0",
    "a function without a module": "2",
}


def run_script(folder: Path, body: str, where: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script as a user does, from another folder than its own."""
    import textwrap

    script = folder / "script.py"
    script.write_text(HEAD.format(base=str(folder / "runs")) + textwrap.dedent(body))
    (folder / "beside.py").write_text("def ten(x):\n    return x + 10\n")
    (folder / "beside_too.py").write_text("TEN = 10\n")
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, cwd=where or folder.parent
    )


@pytest.mark.parametrize("what", list(SCRIPTS))
def test_a_chore_can_be(tmp_path: Path, what: str) -> None:
    done = run_script(tmp_path, SCRIPTS[what])
    assert done.stdout.strip() == EXPECTED[what], done.stderr


MISSING = {
    "the function's module": """
        import types
        module = types.ModuleType("only_here")
        exec("def f():\\n    return 1", module.__dict__)
        sys.modules["only_here"] = module
        chore = pipe.chore("lonely")(module.f)()
        """,
    "a module that a function of the script uses": """
        import types
        module = sys.modules["only_here"] = types.ModuleType("only_here")
        module.ONE = 1
        @pipe.chore("lonely")
        def f():
            return module.ONE
        chore = f()
        """,
    "the module of an argument's class": """
        import types
        module = types.ModuleType("only_here")
        exec("class C: pass", module.__dict__)
        sys.modules["only_here"] = module
        chore = pipe.chore("lonely")(lambda c: 1)(module.C())
        """,
}

TELL = """
try:
    pipe.submit(quiet=True).result(60)
except Exception as error:
    failure = error.failures[chore.chore_id]
    print(failure.kind)
    print(failure.message)
"""


@pytest.mark.parametrize("what", list(MISSING))
def test_what_is_missing_at_the_far_end_is_told_in_one_sentence(tmp_path: Path, what: str) -> None:
    import textwrap

    done = run_script(tmp_path, textwrap.dedent(MISSING[what]) + TELL)
    kind, *message = done.stdout.strip().splitlines()
    assert kind == "cannot load", done.stderr
    assert len(message) == 1
    assert "'only_here' is missing" in message[0]
    assert message[0].startswith("chore-lonely-0001: ")
