"""The user's own modules as files: found, and read, without importing them.

A function that imports a module when it is called, and a pickle that names one, depend on what will
then be imported. So the code of the module's file stands for it, with that of the modules of the
user's own that it imports; libraries count by name and version.
"""

from __future__ import annotations

import dis
import functools
import importlib.machinery
import importlib.util
import os
import re
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from matforge.chore import content_key

_LIBRARIES = tuple(
    {
        os.path.realpath(sysconfig.get_path(name)) + os.sep
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
)
_NAMED = re.compile(
    rb"\x8c(.)([A-Za-z_][A-Za-z0-9_.]*)\x94(?:\x95.{8})?(?=((?:\x8c.[^\x94]{0,255}\x94|h.|j.{4})\x93)?)",
    re.DOTALL,
)
"""A text of a pickle, and whether it is the module of a function or class that is taken by its name."""


def is_own(module: str) -> bool:
    """Whether a module that was imported is the user's, whose code may change at any time."""
    if module == "__main__":
        return True
    found = sys.modules.get(module)
    path = getattr(found, "__file__", None)
    if module.partition(".")[0] == "matforge" or (found is not None and path is None):
        return False
    return path is None or _is_own_path(path)


def _is_own_path(path: str) -> bool:
    return not os.path.realpath(path).startswith(_LIBRARIES)


@functools.lru_cache(maxsize=1024)
def version_of(module: str) -> str:
    """Version of the library that a module belongs to, imported or not; empty if it has none."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return ""
    try:
        return metadata.version(top)
    except (metadata.PackageNotFoundError, ValueError):  # a library may be installed under another name
        found = sorted(f"{name} {metadata.version(name)}" for name in set(_distributions().get(top, ())))
        return ", ".join(found) or str(getattr(sys.modules.get(top), "__version__", ""))


@functools.lru_cache(maxsize=1)
def _distributions() -> Mapping[str, list[str]]:
    """Names under which the modules are installed; reads a file of every library, so only if need be."""
    return metadata.packages_distributions()


def names_in(code: types.CodeType) -> list[str]:
    """The global names and attributes that code uses, that of the functions in it included."""
    inner = [name for one in code.co_consts if isinstance(one, types.CodeType) for name in names_in(one)]
    return [*code.co_names, *inner]


def imports_in(code: types.CodeType, package: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The modules that code imports when it runs, and the names that it takes from each."""
    values: list[Any] = [0, None]
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            level, wanted = values
            name = "." * (level or 0) + step.argval
            try:
                yield importlib.util.resolve_name(name, package), tuple(wanted or ())
            except ImportError:  # beyond the top: it will fail when it is called
                continue
        values = [values[1], step.argval]
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield from imports_in(one, package)


def sources_of(function: bytes) -> str:
    """Digest of the user's own modules that a pickled function needs; empty if there are none."""
    sources = Sources()
    return sources.digest(sources.named_in(function, texts=True))


class Sources:
    """Digests of the user's own modules, each file read once; several threads may ask."""

    def __init__(self) -> None:
        self.seeded = False
        """Whether one of them asks for the seed of the chore."""
        self._specs: dict[str, importlib.machinery.ModuleSpec | None] = {}
        self._codes: dict[str, tuple[str, types.CodeType | None]] = {}

    def digest(self, names: Iterable[str]) -> str:
        """What the modules of these names are, with all of the user's own that they import; empty if
        none of them is the user's own."""
        found: dict[str, str] = {}
        waiting = sorted(names, reverse=True)
        while waiting:
            name = waiting.pop()
            if name in found:
                continue
            found[name] = self._file(name, waiting)
        own = sorted(f"{name} {digest}" for name, digest in found.items() if digest)
        return content_key(*own) if own else ""

    def imported(self, code: types.CodeType, package: str) -> str:
        """The same of the modules that code imports when it runs; libraries by their version."""
        own: list[str] = []
        libraries: set[str] = set()
        for name, wanted in imports_in(code, package):
            self._note_seed(name, names_in(code))
            there = self._with_parents(name, wanted)
            own += there
            if not there:
                libraries.add(f"{name} {version_of(name)}")
        return content_key(self.digest(own), *sorted(libraries)) if own or libraries else ""

    def named_in(self, data: bytes | memoryview, *, texts: bool = False) -> list[str]:
        """The user's own modules whose functions or classes a pickle takes by name.

        Parameters
        ----------
        data : bytes-like
        texts : bool
            Whether any text that is the name of such a module counts: a pickle by value has modules so.
        """
        found = {
            name.decode()
            for length, name, taken in _NAMED.findall(data)
            if (taken or texts) and (length[0] == len(name))
        }
        return sorted(name for name in found if self._is_own_file(name))

    # -- helps

    def _note_seed(self, module: str, names: list[str]) -> None:
        self.seeded = self.seeded or (module.partition(".")[0] == "matforge" and "seed" in names)

    def _with_parents(self, name: str, wanted: tuple[str, ...] = ()) -> list[str]:
        """Modules of the user's own that are loaded when ``name`` is imported, and ``wanted`` from it."""
        parts = name.split(".")
        names = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return [one for one in (*names, *(f"{name}.{item}" for item in wanted)) if self._is_own_file(one)]

    def _is_own_file(self, name: str) -> bool:
        spec = self._spec(name)
        return (
            spec is not None and spec.has_location and spec.origin is not None and _is_own_path(spec.origin)
        )

    def _spec(self, name: str) -> importlib.machinery.ModuleSpec | None:
        """Where a module would be imported from; nothing is imported for it."""
        if name not in self._specs:
            found = None
            parent, _, _ = name.rpartition(".")
            above = self._spec(parent) if parent else None
            if name.partition(".")[0] not in ("matforge", "__main__") and (not parent or above is not None):
                found = _find(name, above)
            self._specs[name] = found  # only now: several threads ask
        return self._specs[name]

    def _file(self, name: str, waiting: list[str]) -> str:
        """Digest of one module's file; what it imports is added to ``waiting``."""
        spec = self._spec(name)
        if spec is None or spec.origin is None or not self._is_own_file(name):
            return ""
        if spec.origin not in self._codes:
            self._codes[spec.origin] = _read(spec.origin)
        digest, code = self._codes[spec.origin]
        if code is not None:
            package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
            self.seeded = self.seeded or "MATFORGE_SEED" in _texts(code)
            for imported, wanted in imports_in(code, package):
                self._note_seed(imported, names_in(code))
                waiting += self._with_parents(imported, wanted)
        return digest


def _find(name: str, above: importlib.machinery.ModuleSpec | None) -> importlib.machinery.ModuleSpec | None:
    path = None if above is None else above.submodule_search_locations
    if above is not None and path is None:
        return None  # not a package: what is taken from it is no module
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except Exception:  # finders run arbitrary code
            continue
        if spec is not None:
            return spec
    return None


def _read(path: str) -> tuple[str, types.CodeType | None]:
    """Digest of a module's file, and its code, if it is Python."""
    try:
        data = Path(path).read_bytes()
    except OSError:
        return "", None
    try:
        # a warning of the compiler's is that of the import, and names the file
        code = compile(data, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):  # an extension, or what will fail when it is imported
        return content_key("file", data), None
    return content_key("code", *_parts(code)), code


def _parts(code: types.CodeType) -> Iterator[str]:
    """Code without where it stands."""
    yield code.co_code.hex()
    yield code.co_exceptiontable.hex()
    yield repr((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags))
    yield repr((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars))
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from _parts(value)
        elif isinstance(value, frozenset):  # its order changes from process to process
            yield repr(sorted(map(repr, value)))
        else:
            yield repr(value)


def _texts(code: types.CodeType) -> Iterator[str]:
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from _texts(value)
        elif isinstance(value, str):
            yield value
