"""Checks of what people write: every complaint is one sentence with the place, the key, and what to do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from matforge.model import UsageError

__all__ = ["InputError", "exact_integer", "integer_entries", "nearest", "real_entries", "shape_of"]


LARGEST = 2**31
"""What topological numbers other than invariants stay below: products of three are then exact."""


class InputError(UsageError):
    """An input that cannot be used; the message is one sentence that says what to change."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Name the entries of ``known`` most like ``name``, or all of them where none is alike.

    Examples
    --------
    >>> nearest("octik", ["octic", "p11169"])
    'did you mean octic?'
    """
    names = sorted(known)
    lowered = {entry.lower(): entry for entry in names}
    alike = [lowered[hit] for hit in difflib.get_close_matches(str(name).lower(), lowered, n=3, cutoff=0.5)]
    if alike:
        return f"did you mean {' or '.join(alike)}?"
    return f"known are {', '.join(names)}" if names else "none is known"


def exact_integer(value: Any, where: str) -> int:
    """Return ``value`` as a Python int; integral floats are integers, 0.5 and True are not.

    Raises
    ------
    InputError
        If it is not an integral number.
    """
    if isinstance(value, Integral) and not _is_truth(value):
        return int(value)
    if isinstance(value, Real) and not _is_truth(value):
        number = float(value)
        if math.isfinite(number) and number == int(number):
            return int(number)
    raise InputError(f"{where} is {value!r}, but an integer belongs there: correct that entry.")


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)  # True is an int to Python, but no number to a reader of the file


def _real(value: Any, where: str) -> float:
    if isinstance(value, Real) and not _is_truth(value) and math.isfinite(value):
        return float(value)
    raise InputError(f"{where} is {value!r}, but a finite number belongs there: correct that entry.")


def shape_of(value: Any, shape: Sequence[int | None], where: str) -> None:
    """Check that nested lists have the given shape; None stands for any length.

    Raises
    ------
    InputError
        Naming the first entry that is no list or has another length.
    """
    if not shape:
        return
    if not isinstance(value, list | tuple):
        raise InputError(f"{where} is {value!r}, but a list belongs there: write [...].")
    if shape[0] is not None and len(value) != shape[0]:
        raise InputError(
            f"{where} has {len(value)} entries, but {shape[0]} belong there: add or remove entries."
        )
    for k, entry in enumerate(value):
        shape_of(entry, shape[1:], f"{where}[{k}]")


def integer_entries(value: Any, shape: Sequence[int | None], where: str, *, below: float = LARGEST) -> Any:
    """Nested lists of exact Python integers in the given shape, or an `InputError` naming the entry."""
    shape_of(value, shape, where)
    return _convert(value, len(shape), where, exact_integer, below)


def real_entries(value: Any, shape: Sequence[int | None], where: str, *, below: float = LARGEST) -> Any:
    """Nested lists of finite floats in the given shape, or an `InputError` naming the entry."""
    shape_of(value, shape, where)
    return _convert(value, len(shape), where, _real, below)


def _convert(value: Any, depth: int, where: str, one: Any, below: float) -> Any:
    if depth == 0:
        number = one(value, where)
        if not abs(number) < below:
            raise InputError(f"{where} is out of bounds, {below:.3g} at most: correct that entry.")
        return number
    return [_convert(entry, depth - 1, f"{where}[{k}]", one, below) for k, entry in enumerate(value)]
