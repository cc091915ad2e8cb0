"""How a run ends: why, in which state, and what is written last."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from matforge.engine import salvage
from matforge.engine.lock import LockedError
from matforge.engine.run import Run
from matforge.engine.status import StatusWriter
from matforge.engine.store import StorageError, storage_sentence
from matforge.model import ChoreState, RunState
from matforge.telling import Teller


class Closing:
    """The reasons for which a run ends, told by whoever meets them, and what they lead to.

    Parameters
    ----------
    run : Run
    status : StatusWriter
    teller : Teller
    """

    def __init__(self, run: Run, status: StatusWriter, teller: Teller) -> None:
        self._run = run
        self._status = status
        self._teller = teller
        self.finished = False
        """Whether everything has ended."""
        self.interrupted: str | None = None
        """Half a sentence about why the run ends before, resumable, if it does."""
        self.problem: str | None = None
        """One sentence about why the run could not go on, if it could not."""
        self._taken_over = False
        """Whether the run belongs to another driver by now, so that nothing may be written."""

    @property
    def due(self) -> bool:
        """Whether there is a reason to end."""
        return bool(self.finished or self.interrupted or self.problem)

    def because_of(self, error: LockedError | StorageError | OSError) -> None:
        """The run cannot be written (any more); it can be resumed."""
        self._taken_over = isinstance(error, LockedError)
        self.interrupted = self._sentence(error)

    def _sentence(self, error: Exception) -> str:
        if isinstance(error, OSError):
            return storage_sentence(Path(error.filename or self._run.store.path), error)
        return str(error)

    def conclude(self) -> None:
        """Nothing more can happen: the status has the final state, and an interruption is a problem."""
        self._status.state = self._state()
        self.problem = self.problem or self.interrupted

    def _state(self) -> RunState:
        if self.finished:
            run = self._run
            bad = run.graph.counts[ChoreState.FAILED] or run.decisions.strategy_errors
            return RunState.FAILED if bad else RunState.COMPLETED
        return RunState.FAILED if self.problem else RunState.INTERRUPTED

    def write(self, now: Callable[[], float]) -> None:
        """The last records and the last status, unless another driver has the run; all files are closed.

        Parameters
        ----------
        now : callable
            The executor's clock.
        """
        run = self._run
        try:
            if self._taken_over:
                return
            salvage.sweep(run, run.lossy)
            if self.finished:
                run.journal.append({"e": "state", "s": self._status.state.value})
            run.flush(float("inf"))  # what the records point to is synced before they are
            run.store.close()
            run.journal.close()
            self._status.write(self._teller.counters(), now(), force=True)
        except (OSError, StorageError) as error:
            self.problem = self._sentence(error)
            self._status.state = RunState.INTERRUPTED
            with suppress(OSError):  # the place may have room for so little
                self._status.write(self._teller.counters(), now(), force=True)
        finally:
            run.journal.abandon()
            run.store.abandon()
