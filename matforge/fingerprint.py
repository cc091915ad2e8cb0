"""What a function is, as a digest: it changes when what the function does may have changed.

The code counts, not where it stands: bytecode, constants, names, defaults, closure, and whatever of the
user's own (functions, classes, values) it refers to, as far down as that goes. Libraries count by name
and version. What cannot be seen, such as a file that is read or a compiled extension, is for the
version that a user declares.
"""

from __future__ import annotations

import functools
import os
import pickle
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable
from typing import Any

from matforge import model
from matforge.chore import content_key

SEEDED = "+seed"
"""At the end of the fingerprint of a function that asks for its seed."""
_ATOMS = (int, float, complex, str, bytes, bool, type(None), type(...))
_LIBRARIES = tuple(
    {
        os.path.realpath(sysconfig.get_path(name)) + os.sep
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
)


def fingerprint(func: Callable[..., Any], version: str = "") -> str:
    """A digest of ``func``; ends with :data:`SEEDED` if what it returns depends on the chore's seed.

    Parameters
    ----------
    func : callable
    version : str
        Declared by the user.
    """
    walk = _Walk()
    digest = content_key("function", version, sys.implementation.cache_tag or "", walk.digest(func))
    return digest + SEEDED if walk.seeded else digest


class _Walk:
    """Goes through a function and what it refers to, once each."""

    def __init__(self) -> None:
        self.seeded = False
        self._seen: dict[int, tuple[str, Any]] = {}
        """By identity: a name for those that come again, and the object, so that it stays."""

    def digest(self, value: Any) -> str:
        if isinstance(value, _ATOMS):
            self.seeded = self.seeded or value == "MATFORGE_SEED"
            return content_key(type(value).__name__, repr(value))
        if id(value) in self._seen:
            return self._seen[id(value)][0]
        self._seen[id(value)] = (f"again {len(self._seen)}", value)
        return content_key(*self._parts(value))

    def _all(self, values: Iterable[Any]) -> list[str]:
        return [self.digest(value) for value in values]

    def _parts(self, value: Any) -> list[str]:
        kind = type(value)
        if value is model.seed:
            self.seeded = True
        if isinstance(value, types.CodeType):
            return self._code(value)
        if isinstance(value, types.MethodType):
            return ["method", self.digest(value.__func__), self.digest(value.__self__)]
        if isinstance(value, functools.partial):
            return ["partial", *self._all((value.func, value.args, value.keywords))]
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__, str(getattr(value, "__version__", ""))]
        if isinstance(value, types.FunctionType | type):
            if not _is_own(value.__module__):
                return ["library", value.__module__, value.__qualname__, _version(value.__module__)]
            return self._function(value) if isinstance(value, types.FunctionType) else self._class(value)
        if callable(wrapped := getattr(value, "__wrapped__", None)):  # a decorated function
            return ["wrapped", kind.__qualname__, self.digest(wrapped)]
        if kind in (tuple, list):
            return [kind.__name__, *self._all(value)]
        if kind in (set, frozenset):
            return [kind.__name__, *sorted(content_key(repr(item)) for item in value)]
        if kind is dict:
            return ["dict", *self._all(value.keys()), *self._all(value.values())]
        return self._object(value)

    def _function(self, func: types.FunctionType) -> list[str]:
        cells = [cell.cell_contents for cell in func.__closure__ or () if not _is_empty(cell)]
        return [
            "function", func.__module__, func.__qualname__, self.digest(func.__code__),
            *self._all((func.__defaults__, func.__kwdefaults__)), *self._all(cells),
            *self._globals(func),
        ]  # fmt: skip

    def _code(self, code: types.CodeType) -> list[str]:
        numbers = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        return [
            "code", code.co_code.hex(), repr(numbers), code.co_exceptiontable.hex(),
            repr((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)),
            *self._all(code.co_consts),
        ]  # fmt: skip

    def _globals(self, func: types.FunctionType) -> list[str]:
        """The globals that the function names, and what it may take from modules of the user's own."""
        names = sorted(set(_names(func.__code__)))
        parts = []
        for name in names:
            if name not in func.__globals__:
                continue
            value = func.__globals__[name]
            parts += [name, self.digest(value)]
            if isinstance(value, types.ModuleType):
                self.seeded = self.seeded or (value.__name__.startswith("matforge") and "seed" in names)
                if _is_own(value.__name__):
                    found = [one for one in names if hasattr(value, one)]
                    parts += [*found, *self._all(getattr(value, one) for one in found)]
        return parts

    def _class(self, cls: type) -> list[str]:
        members = {k: v for k, v in vars(cls).items() if isinstance(v, (types.FunctionType, *_ATOMS))}
        unwrapped = {
            k: getattr(v, "__func__", None) or getattr(v, "fget", None)
            for k, v in vars(cls).items()
            if isinstance(v, staticmethod | classmethod | property)
        }
        for name in ("__module__", "__firstlineno__", "__doc__"):  # where it stands, or said for people
            members.pop(name, None)
        return ["class", cls.__qualname__, *self._all(cls.__bases__), self.digest(dict(members)),
                self.digest(unwrapped)]  # fmt: skip

    def _object(self, value: Any) -> list[str]:
        """Any other object by its content, if it can be pickled, and by its class."""
        try:
            content = pickle.dumps(value, protocol=5)
        except Exception:  # pickling runs arbitrary code
            content = b""
        return ["object", self.digest(type(value)), content_key(content)]


def _names(code: types.CodeType) -> list[str]:
    inner = [name for one in code.co_consts if isinstance(one, types.CodeType) for name in _names(one)]
    return [*code.co_names, *inner]


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False


def _is_own(module: str) -> bool:
    """Whether a module is the user's, whose code may change at any time, rather than a library's."""
    if module == "__main__":
        return True
    found = sys.modules.get(module)
    path = getattr(found, "__file__", None)
    if module.partition(".")[0] == "matforge" or (found is not None and path is None):
        return False
    return path is None or not os.path.realpath(path).startswith(_LIBRARIES)


def _version(module: str) -> str:
    return str(getattr(sys.modules.get(module.partition(".")[0]), "__version__", ""))
