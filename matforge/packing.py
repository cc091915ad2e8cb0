"""Arguments as bytes, and the edges of the graph hidden in them.

A call of a decorated function is *packed* at once: its arguments are pickled, and every
:class:`~matforge.model.OutputReference` found anywhere inside them becomes a numbered input. So
references may be nested in any structure that can be pickled, and what was recorded cannot change
afterwards. The same arguments are the same bytes in every process, because they tell chores apart.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from matforge.model import OutputReference, ResultReader, UsageError


def pack(arguments: Any, reader: ResultReader | None = None) -> tuple[bytes, tuple[str, ...]]:
    """Pickle ``arguments`` with each reference replaced by (input number, path).

    Parameters
    ----------
    arguments
    reader : ResultReader, optional
        The pipeline that the references have to be of.

    Returns
    -------
    payload : bytes
        Pickle whose persistent ids are ``(input number, path)``.
    inputs : tuple of str
        Chore ids by input number.

    Raises
    ------
    UsageError
        If something inside cannot be pickled (the sentence says which argument), or a reference is
        of another pipeline.
    """
    if not _interesting(arguments):  # plain values: the C pickler is ten times faster
        return pickle.dumps(arguments, protocol=5), ()
    inputs: dict[str, int] = {}
    try:
        return _dump(_ordered(arguments, {}), inputs, reader), tuple(inputs)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{_culprit(arguments)} cannot be pickled: {error}") from error


_PLAIN = frozenset((int, float, str, bytes, bool, complex, type(None)))
_DEEP = 20


def _interesting(value: Any, depth: int = 0) -> bool:
    """Whether ``value`` may hold a reference or need cloudpickle; plain containers are searched."""
    kind = type(value)
    if kind in _PLAIN:
        return False
    if depth < _DEEP:  # a container may hold itself
        if kind is tuple or kind is list:
            return any(type(v) not in _PLAIN and _interesting(v, depth + 1) for v in value)
        if kind is dict:
            return any(_interesting(k, depth + 1) or _interesting(v, depth + 1) for k, v in value.items())
    return True


class _Members:
    """Stands for a set while it is pickled, with its members in order: the bytes tell chores apart."""

    def __init__(self, kind: type, members: list[Any]) -> None:
        self._made = kind, (members,)

    def __reduce__(self) -> Any:
        return self._made


def _ordered(value: Any, known: dict[int, Any], depth: int = 0) -> Any:
    """``value`` with its sets of plain values in an order that is the same in every process."""
    kind = type(value)
    if id(value) in known:  # what is in two places stays one
        return known[id(value)]
    if kind is set or kind is frozenset:
        made: Any = value
        if all(_sortable(one) for one in value):
            made = _Members(kind, [_ordered(one, known, depth + 1) for one in sorted(value, key=_said)])
    elif depth >= _DEEP or not _holds_set(value, set()):
        return value  # itself, because an object of the user's may refer to it, too
    elif kind is tuple:
        made = tuple(_ordered(one, known, depth + 1) for one in value)
    elif kind is list:
        made = known[id(value)] = []
        made += [_ordered(one, known, depth + 1) for one in value]
    else:
        made = known[id(value)] = {}
        made.update((_ordered(k, known, depth + 1), _ordered(v, known, depth + 1)) for k, v in value.items())
    known[id(value)] = made
    return made


def _holds_set(value: Any, seen: set[int]) -> bool:
    """Whether there is a set in plain containers."""
    kind = type(value)
    if kind is set or kind is frozenset:
        return True
    if kind not in (tuple, list, dict) or id(value) in seen:
        return False
    seen.add(id(value))
    inner = (*value, *value.values()) if kind is dict else value
    return any(_holds_set(one, seen) for one in inner)


def _sortable(value: Any) -> bool:
    """Whether all of a set's member is known, so that it has its place among the others."""
    return type(value) in _PLAIN or (
        type(value) in (tuple, frozenset) and all(_sortable(one) for one in value)
    )


def _said(value: Any) -> tuple[str, Any]:
    """What a set's members are sorted by; in every process the same."""
    kind = type(value)
    if kind in _PLAIN:
        return kind.__name__, repr(value)
    inner = [_said(one) for one in value]
    return kind.__name__, inner if kind is tuple else sorted(inner)


def _dump(value: Any, inputs: dict[str, int], reader: ResultReader | None = None) -> bytes:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, obj: Any) -> Any:
            if type(obj) is OutputReference:
                if reader is not None and obj.reader is not None and obj.reader is not reader:
                    raise UsageError(
                        f"An argument refers to {obj.chore_id} of another pipeline; a chore can only use "
                        "results of its own. Take that one's value with .result() and pass it on."
                    )
                return inputs.setdefault(obj.chore_id, len(inputs)), obj.path
            return None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=5).dump(value)
    return buffer.getvalue()


def _culprit(arguments: Any) -> str:
    """Name the first argument that cannot be pickled by itself."""
    args, kwargs = arguments if isinstance(arguments, tuple) and len(arguments) == 2 else (arguments, {})
    named = [*((f"argument {i + 1}", v) for i, v in enumerate(args))]
    named += [(f"argument {k!r}", v) for k, v in dict(kwargs).items()]
    for label, value in named:
        try:
            _dump(value, {})
        except Exception:  # any failure to pickle is the answer we look for
            return f"The {label}, of type {type(value).__name__},"
    return "The arguments"
