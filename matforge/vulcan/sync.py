"""Publish what is staged: compact, freeze, send, settle.

The order makes it safe to be killed anywhere. Shards are compacted into an outbox; the batch is
frozen in the ledger, and from then on is always sent as it is; a slot of the budget is taken before
the commit is sent; once the files are in the repository the outcome is noted, and only then do the
shards move to ``synced/``. Whatever of this is missing, the next sync does first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matforge.model import MatForgeError, UsageError
from matforge.vulcan.hub import MAIN
from matforge.vulcan.lease import StagingLease
from matforge.vulcan.report import SyncReport
from matforge.vulcan.settings import DEFAULT_BUDGET, DEFAULT_WINDOW_S, check_budget, check_repo, check_window
from matforge.vulcan.splits import SplitSpec

if TYPE_CHECKING:
    from matforge.vulcan.forge import Vulcan

__all__ = ["Settings", "SyncReport", "publish", "sync"]


@dataclass(frozen=True)
class Settings:
    """What a sync is asked to do; see :func:`sync`."""

    staging_dir: Path
    repo: str
    token: str | None = None
    budget: int = DEFAULT_BUDGET
    window_s: float = DEFAULT_WINDOW_S
    max_batch: int | None = None
    max_retries: int = 3
    create_pr: bool = False
    revision: str | None = None
    dry_run: bool = False
    compact: bool = True
    splits: SplitSpec | None = None
    commit_prefix: str = "vulcan"
    pictures: bool = True
    """Whether the card shows a picture, where matplotlib is installed."""
    endpoint: str | None = None
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], object] = time.sleep
    stopping: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        check_repo(self.repo)
        check_budget(self.budget)
        check_window(self.window_s)
        for name, least in (("max_batch", 1), ("max_retries", 0)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and value >= least) and not (value is None and name == "max_batch"):
                raise UsageError(f"{name} must be a whole number of at least {least}, not {value!r}.")
        if self.create_pr and self.revision not in (None, MAIN):
            raise UsageError("A pull request is made against main; leave revision out.")


def sync(
    forge: Vulcan,
    *,
    max_batch: int | None = None,
    max_retries: int = 3,
    create_pr: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    budget: int | None = None,
    repo: str | None = None,
    token: str | None = None,
    commit_prefix: str = "vulcan",
    **options: Any,
) -> SyncReport:
    """Publish the pending shards of a handle.

    Parameters
    ----------
    forge : Vulcan
    max_batch : int, optional
        Shards a commit; default: as many as 256 MiB hold, and at most 10,000.
    max_retries : int
        How often a failed request is tried again, each time taking a slot if it was a commit.
    create_pr : bool
        Put everything into one pull request (an open one of this folder is used again); the shards wait in
        ``in_review/`` until it is merged.
    revision : str, optional
        Branch; default ``main``.
    dry_run : bool
        Do everything but send: slots are taken, shards stay.
    budget, repo, token : optional
        Instead of the handle's.
    commit_prefix : str
        First word of the commits' titles.
    **options
        Further fields of :class:`Settings`: ``compact, splits, window_s, pictures, endpoint, stopping``.

    Returns
    -------
    SyncReport

    Raises
    ------
    BusyError
        If another process publishes from the folder.
    RefusedError
        If the Hub refuses us; nothing was moved, and ``report`` says what was done before.
    UsageError
        If an argument is out of range.
    """
    # the splits of a handle that was not told any are those of the repository
    splits = forge.splits if forge.splits != SplitSpec() else None
    settings = Settings(
        staging_dir=Path(forge.staging_dir), repo=repo or forge.repo, token=forge.resolve_token(token),
        budget=forge.budget if budget is None else budget, max_batch=max_batch, max_retries=max_retries,
        create_pr=create_pr, revision=revision, dry_run=dry_run, commit_prefix=commit_prefix,
        **{"window_s": forge.window_s, "splits": splits, **options},
    )  # fmt: skip
    return publish(settings)


def publish(settings: Settings) -> SyncReport:
    """Publish the pending shards of a folder; see :func:`sync`."""
    from matforge.vulcan.publisher import Publisher

    if not settings.staging_dir.is_dir():
        return SyncReport(dry_run=settings.dry_run)
    try:
        with StagingLease(settings.staging_dir) as lease:
            return Publisher(settings, lease).run()
    except OSError as error:  # of this machine: those of the Hub are dealt with where they occur
        raise MatForgeError(
            f"{error.filename or settings.staging_dir} cannot be written ({error.strerror or error}); "
            "publishing has to move shards and keep its ledger there."
        ) from error
