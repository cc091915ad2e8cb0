"""What the shell offers after Tab; where nothing is offered, it completes file names itself."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import typer

from matforge.model import MatForgeError

MOST = 200
"""Candidates offered at once; a shell that prints more helps nobody."""


def _starting(incomplete: str, candidates: list[str]) -> list[str]:
    return [c for c in candidates if c.startswith(incomplete)][:MOST]


def runs(incomplete: str) -> list[str]:
    """Run directories, and folders that hold some, where the word points to."""
    from matforge.engine.store import JOURNAL_NAME, WORKFLOW_PREFIX

    def fits(path: Path) -> bool:
        inside = path.glob(f"{WORKFLOW_PREFIX}*/{JOURNAL_NAME}")
        return path.name.startswith(tail) and ((path / JOURNAL_NAME).is_file() or any(inside))

    head, tail = os.path.split(incomplete)
    try:
        return [os.path.join(head, p.name) for p in sorted(Path(head or ".").iterdir()) if fits(p)][:MOST]
    except OSError:
        return []


def chores(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of the chores of the run that the line names already."""
    from matforge.engine.history import chore_ids
    from matforge.engine.store import find_run

    # an option that still waits for its value leaves the words before it unassigned
    named = ctx.params.get("run") or next(iter(ctx.args), None)
    with suppress(MatForgeError):
        return _starting(incomplete, chore_ids(find_run(Path(named)))) if named else []
    return []


def executors(incomplete: str) -> list[str]:
    """Kinds of executors."""
    from matforge.executors.choose import KINDS

    return _starting(incomplete, list(KINDS))


def layouts(incomplete: str) -> list[str]:
    """Layouts of the run directory."""
    from matforge.engine.store import LAYOUTS

    return _starting(incomplete, list(LAYOUTS))


def strategies(incomplete: str) -> list[str]:
    """Strategies that come with MatForge; a file is completed by the shell."""
    from matforge.strategies import names

    return _starting(incomplete, names())


def presets(incomplete: str) -> list[str]:
    """Named searches."""
    from matforge.vacua.region import PRESETS

    return _starting(incomplete, list(PRESETS))


def geometries(incomplete: str) -> list[str]:
    """Geometries that come with MatForge; a file is completed by the shell."""
    from matforge.vacua.geometry import list_geometries

    return _starting(incomplete, list(list_geometries()))
