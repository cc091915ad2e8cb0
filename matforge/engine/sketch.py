"""A short text of a pickled value, made without running anything that the pickle asks for.

Whoever looks at a run may not have its modules, and looking must not execute them. So only plain
containers, numbers and arrays are rebuilt; every other object is shown by its name and what it
holds.
"""

from __future__ import annotations

import io
import pickle
import reprlib
import shlex
from pathlib import Path
from typing import Any

from matforge.engine.results import open_head

_REBUILT: dict[str, frozenset[str]] = {
    "builtins": frozenset(("bytearray", "complex", "frozenset", "range", "set", "slice")),
    "collections": frozenset(("Counter", "OrderedDict", "defaultdict", "deque")),
    "datetime": frozenset(("date", "datetime", "time", "timedelta", "timezone")),
    "decimal": frozenset(("Decimal",)),
    "fractions": frozenset(("Fraction",)),
    "pathlib": (_PATHS := frozenset(("PosixPath", "PurePosixPath", "Path"))),
    "pathlib._local": _PATHS,  # their home in Python 3.13
    "numpy": frozenset(("dtype", "ndarray")),
    "numpy._core.multiarray": frozenset(("_reconstruct", "scalar")),
    "numpy._core.numeric": frozenset(("_frombuffer",)),
    "numpy.core.multiarray": frozenset(("_reconstruct", "scalar")),
    "numpy.core.numeric": frozenset(("_frombuffer",)),
}
"""What may be called, because it only holds data."""


class _Kind(type):
    """Makes the classes that stand for those which are not loaded."""

    def __repr__(cls) -> str:
        return f"<{cls._name}>"  # type: ignore[attr-defined]


class _Named(metaclass=_Kind):
    """Stands for an object of a class that is not loaded."""

    _name = "object"

    def __new__(cls, *args: Any, **kwargs: Any) -> _Named:
        made = super().__new__(cls)
        made.__dict__["_args"] = args
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__["_state"] = state

    def append(self, value: Any) -> None:
        """Subclasses of list are filled by this, those of dict by ``[]``; neither is shown."""

    extend = append

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        parts = [_SHORT.repr(value) for value in self.__dict__["_args"]]
        state = self.__dict__.get("_state")
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state = {**(state[0] or {}), **state[1]}  # an object with __slots__
        if isinstance(state, dict):
            parts += [f"{name}={_SHORT.repr(value)}" for name, value in list(state.items())[:6]]
        elif state is not None:
            parts.append(_SHORT.repr(state))
        return f"{self._name}({', '.join(parts)})"


class _Word:
    """Stands for the result of another chore, or anything else whose name says enough."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


class _Short(reprlib.Repr):
    """Bounds that let a call fit on a line or two."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self.maxdict = self.maxlist = self.maxtuple = 6

    def repr_ndarray(self, value: Any, level: int) -> str:
        """Shape and type say more of an array than its first line."""
        if value.size <= 6:
            return " ".join(repr(value).split())
        return f"<array of {value.dtype}, shape {value.shape}>"

    def repr__Word(self, value: _Word, level: int) -> str:
        """Never shortened: the id is what one looks for."""
        return repr(value)


_SHORT = _Short()


class _Sketcher(pickle.Unpickler):
    def __init__(self, data: bytes | memoryview, inputs: tuple[str, ...]) -> None:
        head = open_head(data, Path("the result"))
        if head is None:
            super().__init__(io.BytesIO(data))
        else:
            super().__init__(io.BytesIO(head.pickle), buffers=head.buffers)
        self._inputs = inputs

    def find_class(self, module: str, name: str) -> Any:
        if name in _REBUILT.get(module, ()):
            return super().find_class(module, name)
        if module.startswith("cloudpickle.") and name in _BY_VALUE:
            return _BY_VALUE[name]
        return _stand_in(name if module in ("builtins", "__main__") else f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        number, path = pid
        return _Word(self._inputs[number] + "".join(f"[{_index(step)}]" for step in path))


def _index(step: Any) -> str:
    if isinstance(step, slice):
        ends = ["" if end is None else str(end) for end in (step.start, step.stop)]
        return ":".join(ends if step.step is None else [*ends, str(step.step)])
    return repr(step)


def _stand_in(name: str, *rest: Any) -> _Kind:
    """A class whose objects show ``name`` and what they were given."""
    return _Kind(name.rpartition(".")[2] or "object", (_Named,), {"_name": name})


_BY_VALUE: dict[str, Any] = {
    "_make_function": lambda *parts: _Word("<function>"),
    "_make_skeleton_class": lambda maker, name, *rest: _stand_in(name),
    "_make_skeleton_enum": lambda bases, name, *rest: _stand_in(name),
    "_builtin_type": _stand_in,
    "subimport": lambda name: _Word(f"<module {name}>"),
}
"""How cloudpickle rebuilds what it pickles by value; here it is shown as what that would make."""


def sketch(data: bytes | memoryview, inputs: tuple[str, ...] = ()) -> str:
    """A short text of the value pickled in ``data``.

    Parameters
    ----------
    data : bytes or memoryview
        A pickle, or a result with large buffers; references to results of other chores are persistent ids, as
        :func:`matforge.chore.pack` makes them.
    inputs : tuple of str
        Ids of those chores, by input number.
    """
    try:
        return _SHORT.repr(_load(data, inputs))
    except Exception as error:  # a pickle can ask for anything, and our stand-ins cannot answer it all
        return f"<{len(data):,} bytes that cannot be shown: {type(error).__name__}: {error}>"


def sketch_call(data: bytes | memoryview, inputs: tuple[str, ...] = ()) -> str:
    """Arguments of a call, or the words of a command, as one would write them."""
    try:
        value = _load(data, inputs)
        if isinstance(value, list):
            return " ".join(shlex.quote(w) if isinstance(w, str) else _SHORT.repr(w) for w in value)
        args, kwargs = value
        return ", ".join([*map(_SHORT.repr, args), *(f"{k}={_SHORT.repr(v)}" for k, v in kwargs.items())])
    except Exception as error:  # as above
        return f"<{len(data):,} bytes that cannot be shown: {type(error).__name__}: {error}>"


def _load(data: bytes | memoryview, inputs: tuple[str, ...]) -> Any:
    return _Sketcher(data, inputs).load()
