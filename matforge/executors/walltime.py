"""When the allocation ends, and how long a job in it may take, as far as environment and policy tell."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

YEAR_S = 365 * 86400.0
"""What is asked for where a job must say how long, and may say anything."""


def allocation_end(*others: float | None) -> float | None:
    """The earliest end that is known, in Unix time.

    Parameters
    ----------
    others : float or None
        What else is known. Slurm's own word is ``SLURM_JOB_END_TIME``, which Flux hides from what
        runs in it; so ``matforge launch`` says it as ``MATFORGE_END_TIME``.
    """
    said = (os.environ.get(name, "") for name in ("MATFORGE_END_TIME", "SLURM_JOB_END_TIME"))
    known = [end for end in others if end is not None] + [float(end) for end in said if end.isdigit()]
    return min((end for end in known if end > 0), default=None)


def longest_duration(config: Mapping[str, Any], seconds: Callable[[str], float]) -> float:
    """The time to ask for so that a job in the default queue may live as long as the policy allows (RFC 33).

    Parameters
    ----------
    config : mapping
        The instance's configuration.
    seconds : callable
        Reads one of Flux's durations.

    Returns
    -------
    float
        Seconds; 0 where a job that asks for nothing has no limit.
    """

    def said(policy: Mapping[str, Any], *names: str) -> Any:
        found: Any = policy
        for name in names:
            found = found.get(name, {}) if isinstance(found, Mapping) else {}
        return found or None

    defaults = ("jobspec", "defaults", "system")
    queues = config.get("queues", {})
    queue = queues.get(said(config.get("policy", {}), *defaults, "queue"), {})
    levels = [config, queues.get(queue.get("parent"), {}), queue]
    default = limit = 0.0
    for policy in (level.get("policy", {}) for level in levels):
        if (word := said(policy, *defaults, "duration")) is not None:
            default = seconds(str(word))
        if (word := said(policy, "limits", "duration")) is not None:
            limit = seconds(str(word))
    if limit and math.isfinite(limit):
        return limit
    return YEAR_S if default and math.isfinite(default) else 0.0
