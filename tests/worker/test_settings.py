"""What is put back after a function, and what stays because a module has set it."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matforge.worker.settings import ImportWatch, Setting, Settings

NAME = "a_library_with_settings"


@pytest.fixture
def library() -> Iterator[Any]:
    module: Any = types.ModuleType(NAME)
    module.precision, module.colour = 8, "red"
    sys.modules[NAME] = module
    yield module
    sys.modules.pop(NAME, None)


def table() -> list[Setting]:
    return [
        Setting(NAME, lambda m: m.precision, lambda m, known: setattr(m, "precision", known)),
        Setting(NAME, lambda m: m.colour, lambda m, known: setattr(m, "colour", known)),
    ]


def test_what_a_function_has_set_is_put_back(library: Any) -> None:
    settings = Settings(table())
    library.precision = 3
    settings.restore()
    assert (library.precision, library.colour) == (8, "red")


def test_what_an_import_has_set_stays_beside_what_a_function_set(library: Any) -> None:
    settings = Settings(table())
    library.precision = 3  # by the function, before it imports something
    settings.before_import()
    library.colour = "blue"  # by the module
    settings.after_import()
    settings.restore()
    assert (library.precision, library.colour) == (8, "blue")


def test_a_library_is_known_as_it_was_after_its_own_import() -> None:
    settings = Settings(table())
    settings.before_import()
    module: Any = types.ModuleType(NAME)
    sys.modules[NAME] = module
    settings.after_import()  # it failed half-way: it has no settings
    module.precision, module.colour = 5, "green"
    settings.before_import()
    settings.after_import()
    module.precision = 1
    settings.restore()
    assert module.precision == 5
    del sys.modules[NAME]
    settings.restore()  # a function has removed it


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=20))
def test_after_any_history_a_setting_is_what_the_last_undisturbed_import_said(
    history: list[tuple[bool, int]],
) -> None:
    module: Any = types.ModuleType(NAME)
    module.precision, module.colour = 0, ""
    sys.modules[NAME] = module
    settings = Settings(table())
    expected = 0
    for by_import, value in history:
        undisturbed = module.precision == expected
        if by_import:
            settings.before_import()
        module.precision = value
        if by_import:
            settings.after_import()
            expected = value if undisturbed else expected
    settings.restore()
    assert module.precision == expected
    del sys.modules[NAME]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the watch says; three modules, of which the first imports the second, and the third fails."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "outer_module.py").write_text("import inner_module\nsaid = 'outer'\n")
    (tmp_path / "inner_module.py").write_text("said = 'inner'\n")
    (tmp_path / "failing_module.py").write_text("1 / 0\n")
    said: list[str] = []
    watch = ImportWatch(lambda: said.append("before"), lambda: said.append("after"))
    yield said
    sys.meta_path.remove(watch)
    assert not watch.inside
    for name in ("outer_module", "inner_module"):
        sys.modules.pop(name, None)


def test_an_import_is_told_once_with_all_that_it_imports(watched: list[str]) -> None:
    module = importlib.import_module("outer_module")
    assert module.inner_module.said == "inner"
    assert watched == ["before", "after"]
    importlib.import_module("inner_module")
    assert watched == ["before", "after"]


def test_an_import_that_fails_is_over_too(watched: list[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("failing_module")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("there_is_no_such_module")
    assert watched == ["before", "after"]


def test_a_watched_module_can_be_loaded_again(watched: list[str]) -> None:
    module = importlib.import_module("inner_module")
    assert importlib.reload(module) is module
    assert watched == ["before", "after"] * 2
