"""Where vault, sessions and cache lie, and the words that name things in them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from matforge.model import UsageError

VAULT_VARIABLES = ("MATFORGE_VAULT", "STRINGFORGE_VAULT")
SESSION_VARIABLE = "MATFORGE_SESSION_DIR"
RESERVED = ("catalog", "retractions", "schema", "readme", "designated_vacua_catalog")
"""Labels that would name a file of the vault or of its data set."""
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_LABEL_LIMIT = 100


class VaultNotFoundError(UsageError, LookupError):
    """Nobody said where the vault is."""


def vault_dir(given: str | Path | None, environ: Mapping[str, str]) -> Path:
    """The vault's folder: argument, ``MATFORGE_VAULT``, or ``vacua_vault`` in a source checkout.

    Raises
    ------
    VaultNotFoundError
        If none of these is there; it says what to do.
    """
    chosen = given or next((environ[name] for name in VAULT_VARIABLES if environ.get(name, "").strip()), None)
    if chosen is not None:
        return Path(chosen).expanduser().absolute()
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "pyproject.toml").is_file():
        return checkout / "vacua_vault"
    raise VaultNotFoundError(
        "There is no vault yet: set MATFORGE_VAULT to a folder (it is made when the first vacua are "
        "designated), or give the folder."
    )


def session_dir(given: str | Path | None, environ: Mapping[str, str]) -> Path:
    """The folder of sessions: argument, ``MATFORGE_SESSION_DIR``, or the user's data folder."""
    chosen = given or environ.get(SESSION_VARIABLE, "").strip()
    if chosen:
        return Path(chosen).expanduser().absolute()
    data = environ.get("XDG_DATA_HOME") or Path(environ.get("HOME") or Path.home()) / ".local" / "share"
    return Path(data).absolute() / "matforge" / "session_vacua"


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Where fetched vaults are kept; may be emptied at any time."""
    own = environ.get("MATFORGE_CACHE_DIR", "").strip()
    if own:
        return Path(own).expanduser().absolute() / "vault"
    cache = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache"
    return Path(cache).absolute() / "matforge" / "vault"


def check_label(label: Any) -> str:
    """``label``, if it can name a set of vacua.

    Raises
    ------
    UsageError
        If it is empty, reserved, or made of anything but letters, digits, ``_`` and ``-``.
    """
    if not isinstance(label, str) or not _LABEL.fullmatch(label) or len(label) > _LABEL_LIMIT:
        raise UsageError(
            f"A label is made of at most {_LABEL_LIMIT} letters, digits, '-' and '_', a letter or digit "
            f"first, not {label!r}."
        )
    if label.lower() in RESERVED:
        raise UsageError(f"The label {label!r} names a file of the vault itself; choose another.")
    return label


def check_person(name: Any, what: str) -> str:
    """``name``, if it says who did something.

    Raises
    ------
    UsageError
        If it is empty or more than a line.
    """
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise UsageError(f"{what} says who, in one line, not {name!r}.")
    return name.strip()


def check_ids(ids: Any) -> list[int]:
    """Numbers of vacua, each once, ascending.

    Raises
    ------
    UsageError
        If they are no whole numbers.
    """
    found = [ids] if isinstance(ids, Integral) or not isinstance(ids, Iterable) else list(ids)
    if isinstance(ids, str) or not all(isinstance(i, Integral) and not isinstance(i, bool) for i in found):
        raise UsageError(f"The vacua are given by their numbers, not by {ids!r}.")
    return sorted({int(i) for i in found})


def check_tags(tags: Any) -> list[str]:
    """The tags, each once, sorted; none for None or NaN, which is how data frames say that there are none.

    Raises
    ------
    UsageError
        If one is no word.
    """
    if isinstance(tags, str):
        found = [tags]
    elif tags is None or (isinstance(tags, float) and math.isnan(tags)):
        found = []
    elif isinstance(tags, Iterable):
        found = list(tags)
    else:
        raise UsageError(f"Tags are a list of words, not {tags!r}.")
    for tag in found:
        if not isinstance(tag, str) or not tag.strip() or not tag.isprintable():
            raise UsageError(f"A tag is a word, not {tag!r}.")
    return sorted({tag.strip() for tag in found})
