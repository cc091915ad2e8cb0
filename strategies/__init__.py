"""Acquisition strategies, one file each, on the public API alone: copy one and change it.

``load("refine_promising")`` or ``load("my_file.py:MyStrategy")`` returns the class; the command
line's ``--strategy`` takes the same two forms.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from pathlib import Path

from matforge import FutureProcessingStrategy, UsageError

BASE = "base"
"""The module that the others build on; it holds no strategy that could be run."""


def names() -> list[str]:
    """Names of the strategies that come with MatForge."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != BASE)


def load(text: str) -> type[FutureProcessingStrategy]:
    """The strategy class that ``NAME`` or ``FILE.py:Class`` means.

    Raises
    ------
    UsageError
        If there is no such strategy, file or class.
    """
    if ":" in text or text.endswith(".py"):
        return _from_file(text)
    if text not in names():
        raise UsageError(
            f"There is no strategy {text!r}; there are {', '.join(names())}, "
            "or give a file and a class as FILE.py:Class."
        )
    module = importlib.import_module(f"{__name__}.{text}")
    for value in vars(module).values():
        if _is_strategy(value) and value.__module__ == module.__name__:
            found: type[FutureProcessingStrategy] = value
            return found
    raise UsageError(f"The module of strategy {text!r} defines no strategy.")


def _is_strategy(value: object) -> bool:
    return inspect.isclass(value) and hasattr(value, "on_event") and value is not FutureProcessingStrategy


def _from_file(text: str) -> type[FutureProcessingStrategy]:
    name, _, wanted = text.partition(":")
    path = Path(name).resolve()
    if not path.is_file():
        raise UsageError(f"There is no strategy file {name}.")
    module_name = f"_matforge_strategy_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{name} is not a Python file; give FILE.py:Class.")
    module = importlib.util.module_from_spec(spec)
    module.__matforge_file__ = str(path)  # type: ignore[attr-defined]  # so that it is stored by value
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file may raise
        raise UsageError(f"{name} cannot be imported: {type(error).__name__}: {error}.") from error
    here = [n for n, v in vars(module).items() if _is_strategy(v) and v.__module__ == module_name]
    wanted = wanted or (here[0] if len(here) == 1 else "")
    if wanted not in here:
        known = f"it has {', '.join(here)}" if here else "it has no class with on_event"
        raise UsageError(f"{name} has no strategy class {wanted!r}; {known}.")
    found: type[FutureProcessingStrategy] = getattr(module, wanted)
    return found
