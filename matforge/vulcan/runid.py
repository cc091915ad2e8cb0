"""Run ids: rendered from a template, bounded, and such that different values stay different.

A template is text with placeholders: ``{seed}`` must have a value, ``{seed?}`` becomes ``na`` where
there is none. A value that is a plain word stays as it is; a negative number becomes ``m5``; anything
else is reduced to letters and digits and gets six hex digits of its hash, so that ``a/b`` and ``a.b``,
or two names in Chinese, are told apart.

Examples
--------
>>> slug(-5), slug("newton"), slug(None)
('m5', 'newton', 'na')
"""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from matforge.model import UsageError
from matforge.vulcan.layout import RUN_ID_LIMIT

DEFAULT_TEMPLATE = "{date}_{project}_h11-{h11?}_h12-{h12?}_ks-{ks_id?}_triang-{triang_id?}_seed-{seed?}"
NOT_AVAILABLE = "na"
TOKEN_BYTES = 6
_VALUE_LIMIT = 40
_HEX = 6

_PLACEHOLDER = re.compile(r"\{([A-Za-z][A-Za-z0-9_]*)(\??)\}")
_LITERAL = re.compile(r"[A-Za-z0-9_-]*")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_WORD = re.compile(r"[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*")
_TAKEN = re.compile(r"m\d+|na|.*-[0-9a-f]{6}")
"""Words that stand for something else here, so a value that reads like one is hashed too."""

Template = str | Callable[..., str] | None


class MissingValueError(UsageError, KeyError):
    """A placeholder of the template has no value."""

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0])


def slug(value: Any) -> str:
    """``value`` as a word for a run id; equal words only for equal values (as text)."""
    if value is None:
        return NOT_AVAILABLE
    text = str(value)
    if re.fullmatch(r"-\d+", text, flags=re.ASCII):
        return f"m{text[1:]}"
    if _WORD.fullmatch(text) and not _TAKEN.fullmatch(text) and len(text) <= _VALUE_LIMIT:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HEX]
    kept = re.sub(r"[^A-Za-z0-9]+", "-", text[:_VALUE_LIMIT]).strip("-")[: _VALUE_LIMIT - _HEX - 1].strip("-")
    return f"{kept}-{digest}" if kept else f"x-{digest}"


def check_run_id(run_id: Any) -> str:
    """``run_id``, if it can name a file.

    Raises
    ------
    UsageError
        If it is not letters, digits, ``_`` and ``-`` (a letter or digit first, no ``__``), or too long.
    """
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id) or "__" in run_id:
        raise UsageError(
            f"A run id is made of letters, digits, '-' and single '_', a letter or digit first; "
            f"{run_id!r} is not."
        )
    if len(run_id) > RUN_ID_LIMIT:
        raise UsageError(
            f"A run id has at most {RUN_ID_LIMIT} characters; {run_id[:40]!r}… has {len(run_id)}."
        )
    return run_id


def check_template(template: Any) -> Template:
    """``template``, if it is one.

    Raises
    ------
    UsageError
        If a placeholder is not of the form ``{name}`` or ``{name?}``, or the text around them cannot stand
        in a file name.
    """
    if template is None or callable(template):
        return template  # type: ignore[no-any-return]
    if not isinstance(template, str) or not template:
        raise UsageError(f"A run-id template is text, a function or None, not {template!r}.")
    rest = _PLACEHOLDER.sub("x", template)
    if not _LITERAL.fullmatch(rest) or "__" in rest or not rest[0].isalnum():
        raise UsageError(
            f"The run-id template {template!r} is made of letters, digits, '-', single '_', and placeholders "
            "{name} or {name?}, a letter, digit or placeholder first; no formats, attributes or items."
        )
    return template


def render(template: Template, values: Mapping[str, Any], now: datetime | None = None) -> str:
    """The run id for these values.

    Parameters
    ----------
    template : str, callable or None
        A function is called with the values as keywords, and what it returns is checked and kept; None
        gives a random id.
    values : mapping
        Of the placeholders; ``date`` is added if absent (UTC, ``YYYY-MM-DD-HHMMSS``).
    now : datetime, optional
        The time to show, for tests.

    Raises
    ------
    MissingValueError
        If a required placeholder has no value, or None.
    UsageError
        If the result cannot name a file.
    """
    if template is None:
        return uuid.uuid4().hex
    known = {"date": date_text(now), **values}
    if callable(template):
        return check_run_id(template(**known))

    def put(match: re.Match[str]) -> str:
        name, optional = match.groups()
        value = known.get(name)
        if name == "date" and isinstance(value, str) and _WORD.fullmatch(value):
            return value  # a day ends in six digits, which elsewhere would read as a hash
        if value is None and not optional:
            raise MissingValueError(
                f"The run-id template needs a value for {name!r}; give it to write(), as extra_kwargs, "
                f"or write {{{name}?}}."
            )
        return slug(value)

    return check_run_id(_PLACEHOLDER.sub(put, template))


def date_text(now: datetime | None = None) -> str:
    """The second as it stands in a run id."""
    return (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%d-%H%M%S")


def unique(run_id: str) -> str:
    """``run_id`` with twelve random hex digits, so that no two writers ever share one."""
    return f"{run_id[: RUN_ID_LIMIT - 2 * TOKEN_BYTES - 1].rstrip('_')}_{secrets.token_hex(TOKEN_BYTES)}"
