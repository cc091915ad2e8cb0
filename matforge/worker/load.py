"""From files of the run directory to a function and its arguments."""

from __future__ import annotations

import io
import pickle
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from matforge.engine.locations import DamagedError, read
from matforge.model import Location, MatForgeError, apply_path

REGISTRY = "out/registry"
_CACHED = 256


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
        number, path = pid
        return apply_path(self.inputs.get(number), path)


class Inputs:
    """Results that one task needs, each loaded at most once."""

    def __init__(self, run_dir: Path, where: Sequence[Any], chore_id: str) -> None:
        self._run_dir = run_dir
        self._where = where
        self._chore_id = chore_id
        self._known: dict[int, Any] = {}

    def get(self, number: int) -> Any:
        """The value of input ``number``.

        Raises
        ------
        InputDamagedError
            If its file is missing or damaged.
        CannotLoadError
            If it cannot be unpickled.
        """
        if number not in self._known:
            where = Location.from_list(self._where[number])
            data = read_checked(self._run_dir, where, f"{self._chore_id}: input {number + 1}", number)
            self._known[number] = _unpickle(
                lambda: pickle.loads(data), f"its input {where.path}", self._chore_id
            )
        return self._known[number]


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


def _unpickle(load: Callable[[], Any], what: str, chore_id: str) -> Any:
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
