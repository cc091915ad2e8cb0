"""What a decorated function becomes: a recorder of calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from matforge.chore import Registration
from matforge.model import OutputReference, Resources, UsageError


class Recorder(Protocol):
    """Where calls are recorded: a pipeline."""

    def record_call(
        self,
        entry: Registration,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        nice: int = 0,
        resources: Resources | None = None,
        key: str | None = None,
    ) -> OutputReference:
        """Record a call of a registered function."""


class Delayed:
    """A registered function: calling it records a chore and returns a reference to its result.

    ``.func`` is the function itself. On a worker this object *is* the function, so chores may
    call each other's code directly.
    """

    def __init__(self, pipeline: Recorder, entry: Registration, options: Mapping[str, Any]) -> None:
        self._pipeline = pipeline
        self._entry = entry
        self._options = dict(options)
        self.func = entry.func
        functools.update_wrapper(self, entry.func)

    def __call__(self, *args: Any, **kwargs: Any) -> OutputReference:
        return self._pipeline.record_call(self._entry, args, kwargs, **self._options)

    def map(self, *iterables: Iterable[Any], **fixed: Any) -> list[OutputReference]:
        """One chore for each element, or for each tuple of elements of several iterables.

        Parameters
        ----------
        *iterables
            The positional arguments; like the built-in ``map``, it ends with the shortest.
        **fixed
            Keyword arguments, the same for every chore.
        """
        if not iterables:
            raise UsageError(f"{self._entry.qualname}.map needs at least one iterable.")
        return [self(*args, **fixed) for args in zip(*iterables, strict=False)]

    def options(
        self, *, nice: int | None = None, resources: Resources | None = None, key: str | None = None
    ) -> Delayed:
        """The same function, its calls with another place in the queue, other resources or a key.

        Parameters
        ----------
        nice : int
            Lower runs earlier.
        resources : Resources
        key : str
            Identity of the chore: a second call with the same key is the same chore.
        """
        given = {"nice": nice, "resources": resources, "key": key}
        changed = {name: value for name, value in given.items() if value is not None}
        return Delayed(self._pipeline, self._entry, {**self._options, **changed})

    def __reduce__(self) -> Any:
        return (_itself, (self.func,))


def _itself(func: Callable[..., Any]) -> Callable[..., Any]:
    return func
