"""When the allocation ends, as far as its environment tells."""

from __future__ import annotations

import os


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
