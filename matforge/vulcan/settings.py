"""What a handle is configured with: arguments first, then the environment, then defaults.

``MATFORGE_VULCAN_REPO``, ``_STAGING_DIR``, ``_PROJECT``, ``_BUDGET`` and ``_TOKEN``; the same names
with ``STRINGFORGE_`` for ``MATFORGE_`` are read where these are not set. A blank variable is not set.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matforge.model import UsageError
from matforge.vulcan.layout import default_staging_dir
from matforge.vulcan.splits import SplitSpec

PREFIXES = ("MATFORGE_VULCAN_", "STRINGFORGE_VULCAN_")
DEFAULT_PROJECT = "vulcan"
DEFAULT_BUDGET = 90
DEFAULT_WINDOW_S = 3600.0
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def variable(name: str, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """The first variable for ``name`` that is set, and its value."""
    for prefix in PREFIXES:
        value = environ.get(prefix + name, "").strip()
        if value:
            return prefix + name, value
    return None


def setting(name: str, environ: Mapping[str, str]) -> str | None:
    """The value of the variable for ``name``, if one is set."""
    found = variable(name, environ)
    return found[1] if found else None


def budget_setting(environ: Mapping[str, str]) -> int:
    """Commits a window, from the environment or the default.

    Raises
    ------
    UsageError
        Naming the variable, if it is no whole number of at least 1.
    """
    found = variable("BUDGET", environ)
    if found is None:
        return DEFAULT_BUDGET
    name, value = found
    try:
        return check_budget(int(value))
    except ValueError:
        raise UsageError(f"{name} must be a whole number of at least 1, not {value!r}.") from None


def check_repo(repo: Any) -> str:
    """``repo``, if it names a repository (``owner/name``).

    Raises
    ------
    UsageError
        If it does not.
    """
    good = isinstance(repo, str) and _REPO.fullmatch(repo) and not any(w in repo for w in ("--", ".."))
    if not good or len(repo) > 96 or repo.endswith((".", "-", ".git")):
        raise UsageError(
            f"The repository is named owner/name (letters, digits, '.', '_', '-'), not {repo!r}."
        )
    return str(repo)


def check_budget(budget: Any) -> int:
    """``budget``, if commits can be made with it.

    Raises
    ------
    UsageError
        If it is no whole number of at least 1.
    """
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise UsageError(f"The budget is a whole number of commits, at least 1, not {budget!r}.")
    return budget


def check_project(project: Any) -> str:
    """``project``, if it is text.

    Raises
    ------
    UsageError
        If it is not, or empty.
    """
    if not isinstance(project, str) or not project.strip():
        raise UsageError(f"The project is a word that stands in run ids, not {project!r}.")
    return project


def check_splits(splits: Any) -> SplitSpec:
    """``splits``, or the usual ones for None.

    Raises
    ------
    UsageError
        If it says nothing of splits.
    """
    if splits is not None and not isinstance(splits, SplitSpec):
        raise UsageError(f"splits is a SplitSpec, not {splits!r}.")
    return splits or SplitSpec()


def check_token(token: Any) -> str | None:
    """``token``, if it can be one.

    Raises
    ------
    UsageError
        If it cannot; what was given is not shown.
    """
    if token is not None and not isinstance(token, str):
        raise UsageError(f"The token is text, not {type(token).__name__}.")
    return token


def check_window(window_s: Any) -> float:
    """``window_s``, if it is a length of time.

    Raises
    ------
    UsageError
        If it is not.
    """
    good = isinstance(window_s, int | float) and not isinstance(window_s, bool)
    if not good or not math.isfinite(window_s) or window_s <= 0:
        raise UsageError(f"window_s is a number of seconds above 0, not {window_s!r}.")
    return float(window_s)


def staging_dir_setting(staging_dir: str | Path | None, environ: Mapping[str, str]) -> Path:
    """The staging folder, absolute: argument, environment, source checkout, data folder. Not created."""
    chosen = staging_dir or setting("STAGING_DIR", environ)
    if chosen is None:
        return default_staging_dir(environ)
    try:
        return Path(chosen).expanduser().absolute()
    except TypeError:
        raise UsageError(f"staging_dir is a path, not {chosen!r}.") from None


def token_setting(given: str | None, own: str | None, environ: Mapping[str, str]) -> str | None:
    """The token: of the call, of the handle, of the environment (``HF_TOKEN`` last); or None."""
    return given or own or setting("TOKEN", environ) or environ.get("HF_TOKEN") or None


def check_extra(values: Any) -> dict[str, Any]:
    """Values for the run-id template, by name.

    Raises
    ------
    UsageError
        If they are not that.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"extra_kwargs maps names of the run-id template to values, not {values!r}.")
    return dict(values)
