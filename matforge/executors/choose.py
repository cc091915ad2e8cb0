"""Which executor a run uses, from what the user said and what is here."""

from __future__ import annotations

import logging

from matforge.chore import nearest
from matforge.executors import flux
from matforge.executors.protocol import Executor
from matforge.model import UsageError

KINDS = ("auto", "local", "flux")

log = logging.getLogger("matforge")


def check(kind: str, workers: int | None) -> None:
    """Raise :class:`UsageError` if the names or numbers are wrong; starts nothing."""
    if kind not in KINDS:
        raise UsageError(f"There is no executor {kind!r}{nearest(kind, KINDS)}; give --executor local.")
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise UsageError(f"--workers must be a whole number of at least 1, not {workers!r}.")


def make(kind: str, workers: int | None, *, sync: bool = False, affinity: bool = False) -> Executor:
    """An executor that is not yet started.

    ``auto`` is Flux inside a Flux instance, else this machine.

    Raises
    ------
    UsageError
        If a name or number is wrong, or Flux was asked for and cannot be used; the sentence says
        what is missing.
    """
    check(kind, workers)
    if kind == "flux" or (kind == "auto" and flux.here()):
        from matforge.executors.fluxexec import FluxExecutor

        try:
            return FluxExecutor(workers, sync=sync, set_cpu_affinity=affinity)
        except UsageError as error:
            if kind == "flux":
                raise
            # silently using one node of many would waste an allocation
            log.warning("only this machine is used, although it is part of a Flux instance: %s", error)
    from matforge.executors.local import LocalExecutor

    return LocalExecutor(workers, sync=sync, set_cpu_affinity=affinity)
