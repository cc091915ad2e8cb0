"""Which executor a run uses, from what the user said and what is here."""

from __future__ import annotations

from matforge.chore import nearest
from matforge.executors.protocol import Executor
from matforge.model import UsageError

KINDS = ("auto", "local")


def check(kind: str, workers: int | None) -> None:
    """Raise :class:`UsageError` if the names or numbers are wrong; starts nothing."""
    if kind not in KINDS:
        raise UsageError(f"There is no executor {kind!r}{nearest(kind, KINDS)}; give --executor local.")
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise UsageError(f"--workers must be a whole number of at least 1, not {workers!r}.")


def make(kind: str, workers: int | None, *, sync: bool = False, affinity: bool = False) -> Executor:
    """An executor that is not yet started."""
    check(kind, workers)
    from matforge.executors.local import LocalExecutor

    return LocalExecutor(workers, sync=sync, set_cpu_affinity=affinity)
