"""What a function is, as a digest: it changes when what the function does may have changed.

The code counts, not where it stands: bytecode, constants, names, defaults, closure, and whatever of the
user's own (functions, classes, values, modules) it refers to, as far down as that goes. Libraries count
by name and version. What cannot be seen, such as a file that is read or a compiled extension, is for
the version that a user declares.

Where it is not certain, two things count as different: that costs a run of the chore, and a result
that is not that of the function would cost more.
"""

from __future__ import annotations

import copyreg
import functools
import secrets
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from matforge import model
from matforge.chore import content_key
from matforge.sources import Sources, is_own, names_in, version_of

SEEDED = "+seed"
"""At the end of the fingerprint of a function that asks for its seed."""
_ATOMS = (int, float, complex, str, bytes, bool, type(None), type(...))
_NOT_OF_A_CLASS = {
    "__dict__", "__weakref__", "__module__", "__firstlineno__", "__static_attributes__", "__doc__",
    "__abstractmethods__", "_abc_impl", "__pydantic_core_schema__", "__pydantic_validator__",
    "__pydantic_serializer__", "__signature__",
}  # fmt: skip
"""Where a class stands, what is said for people, and what follows from the rest."""


def fingerprint(func: Callable[..., Any], version: str = "") -> str:
    """A digest of ``func``; ends with :data:`SEEDED` if what it returns depends on the chore's seed.

    Parameters
    ----------
    func : callable
    version : str
        Declared by the user.
    """
    walk = _Walk()
    try:
        seen = walk.digest(func)
    except Exception:
        # looking runs the user's code, and may go too deep: such a function is found never again
        seen = secrets.token_hex()
    digest = content_key("function", version, sys.implementation.cache_tag or "", seen)
    return digest + SEEDED if walk.seeded else digest


class _Walk:
    """Goes through a function and what it refers to, once each."""

    def __init__(self, seen: Mapping[int, tuple[str, Any]] | None = None) -> None:
        self._seeded = False
        self._sources = Sources()
        self._seen: dict[int, tuple[str, Any]] = dict(seen or {})
        """By identity: a name for those that come again, and the object, so that it stays."""

    @property
    def seeded(self) -> bool:
        """Whether anything that was seen asks for the chore's seed."""
        return self._seeded or self._sources.seeded

    def digest(self, value: Any) -> str:
        kind = type(value)
        if kind in _ATOMS:
            self._seeded = self._seeded or value == "MATFORGE_SEED"
            text = value if kind in (str, bytes) else f"{value:x}" if kind is int else repr(value)
            return content_key(kind.__name__, text.encode(errors="surrogatepass") if kind is str else text)
        if id(value) in self._seen:
            return self._seen[id(value)][0]
        self._seen[id(value)] = (f"again {len(self._seen)}", value)
        return content_key(*self._parts(value))

    def _all(self, values: Iterable[Any]) -> list[str]:
        return [self.digest(value) for value in values]

    def _parts(self, value: Any) -> list[str]:
        kind = type(value)
        if value is model.seed:
            self._seeded = True
        if isinstance(value, types.CodeType):
            return self._code(value)
        if isinstance(value, types.MethodType):
            return ["method", self.digest(value.__func__), self.digest(value.__self__)]
        if isinstance(value, functools.partial):
            return ["partial", *self._all((value.func, value.args, value.keywords))]
        if isinstance(value, types.ModuleType):
            name = value.__name__
            return ["module", name, "" if is_own(name) else version_of(name)]
        if isinstance(value, types.FunctionType | type):
            return self._named(value)
        if kind in (tuple, list):
            return [kind.__name__, *self._all(value)]
        if kind in (set, frozenset):
            return [kind.__name__, *self._members(value)]
        if kind in (dict, types.MappingProxyType):
            return [kind.__name__, *self._all(value.keys()), *self._all(value.values())]
        if isinstance(value, staticmethod | classmethod):
            return [kind.__name__, self.digest(value.__func__)]
        if isinstance(value, property):
            return ["property", *self._all((value.fget, value.fset, value.fdel))]
        wrapped = getattr(value, "__wrapped__", None)
        if callable(wrapped) and not _is_own_class(kind):  # a function that a library has decorated
            # numba's options say how a function is compiled
            options = getattr(value, "targetoptions", None)
            return ["wrapped", kind.__qualname__, self.digest(wrapped), self.digest(options)]
        return self._object(value)

    def _members(self, values: Iterable[Any]) -> list[str]:
        """Digests of what a set has, whose order changes from process to process."""
        digests = []
        for value in values:
            walk = _Walk(self._seen)
            digests.append(walk.digest(value))
            self._seeded = self.seeded or walk.seeded
        return sorted(digests)

    def _named(self, value: types.FunctionType | type) -> list[str]:
        """A function or a class."""
        module = str(getattr(value, "__module__", None))
        if not is_own(module):
            # a decorator of a library may have put a function of the user's into one of its own
            inner = [one for one in _cells(value) if isinstance(one, types.FunctionType)]
            return ["library", module, value.__qualname__, version_of(module), *self._all(inner)]
        return self._function(value) if isinstance(value, types.FunctionType) else self._class(value)

    def _function(self, func: types.FunctionType) -> list[str]:
        package = func.__globals__.get("__package__") or ""
        return [
            "function", str(func.__module__), func.__qualname__, self.digest(func.__code__),
            *self._all((func.__defaults__, func.__kwdefaults__, vars(func))), *self._all(_cells(func)),
            *self._globals(func), self._sources.imported(func.__code__, package),
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
        names = sorted(set(names_in(func.__code__)))
        parts = []
        for name in names:
            if name not in func.__globals__:
                continue
            value = func.__globals__[name]
            parts += [name, self.digest(value)]
            if isinstance(value, types.ModuleType):
                self._seeded = self._seeded or (value.__name__.startswith("matforge") and "seed" in names)
                parts += self._taken(value, names, [])
        return parts

    def _taken(self, module: types.ModuleType, names: list[str], above: list[types.ModuleType]) -> list[str]:
        """What a function with these names may take from a module, and from modules in it."""
        if not is_own(module.__name__) or module in above:
            return []
        parts = []
        for name in names:
            if not hasattr(module, name):
                continue
            value = getattr(module, name)
            parts += [name, self.digest(value)]
            if isinstance(value, types.ModuleType):
                parts += self._taken(value, names, [*above, module])
        return parts

    def _class(self, cls: type) -> list[str]:
        members = {k: v for k, v in vars(cls).items() if k not in _NOT_OF_A_CLASS}
        members = {k: v for k, v in members.items() if not isinstance(v, _OF_A_SLOT)}
        return ["class", cls.__qualname__, *self._all((type(cls), *cls.__bases__)), self.digest(members)]

    def _object(self, value: Any) -> list[str]:
        """Any other object: its class, and what a pickle of it would be made of."""
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            # protocol 4, in which an array gives its bytes
            made = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except RecursionError:
            raise
        except Exception:  # it cannot be pickled; this, too, runs arbitrary code
            made = getattr(value, "__dict__", None)
        if isinstance(made, tuple):
            state, items, pairs = (*made[2:5], None, None, None)[:3]
            made = (*made[:2], state, list(items or ()), list(pairs or ()))
        return ["object", self.digest(type(value)), self.digest(made)]


_OF_A_SLOT = (types.MemberDescriptorType, types.GetSetDescriptorType)


def _is_own_class(kind: type) -> bool:
    return is_own(str(getattr(kind, "__module__", None)))


def _cells(value: Any) -> list[Any]:
    """What a closure holds, where that is known yet."""
    found = []
    for cell in getattr(value, "__closure__", None) or ():
        with suppress(ValueError):
            found.append(cell.cell_contents)
    return found
