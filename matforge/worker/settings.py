"""Settings of the interpreter and of libraries that a function may change and the next must not see.

Each is read before the first chore, compared after every one, and put back. What changes while a
module is *imported* stays, because that import will not happen again in this process: otherwise
the first chore of a slot would see what its module has set, and those after it would not.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from operator import attrgetter
from types import ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that can be read, compared and put back.

    ``read`` and ``write`` are given the module; nothing happens before it has been imported.
    """

    module: str
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], None]


class Settings:
    """All settings of this process, and what they were.

    Parameters
    ----------
    table : sequence of Setting
        What to look after.
    """

    def __init__(self, table: Sequence[Setting]) -> None:
        self._table = table
        self._places: dict[str, list[int]] = {}
        """Of each module in the table."""
        for i, setting in enumerate(table):
            self._places.setdefault(setting.module, []).append(i)
        self._known: dict[int, Any] = {}
        self._before: dict[int, Any] = {}
        self.after_import()

    def _now(self) -> dict[int, Any]:
        found = {}
        for i, setting in enumerate(self._table):
            module = sys.modules.get(setting.module)
            if module is not None:
                with suppress(AttributeError):  # its import has failed half-way
                    found[i] = setting.read(module)
        return found

    def keep(self, name: str) -> None:
        """What the module ``name`` is set to now is how it is to be."""
        for i in self._places[name]:
            self._known[i] = self._table[i].read(sys.modules[name])

    def before_import(self) -> None:
        """Remember how things are before a module runs."""
        self._before = self._now()

    def after_import(self) -> None:
        """Keep what a module has set; what a function had changed before it stays to be undone."""
        for i, value in self._now().items():
            if i not in self._known or self._before.get(i) == self._known[i]:
                self._known[i] = value

    def restore(self) -> None:
        """Put back everything that is not as it was."""
        for i, known in self._known.items():
            setting = self._table[i]
            module = sys.modules.get(setting.module)
            if module is not None and setting.read(module) != known:
                setting.write(module, known)


class ImportWatch(MetaPathFinder):
    """Calls ``before`` and ``after`` around every import that is not part of another one."""

    def __init__(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        self.inside = False
        """Whether a module is being imported now."""
        self._before = before
        self._after = after
        sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """What the other finders say, with the module's execution watched."""
        if self.inside:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                # a loader that is a class serves all modules, and what it loads is built in
                if spec.loader is not None and not isinstance(spec.loader, type):
                    self._watch(spec.loader)
                return spec
        return None

    def _watch(self, loader: Any) -> None:
        execute = loader.exec_module

        def watched(module: ModuleType) -> None:
            with suppress(AttributeError):
                del loader.exec_module
            self.inside = True
            self._before()
            try:
                execute(module)
            finally:
                self.inside = False
                self._after()

        with suppress(AttributeError):  # a loader that takes no attributes is left alone
            loader.exec_module = watched


class JaxWatch:
    """Notices what is changed in ``jax.config`` outside imports, so that it can be undone.

    To read all of it after every chore would cost more than many chores do.
    """

    def __init__(self) -> None:
        self._config: Any = None
        self._update: Callable[[str, Any], None] | None = None
        self._before: dict[str, Any] = {}

    def hook(self, importing: Callable[[], bool]) -> None:
        """Watch from now on, if JAX has been imported; ``importing`` tells whose change it is."""
        config: Any = getattr(sys.modules.get("jax"), "config", None)
        update = getattr(config, "update", None)
        if self._update is not None or update is None or not hasattr(config, "values"):
            return
        self._config, self._update = config, update

        def watched(name: str, value: Any) -> None:
            before = self._config.values.get(name)
            update(name, value)
            if importing():
                self._before.pop(name, None)
            else:
                self._before.setdefault(name, before)

        with suppress(AttributeError):
            config.update = watched

    def restore(self) -> None:
        """Put back what functions have changed."""
        if self._before and self._update is not None:
            for name, value in self._before.items():
                self._update(name, value)
            self._before.clear()


# ---------------------------------------------------------------- the table


def _write_environment(_os: Any, known: dict[bytes, bytes]) -> None:
    live = _os.environ._data
    for name in live.keys() - known.keys():
        del os.environ[os.fsdecode(name)]
    for name, value in known.items():
        if live.get(name) != value:
            os.environ[os.fsdecode(name)] = os.fsdecode(value)


def _write_lists(_sys: Any, known: tuple[list[Any], ...]) -> None:
    _sys.path[:], _sys.meta_path[:], _sys.path_hooks[:], _sys.argv[:] = known


def _write_tracing(_sys: Any, known: tuple[Any, ...]) -> None:
    _sys.settrace(known[0])
    _sys.setprofile(known[1])
    _sys.setrecursionlimit(known[2])
    _sys.setswitchinterval(known[3])


def _write_gc(gc: Any, known: tuple[bool, tuple[int, int, int]]) -> None:
    gc.set_threshold(*known[1])
    (gc.enable if known[0] else gc.disable)()


def _read_warnings(warnings: Any) -> tuple[Any, ...]:
    return warnings.filters, warnings.filters.copy(), warnings.showwarning, warnings.formatwarning


def _write_warnings(warnings: Any, known: tuple[Any, ...]) -> None:
    warnings.filters = known[0]
    warnings.resetwarnings()  # which also makes Python forget what it has derived from the filters
    warnings.filters[:] = known[1]
    warnings.showwarning, warnings.formatwarning = known[2:]


_PRISTINE = (0, (), (), True, False)
"""State of a logger that nobody has touched."""


def _loggers(logging: Any) -> list[Any]:
    made = logging.root.manager.loggerDict.values()
    return [logging.root, *(logger for logger in made if isinstance(logger, logging.Logger))]


def _read_logging(logging: Any) -> tuple[int, dict[Any, Any]]:
    states = {}
    for logger in _loggers(logging):
        state = (
            logger.level, tuple(logger.handlers), tuple(logger.filters), logger.propagate, logger.disabled,
        )  # fmt: skip
        if state != _PRISTINE:
            states[logger] = state
    return logging.root.manager.disable, states


def _write_logging(logging: Any, known: tuple[int, dict[Any, Any]]) -> None:
    logging.disable(known[0])
    keep = {handler for state in known[1].values() for handler in state[1]}
    for logger in _loggers(logging):
        level, handlers, filters, propagate, disabled = known[1].get(logger, _PRISTINE)
        for handler in set(logger.handlers) - keep:
            handler.close()
        logger.handlers[:], logger.filters[:] = handlers, filters
        logger.propagate, logger.disabled = propagate, disabled
        logger.setLevel(level)


def _read_decimal(decimal: Any) -> tuple[Any, ...]:
    context = decimal.getcontext()
    return context.prec, context.rounding, context.Emin, context.Emax, tuple(context.traps.items())


def _write_decimal(decimal: Any, known: tuple[Any, ...]) -> None:
    context = decimal.Context(*known[:4])
    context.traps.update(dict(known[4]))
    decimal.setcontext(context)


def _read_numpy(numpy: Any) -> tuple[Any, ...]:
    return numpy.geterr(), numpy.geterrcall(), numpy.get_printoptions()


def _write_numpy(numpy: Any, known: tuple[Any, ...]) -> None:
    numpy.seterr(**known[0])
    numpy.seterrcall(known[1])
    numpy.set_printoptions(**known[2])


def _read_mpmath(mpmath: Any) -> tuple[Any, ...]:
    return mpmath.mp.prec, mpmath.mp.pretty


def _write_mpmath(mpmath: Any, known: tuple[Any, ...]) -> None:
    mpmath.mp.prec, mpmath.mp.pretty = known


def _attributes(first: str, *others: str) -> tuple[Callable[[Any], Any], Callable[[Any, Any], None]]:
    def write(module: Any, known: Any) -> None:
        for name, value in zip((first, *others), known if others else (known,), strict=True):
            setattr(module, name, value)

    return attrgetter(first, *others), write


TABLE = (
    # the mapping beneath os.environ: to copy and compare the decoded one costs twenty times as much
    Setting("os", lambda os_: os_.environ._data.copy(), _write_environment),
    Setting("sys", lambda s: (s.path[:], s.meta_path[:], s.path_hooks[:], s.argv[:]), _write_lists),
    Setting(
        "sys",
        lambda s: (s.gettrace(), s.getprofile(), s.getrecursionlimit(), s.getswitchinterval()),
        _write_tracing,
    ),
    Setting("sys", *_attributes("excepthook", "displayhook", "unraisablehook", "stdin")),
    Setting("gc", lambda gc: (gc.isenabled(), gc.get_threshold()), _write_gc),
    Setting("warnings", _read_warnings, _write_warnings),
    Setting("logging", _read_logging, _write_logging),
    Setting("locale", lambda m: m.setlocale(m.LC_ALL), lambda m, known: m.setlocale(m.LC_ALL, known)),
    Setting("socket", lambda m: m.getdefaulttimeout(), lambda m, known: m.setdefaulttimeout(known)),
    Setting("tempfile", *_attributes("tempdir")),
    Setting("threading", *_attributes("excepthook")),
    Setting("decimal", _read_decimal, _write_decimal),
    Setting("numpy", _read_numpy, _write_numpy),
    Setting("mpmath", _read_mpmath, _write_mpmath),
)
