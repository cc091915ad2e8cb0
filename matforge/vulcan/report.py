"""What a sync did."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class SyncReport:
    """What one call of ``sync`` did and left.

    Attributes
    ----------
    n_committed : int
        Shards published (in a dry run: that would be). Those of a pull request are not among them.
    n_rows : int
        Their rows.
    n_failed : int
        Shards moved to ``failed/``.
    n_remaining : int
        Shards still in ``pending/``.
    n_commits : int
        Commits made (in a dry run: that would be); each has its oid in ``commit_oids``, None if unknown.
    n_files : int
        Files that the shards were put into.
    n_in_review : int
        Shards put into a pull request that is not merged.
    errors : list of str
        One sentence for each thing that went wrong.
    pull_request : int or None
        Number of the pull request that was used.
    not_before : float or None
        Unix time before which it makes no sense to try again.
    stopped : str
        Why it ended before everything was published; empty if it did not.
    dry_run : bool
    """

    n_committed: int = 0
    n_failed: int = 0
    n_remaining: int = 0
    n_commits: int = 0
    commit_oids: list[str | None] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    n_rows: int = 0
    n_files: int = 0
    n_in_review: int = 0
    pull_request: int | None = None
    not_before: float | None = None
    stopped: str = ""
    dry_run: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong; what waits for its turn is not wrong."""
        return not self.errors and not self.n_failed

    def line(self) -> str:
        """One line for a log."""
        text = (
            f"committed={self.n_committed} failed={self.n_failed} remaining={self.n_remaining} "
            f"commits={self.n_commits} rows={self.n_rows} files={self.n_files}"
        )
        if self.pull_request is not None:
            text += f" in_review={self.n_in_review} pull_request={self.pull_request}"
        return text + (" (dry run)" if self.dry_run else "")
