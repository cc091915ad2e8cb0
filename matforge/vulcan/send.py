"""Sending one frozen batch until it is in the repository, or it is known that it cannot be now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from matforge.lease import HeldError
from matforge.vulcan.budget import CommitBudget
from matforge.vulcan.errors import Failure, RefusedError, SplitsChangedError, Verdict, judge
from matforge.vulcan.hub import HubRepository
from matforge.vulcan.ledger import Batch

LONGEST_WAIT_S = 300.0
"""What takes longer is not waited for: the shards stay, and the next sync goes on."""


class Beside(NamedTuple):
    """What a commit brings beside the data, made from what the repository held."""

    files: dict[str, bytes]
    parent: str
    """The newest commit then; if it is no longer, the files have to be made again."""


@dataclass(frozen=True)
class Sent:
    """How sending ended: with a commit, or with a reason why not."""

    commit: str | None = None
    verdict: Verdict | None = None
    """Why not; with ``wait_s``, how long from now it makes no sense to try again."""
    out_of_budget: bool = False
    posted: bool = False
    """Whether a commit was sent, so that it may have been carried out all the same."""
    answered: bool = False
    """Whether the commit is that of the Hub's own answer; else somebody else's may have come after it."""


class Sender:
    """Sends batches, one slot of the budget for each POST to the commit address.

    Parameters
    ----------
    repository : HubRepository
    budget : CommitBudget
    max_retries : int
        Further tries after the first.
    clock, sleep : callable
        Time; tests give their own.
    stopping : callable
        Whether somebody asked for the end; then nothing is tried again.
    """

    def __init__(
        self,
        repository: HubRepository,
        budget: CommitBudget,
        max_retries: int,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
        stopping: Callable[[], bool],
    ) -> None:
        self.repository, self.budget = repository, budget
        self._max_retries = max_retries
        self._clock, self._sleep, self._stopping = clock, sleep, stopping
        self.commits = 0
        """Commits made so far."""

    def send(
        self,
        batch: Batch,
        outbox: Path,
        beside: Callable[[str], Beside],
        message: str,
        *,
        again: bool,
    ) -> Sent:
        """Publish a batch.

        Parameters
        ----------
        batch : Batch
        outbox : Path
            Where its files lie.
        beside : callable
            Further files for a revision (card, index); made anew for every try.
        message : str
            Title of the commit.
        again : bool
            Whether it may have been sent before; then the repository is asked first, which costs no slot.
        """
        tries = 0
        while True:
            sent = self._try(batch, outbox, beside, message, again)
            verdict = sent.verdict
            if verdict is None:
                return sent
            again = again or sent.posted
            landed = self._settle(batch, verdict) if again else None
            if landed is not None:
                self.commits += 1
                return Sent(landed)
            wait = max(verdict.wait_s or 0.0, min(2.0**tries, LONGEST_WAIT_S))
            hopeless = verdict.kind in (Failure.CONFIGURATION, Failure.REJECTED)
            if hopeless or tries >= self._max_retries or wait > LONGEST_WAIT_S or self._stopping():
                return sent
            self._sleep(wait)
            if self._stopping():
                return sent
            tries += 1

    def _try(
        self, batch: Batch, outbox: Path, beside: Callable[[str], Beside], message: str, again: bool
    ) -> Sent:
        """Once."""
        posted = False
        try:
            if again and self.repository.holds(batch.parts, batch.revision):
                return Sent(self.repository.head(batch.revision))
            files: dict[str, Path | bytes] = {part.path: outbox / part.path for part in batch.parts}
            more, parent = beside(batch.revision)
            files.update(more)
            operations = self.repository.operations(files)
            self.repository.upload(operations, batch.revision)
            if not self.budget.take():
                return Sent(out_of_budget=True)
            posted = True
            commit = self.repository.commit(operations, batch.revision, message, parent)
        except (RefusedError, HeldError, SplitsChangedError):
            raise
        except Exception as error:
            return Sent(verdict=judge(error, self._clock()), posted=posted)
        self.commits += 1
        return Sent(commit, answered=True)

    def _settle(self, batch: Batch, verdict: Verdict) -> str | None:
        """After a failure that may have come behind a success: the commit, if the files are there."""
        if verdict.kind is not Failure.TRANSIENT:
            return None
        try:
            if self.repository.holds(batch.parts, batch.revision):
                return self.repository.head(batch.revision)
        except Exception:
            pass  # it will be asked again before the next try
        return None
