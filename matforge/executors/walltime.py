"""When the allocation ends, as far as its environment tells."""

from __future__ import annotations

import os


def allocation_end(*others: float | None) -> float | None:
    """The earliest end that is known, in Unix time.

    Parameters
    ----------
    others : float or None
        What else is known; Slurm's own word is ``SLURM_JOB_END_TIME``.
    """
    said = os.environ.get("SLURM_JOB_END_TIME", "")
    known = [end for end in others if end is not None]
    if said.isdigit() and int(said) > 0:
        known.append(float(said))
    return min(known, default=None)
