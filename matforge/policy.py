"""What is to become of a chore that fails, takes long or is large: said by the user, once for each function.

Also the catalogue of how failures count: what a kind costs, and how long to wait before the next try.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from matforge.model import FailureKind, UsageError

OnFailure = Literal["continue", "stop"]

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class Rule:
    """How failures of one kind count.

    Parameters
    ----------
    cost : int or None
        Of the chore's ``retries``; 0 if it is not the chore's fault; None if trying again is useless.
    pauses : bool
        Whether the next try waits: 1, 2, 4, ... up to 60 seconds.
    why : str
        Half a sentence for the documents.
    """

    cost: int | None
    pauses: bool
    why: str


RULES: Mapping[FailureKind, Rule] = {
    FailureKind.EXCEPTION: Rule(1, False, "its function raised"),
    FailureKind.EXIT_CODE: Rule(1, False, "it, or its command, ended with an exit code"),
    FailureKind.SIGNAL: Rule(1, False, "it, or its command, was ended by a signal"),
    FailureKind.OUT_OF_MEMORY: Rule(1, True, "it needed more memory than there was, or than it may have"),
    FailureKind.TIMEOUT: Rule(1, False, "it ran longer than its timeout"),
    FailureKind.CANNOT_LOAD: Rule(1, True, "its function or arguments could not be unpickled or imported"),
    FailureKind.CANNOT_PICKLE_RESULT: Rule(None, False, "what it returned cannot be pickled"),
    FailureKind.STORAGE: Rule(0, True, "a disk was full or could not be written: the run stops, resumable"),
    FailureKind.START_FAILED: Rule(1, True, "its program, or its worker, could not be started"),
    FailureKind.WORKER_LOST: Rule(0, False, "its slot died; three times, and the chore is set aside"),
    FailureKind.NODE_LOST: Rule(0, False, "its node died; three times while alone there: it is set aside"),
    FailureKind.WALLTIME: Rule(
        0,
        False,
        "the allocation or its run ended; or three times all the time that a job may take: set aside",
    ),
    FailureKind.DEPENDENCY_FAILED: Rule(None, False, "a chore that it needs failed; the root is named"),
    FailureKind.DOES_NOT_FIT: Rule(None, False, "it asks for more than there is"),
    FailureKind.CANCELLED: Rule(None, False, "somebody cancelled it"),
}
"""The rule of every kind."""


def pause_before(kind: FailureKind, tries: int) -> float:
    """Seconds to wait before the next try, after ``tries`` that failed."""
    if not RULES[kind].pauses:
        return 0.0
    return float(min(FIRST_PAUSE_S * 2.0 ** (tries - 1), LONGEST_PAUSE_S))


@dataclass(frozen=True, slots=True)
class Policy:
    """What a chore may cost; None stands for not said.

    Parameters
    ----------
    retries : int, optional
        Failures that are the chore's own and after which it is tried again; default: 0.
    timeout : float, optional
        Seconds after which an attempt is ended; default: never.
    expected : float, optional
        Seconds that it will probably take; only plans.
    on_failure : str, optional
        ``continue`` (the default), or ``stop``: start nothing more once it has failed for good.
    cache : str, optional
        Declared version of the function (may be empty), if its results are shared between runs.

    Raises
    ------
    UsageError
        If a value is out of range or of the wrong type.
    """

    retries: int | None = None
    timeout: float | None = None
    expected: float | None = None
    on_failure: OnFailure | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        number = self.retries
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 0):
            raise UsageError(f"retries must be a whole number of at least 0, not {number!r}.")
        if self.on_failure not in (None, "continue", "stop"):
            raise UsageError(f"on_failure must be 'continue' or 'stop', not {self.on_failure!r}.")

    @property
    def stops(self) -> bool:
        """Whether nothing more is started once such a chore has failed for good."""
        return self.on_failure == "stop"

    def over(self, defaults: Policy) -> Policy:
        """This policy, with what it does not say taken from ``defaults``."""
        if defaults is DEFAULT_POLICY:
            return self
        return Policy(**{**defaults.as_dict(), **self.as_dict()})

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, only what is said."""
        if self is DEFAULT_POLICY:
            return {}
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """Inverse of :meth:`as_dict`."""
        return cls(**data) if data else DEFAULT_POLICY


DEFAULT_POLICY = Policy()
"""No retries, no limits, the rest goes on."""


def policy_of(
    retries: int | None = None,
    timeout: float | str | None = None,
    expected: float | str | None = None,
    on_failure: OnFailure | None = None,
    cache: bool | str = False,
) -> Policy:
    """A policy from what a user wrote: times may be text like ``"20m"``."""
    if not isinstance(cache, bool | str) or cache == "":
        raise UsageError(f'cache must be True, False or a version like "v2", not {cache!r}.')
    if retries is timeout is expected is on_failure is None and cache is False:
        return DEFAULT_POLICY
    return Policy(
        retries,
        None if timeout is None else seconds(timeout, "timeout"),
        None if expected is None else seconds(expected, "expected"),
        on_failure,
        None if cache is False else "" if cache is True else cache,
    )


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(value: Any, what: str) -> float:
    """Seconds from a number or a text: ``90``, ``"90s"``, ``"1h30m"``, ``"1-02:03:04"``, ``"20:00"``.

    Raises
    ------
    UsageError
        If it is neither, or not positive.
    """
    found: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        found = float(value)
    elif isinstance(value, str):
        found = _clock(value.strip()) if ":" in value else _units(value.strip())
    if found is None or not 0 < found < float("inf"):
        raise UsageError(f'{what} must be a positive time like 90, "20m" or "1:30:00", not {value!r}.')
    return found


def _units(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        pass
    if not re.fullmatch(r"(\d+(\.\d+)?\s*[smhd]\s*)+", text):
        return None
    return sum(float(n) * _UNITS[unit] for n, _, unit in re.findall(r"(\d+(\.\d+)?)\s*([smhd])", text))


def _clock(text: str) -> float | None:
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, rest = (int(group or 0) for group in match.groups())
    return days * 86400.0 + hours * 3600.0 + minutes * 60.0 + rest


_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
          "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip


def memory_bytes(value: Any) -> int:
    """Bytes from a number or a text: ``"4GiB"``, ``"500MB"``, ``"2g"`` (a power of ten).

    Raises
    ------
    UsageError
        If it is neither, or not positive.
    """
    found = 0
    if isinstance(value, int) and not isinstance(value, bool):
        found = value
    elif isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", value.lower())
        if match is not None and match[2] in _BYTES:
            found = int(float(match[1]) * _BYTES[match[2]])
    if found <= 0:
        raise UsageError(f'memory must be a positive amount like "4GiB" or "500MB", not {value!r}.')
    return found
