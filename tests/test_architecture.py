"""The arrows between the rooms point one way, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import matforge

ROOT = Path(__file__).parent.parent
ROOMS = (
    "_version", "model", "packing", "lease", "vulcan", "policy", "chore", "sources", "fingerprint",
    "drawing", "engine", "worker", "executors", "strategy", "callbacks", "control", "steering", "stored",
    "dispatch", "telling", "closing", "recall", "attempts", "manager", "signals", "settings", "session",
    "opening", "future", "delayed", "recording", "pipeline", "concurrent", "vacua.campaign", "launch",
    "cli", "__main__",
)  # fmt: skip
"""In the order in which they may import each other: each only what stands before it."""
FACADES = ("matforge/__init__.py", "matforge/vacua/__init__.py")
"""They name things lazily, and import them for type checkers only."""
STRATEGY_BASE = "matforge.strategies.base"
"""What strategies build on; no strategy itself."""
HEAVY = (
    "jax",
    "jaxlib",
    "numba",
    "pandas",
    "pyarrow",
    "flux",
    "scipy",
    "sklearn",
    "matplotlib",
    "huggingface_hub",
)


@dataclass(frozen=True)
class Import:
    """One module imported by another."""

    path: str
    """The importing file, relative to the repository."""
    line: int
    name: str
    """The module, or the module and a name in it."""
    lazy: bool
    """Whether it happens inside a function."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.name}"


def imports_of(path: Path) -> Iterator[Import]:
    """All imports of a file, those inside functions and for type checkers included."""
    where = path.relative_to(ROOT).as_posix()

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(where, child.lineno, alias.name, lazy)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{where}:{child.lineno} has a relative import"
                for alias in child.names:
                    yield Import(where, child.lineno, f"{child.module}.{alias.name}", lazy)
            yield from visit(child, inside)

    return visit(ast.parse(path.read_text()), False)


def sources(folder: str) -> list[Path]:
    """The Python files of a folder of the repository."""
    return sorted((ROOT / folder).rglob("*.py"))


ALL = [found for path in (*sources("matforge"), *sources("strategies")) for found in imports_of(path)]


def room_of_file(path: str) -> str:
    """The room that a file belongs to."""
    parts = Path(path).with_suffix("").parts
    if parts[0] == "strategies":
        return "strategies"
    if parts[1] == "vacua":
        return "vacua.campaign" if parts[2] == "campaign" else "vacua"
    return parts[1]


def room_of_name(name: str) -> str:
    """The room that an imported name belongs to."""
    parts = name.split(".")
    if parts[1] == "vacua":
        return "vacua.campaign" if "campaign" in parts else "vacua"
    return parts[1]


def is_ours(found: Import) -> bool:
    return found.name.split(".")[0] == "matforge"


def of_base(found: Import) -> bool:
    """Whether a strategy imports what all strategies share."""
    inside = room_of_file(found.path) == "strategies"
    return inside and found.name.startswith(f"{STRATEGY_BASE}.")


def test_there_is_something_to_look_at() -> None:
    assert len(ALL) > 300
    seen = {room_of_file(found.path) for found in ALL}
    assert seen >= {"engine", "worker", "executors", "vacua", "strategies"}


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {room_of_file(path.relative_to(ROOT).as_posix()) for path in sources("matforge")}
    assert rooms - {*ROOMS, "vacua", "__init__"} == set()


def test_the_arrows_between_the_rooms_point_one_way() -> None:
    wrong = []
    for found in filter(is_ours, ALL):
        here, there = room_of_file(found.path), room_of_name(found.name)
        if here in ROOMS and there in ROOMS and ROOMS.index(there) > ROOMS.index(here):
            wrong.append(str(found))
    assert wrong == []


def test_the_nouns_that_every_room_shares_import_no_room() -> None:
    assert [str(found) for found in filter(is_ours, ALL) if room_of_file(found.path) == "model"] == []


def test_the_physics_imports_nothing_of_the_engine() -> None:
    """The shared nouns are no engine: an error in an input is wrong use in either room."""
    wrong = [
        str(found)
        for found in filter(is_ours, ALL)
        if room_of_file(found.path) == "vacua"
        and found.path not in FACADES
        and room_of_name(found.name) not in ("vacua", "_version", "model")
    ]
    assert wrong == []


def test_the_engine_imports_nothing_of_the_physics() -> None:
    rooms = set(ROOMS[: ROOMS.index("vacua.campaign")]) - {"vulcan"}  # its vault checks vacua
    wrong = [
        str(found)
        for found in filter(is_ours, ALL)
        if room_of_file(found.path) in rooms and room_of_name(found.name).startswith("vacua")
    ]
    assert wrong == []


def test_publishing_imports_nothing_of_the_engine_and_only_the_vault_the_physics() -> None:
    wrong = [
        str(found)
        for found in filter(is_ours, ALL)
        if room_of_file(found.path) == "vulcan"
        and room_of_name(found.name) not in ("vulcan", "model", "lease", "_version")
        and not (found.path.startswith("matforge/vulcan/vault/") and room_of_name(found.name) == "vacua")
    ]
    assert wrong == []


def test_nothing_but_the_commands_and_the_campaign_publishes() -> None:
    users = {
        room_of_file(found.path) for found in filter(is_ours, ALL) if room_of_name(found.name) == "vulcan"
    }
    assert users <= {"vulcan", "vacua.campaign", "cli"}


def test_the_campaign_knows_of_the_workers_only_what_happens_once_on_a_node() -> None:
    used = {found.name for found in filter(is_ours, ALL) if room_of_file(found.path) == "vacua.campaign"}
    inner = {name for name in used if room_of_name(name) in ("worker", "engine", "executors")}
    assert all(name.startswith("matforge.worker.once.") for name in inner)


def test_nothing_imports_a_strategy_but_the_commands_and_the_campaign_and_they_when_asked() -> None:
    users = [found for found in ALL if found.name.startswith("matforge.strategies") and not of_base(found)]
    wrong = [
        str(found)
        for found in users
        if not (found.lazy and room_of_file(found.path) in ("cli", "vacua.campaign"))
    ]
    assert users
    assert wrong == []


def test_strategies_use_the_public_interface_alone() -> None:
    import matforge

    public = {f"matforge.{name}" for name in matforge.__all__}
    ours = [f for f in filter(is_ours, ALL) if f.path.startswith("strategies/")]
    assert ours
    assert [str(f) for f in ours if f.name not in public and not of_base(f)] == []


def test_the_resource_manager_is_imported_in_one_file_only() -> None:
    users = {found.path for found in ALL if found.name.split(".")[0] == "flux"}
    assert users <= {"matforge/executors/flux.py"}


def test_every_public_name_can_be_had_and_is_documented() -> None:
    import matforge

    for name in matforge.__all__:
        assert getattr(matforge, name) is not None
        assert name in dir(matforge)
    with pytest.raises(AttributeError, match="has no attribute 'Pipelin'"):
        matforge.Pipelin  # noqa: B018


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in ``sys.modules`` of a fresh interpreter after ``statement``."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import matforge", (*HEAVY, "numpy", "zmq", "cloudpickle")),
        ("from matforge import Pipeline, RunFailedError, FluxManager", HEAVY),
        ("import matforge.vacua", (*HEAVY, "numpy")),
        ("import matforge.vacua.campaign", ("jax", "jaxlib", "pandas", "flux", "scipy")),
        ("import matforge.vulcan", (*HEAVY, "numpy")),
        (
            "from matforge.vulcan import Vulcan; Vulcan(repo='a/b', staging_dir='x').list_pending()",
            ("jax", "jaxlib", "numba", "pandas", "scipy", "huggingface_hub", "datasets"),
        ),
        ("import matforge.worker.agent", (*HEAVY, "numpy", "cloudpickle")),
        ("import matforge.strategies", HEAVY),
        (f"import {STRATEGY_BASE}, matforge.strategies.bayes", (*HEAVY, "numpy")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_heavy_is_loaded_before_it_is_needed(statement: str, forbidden: tuple[str, ...]) -> None:
    assert loaded_by(statement) & set(forbidden) == set()


def test_every_public_name_is_spelled_out_for_type_checkers_and_has_a_home() -> None:
    assert set(matforge.__all__) == {"__version__", *matforge._HOMES}
    assert all(getattr(matforge, name) is not None for name in matforge.__all__)
