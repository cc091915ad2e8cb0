"""What a Hub's failure means: wait, try again, give up, or a shard that it will never take.

The classes decide everything that follows, so they are found by status and by the names of the
transport's exceptions (the client has changed its HTTP library more than once), never by one
library's types.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

from matforge.lease import HeldError
from matforge.model import MatForgeError


class BusyError(HeldError):
    """Another process is publishing from the same staging folder (exit code 75)."""


class RefusedError(MatForgeError):
    """The Hub refuses us: credentials, permissions, or no such repository (exit code 3)."""

    report: Any = None
    """What was done before, a :class:`~matforge.vulcan.sync.SyncReport`."""


class SplitsChangedError(MatForgeError):
    """The repository is split in another way than a batch was, by somebody who was faster."""


class Failure(StrEnum):
    """Classes of failure, by what to do."""

    RATE_LIMITED = "rate limited"
    """Come back later; the shards stay where they are."""
    TRANSIENT = "transient"
    """Try again; the request may have been carried out all the same."""
    CONFIGURATION = "configuration"
    """Nothing is wrong with the shards, and nothing will work until a person acts."""
    REJECTED = "rejected"
    """The Hub will not take this content."""


@dataclass(frozen=True)
class Verdict:
    """What one failed request means."""

    kind: Failure
    message: str
    """One sentence."""
    wait_s: float | None = None
    """How long the Hub asks us to wait; None if it does not say."""


_CONFIGURATION = (401, 402, 403, 404, 405, 410, 451)
_TRANSIENT = (408, 409, 412, 421, 423, 425)
_CONFIGURATION_NAMES = {
    "OfflineModeIsEnabled",
    "LocalTokenNotFoundError",
    "HFValidationError",
    "RepositoryNotFoundError",
    "RevisionNotFoundError",
    "GatedRepoError",
    "DisabledRepoError",
}
_TRANSPORT_NAMES = {"TransportError", "RequestException", "ConnectionError", "TimeoutError", "ProtocolError"}
_BODY = re.compile(
    r"""(?:retry|try\ again|wait)\D{0,40}?(\d+(?:\.\d+)?|an?)\s*
        (seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def judge(error: BaseException, now: float) -> Verdict:
    """Classify what the Hub's client raised.

    Parameters
    ----------
    error : exception
        What :mod:`huggingface_hub` raised; causes are looked through.
    now : float
        Unix time, for a ``Retry-After`` that is a date.
    """
    verdict = _of_the_wire(error, now)
    if verdict is not None:
        return verdict
    return Verdict(Failure.TRANSIENT if isinstance(error, OSError) else Failure.REJECTED, _sentence(error))


def unanswered(what: str, error: BaseException) -> MatForgeError | None:
    """What to raise where something was to be read and the Hub has refused, or could not be reached.

    None if ``error`` is about a file: that it is not there, or damaged.
    """
    verdict = _of_the_wire(error, time.time())
    if verdict is None or verdict.kind is Failure.REJECTED or any(map(_is_gone, _chain(error))):
        return None
    kind = RefusedError if verdict.kind is Failure.CONFIGURATION else MatForgeError
    return kind(f"{what} cannot be read: {verdict.message.removesuffix('.')}.")


def _is_gone(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, FileNotFoundError) or "EntryNotFoundError" in names


def _of_the_wire(error: BaseException, now: float) -> Verdict | None:
    """What an answer means, or that there was none; None if the error is about neither."""
    for cause in _chain(error):
        response = getattr(cause, "response", None)
        status = getattr(response, "status_code", None)
        if isinstance(status, int):
            return _by_status(cause, response, status, now)
        names = {kind.__name__ for kind in type(cause).__mro__}
        if names & _CONFIGURATION_NAMES:
            return Verdict(Failure.CONFIGURATION, _sentence(cause))
        if names & _TRANSPORT_NAMES:
            return Verdict(Failure.TRANSIENT, f"the Hub could not be reached: {_sentence(cause)}")
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _by_status(error: BaseException, response: Any, status: int, now: float) -> Verdict:
    text = f"{getattr(error, 'server_message', None) or ''} {error}"
    message = f"{status}: {_sentence(error)}"
    if status == 429:
        return Verdict(Failure.RATE_LIMITED, message, retry_after(response.headers, text, now))
    if status in _CONFIGURATION:
        return Verdict(Failure.CONFIGURATION, message)
    if status in _TRANSIENT or status >= 500:
        return Verdict(Failure.TRANSIENT, message, retry_after(response.headers, "", now))
    return Verdict(Failure.REJECTED, message)


def _sentence(error: BaseException) -> str:
    """The server's own words where there are some, on one line."""
    text = str(getattr(error, "server_message", None) or error) or type(error).__name__
    return " ".join(text.split())[:300]


def retry_after(headers: Mapping[str, str], text: str, now: float) -> float | None:
    """Seconds to wait, the longest of all that the answer says; None if it says nothing.

    ``Retry-After`` may be seconds or a date. ``RateLimit: "api";r=0;t=55`` counts only when nothing
    remains (``r=0``): the quota of commits is another one, told in words ("retry in about 1 hour").

    Parameters
    ----------
    headers : mapping
        The answer's headers, in any case.
    text : str
        The message.
    now : float
        Unix time.
    """
    found = {name.lower(): value for name, value in headers.items()}
    waits = [
        _delay(found.get("retry-after", ""), now),
        _rate_limit(found.get("ratelimit", "")),
        _words(text),
    ]
    known = [wait for wait in waits if wait is not None]
    return max(known) if known else None


def _delay(value: str, now: float) -> float | None:
    value = value.strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, when.timestamp() - now)


def _rate_limit(value: str) -> float | None:
    match = re.search(r"r\s*=\s*0\b.*?\bt\s*=\s*(\d+)", value)
    return float(match[1]) if match else None


def _words(text: str) -> float | None:
    # a note on another quota, of which something remains, is no reason to wait
    text = re.sub(
        r"[^.;]*\((\d+)/\d+ (?:requests )?remaining[^)]*\)", lambda m: "" if int(m[1]) else m[0], text
    )
    waits = [
        (1.0 if amount[0] in "aA" else float(amount)) * _UNITS[unit[0].lower()]
        for amount, unit in _BODY.findall(text)
    ]
    return max(waits) if waits else None
