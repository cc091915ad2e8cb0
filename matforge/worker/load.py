"""From files of the run directory to a function and its arguments."""

from __future__ import annotations

import io
import pickle
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from matforge.engine import results
from matforge.engine.locations import DamagedError, read
from matforge.model import Location, MatForgeError, apply_path

REGISTRY = "out/registry"
_CACHED = 256
_Value = TypeVar("_Value")


class CannotLoadError(MatForgeError):
    """A function, argument or input cannot be unpickled here; the text names chore and module."""


class InputDamagedError(MatForgeError):
    """A file that an earlier chore wrote is missing or damaged.

    ``input`` is the number of the input that it holds; None if it is none.
    """

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.input = number


class Functions:
    """The callables of the registry, each loaded once in a process."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / REGISTRY
        self._known: OrderedDict[str, Callable[..., Any]] = OrderedDict()

    def get(self, name: str, chore_id: str) -> Callable[..., Any]:
        """The callable pickled in the registry's file ``name``.

        Raises
        ------
        CannotLoadError
            If it cannot be read or unpickled.
        """
        function = self._known.get(name)
        if function is not None:
            return function
        try:
            data = (self._folder / name).read_bytes()
        except OSError as error:
            raise CannotLoadError(
                f"{chore_id}: the function {name} cannot be read from {self._folder}: {error.strerror}."
            ) from error
        loaded = _unpickle(lambda: pickle.loads(data), f"its function {name}", chore_id)
        if not callable(loaded):
            raise CannotLoadError(f"{chore_id}: {self._folder / name} holds no function.")
        function = cast("Callable[..., Any]", loaded)
        self._known[name] = function
        if len(self._known) > _CACHED:
            self._known.popitem(last=False)
        return function


class _ArgumentUnpickler(pickle.Unpickler):
    """Puts results of other chores where the payload has ``(input number, path)``."""

    inputs: Inputs

    def persistent_load(self, pid: Any) -> Any:
        return self.inputs.get(*pid)


class Inputs:
    """Results that one task needs, each loaded at most once; of large ones only what is asked for."""

    def __init__(self, run_dir: Path, where: Sequence[Any], chore_id: str) -> None:
        self._run_dir = run_dir
        self._where = where
        self._chore_id = chore_id
        self._known: dict[int, Any] = {}
        self._mapped: dict[int, Any] = {}
        """Those of which only parts were asked for."""

    def get(self, number: int, path: Sequence[Any] = ()) -> Any:
        """The part at ``path`` of input ``number``; without a path its whole value.

        Raises
        ------
        InputDamagedError
            If its file is missing or damaged.
        CannotLoadError
            If it cannot be unpickled.
        """
        if number in self._known:
            return apply_path(self._known[number], path)
        if number in self._mapped and path:
            return apply_path(self._mapped[number], path)
        where = Location.from_list(self._where[number])
        mapped = self._read(lambda: results.view(self._run_dir, where), number, where) if path else None
        if mapped is None:
            value = self._read(lambda: results.load(self._run_dir, where), number, where)
            self._known[number] = value
        else:
            value = self._read(lambda: results.loads(mapped, self._run_dir / where.path), number, where)
            self._mapped[number] = value
        return apply_path(value, path)

    def _read(self, load: Callable[[], _Value], number: int, where: Location) -> _Value:
        try:
            return _unpickle(load, f"its input {where.path}", self._chore_id)
        except DamagedError as error:
            raise InputDamagedError(f"{self._chore_id}: input {number + 1}: {error}", number) from error


def read_checked(run_dir: Path, where: Location, label: str, number: int | None = None) -> bytes:
    """The bytes at ``where``, or one sentence that begins with ``label``."""
    try:
        return read(run_dir, where)
    except DamagedError as error:
        raise InputDamagedError(f"{label}: {error}", number) from error


def payload_bytes(run_dir: Path, payload: Any, blob: bytes, chore_id: str) -> bytes:
    """The pickled arguments: they came along as ``blob``, or lie at a location."""
    if isinstance(payload, list):
        return read_checked(run_dir, Location.from_list(payload), f"{chore_id}: its arguments")
    return blob


def arguments(data: bytes, inputs: Inputs, chore_id: str) -> Any:
    """Unpickle a payload, with other chores' results in place of the references to them.

    Raises
    ------
    CannotLoadError, InputDamagedError
        If anything cannot be loaded.
    """

    def load() -> Any:
        unpickler = _ArgumentUnpickler(io.BytesIO(data))
        unpickler.inputs = inputs
        return unpickler.load()

    return _unpickle(load, "its arguments", chore_id)


def _unpickle(load: Callable[[], _Value], what: str, chore_id: str) -> _Value:
    try:
        return load()
    except MatForgeError:
        raise
    except MemoryError:
        raise
    except ModuleNotFoundError as error:
        raise CannotLoadError(
            f"{chore_id}: {what} cannot be loaded on {socket.gethostname()}, because the module "
            f"{error.name!r} is missing there; install it, or put it beside the script."
        ) from error
    except Exception as error:
        raise CannotLoadError(
            f"{chore_id}: {what} cannot be loaded on {socket.gethostname()}: {type(error).__name__}: {error}"
        ) from error
