"""Waiting for a run, or for some of its chores: futures that :mod:`concurrent.futures` knows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from matforge.model import MatForgeError, OutputReference, RunState, UsageError
from matforge.session import ENDED, Results, Session


class RunFuture(Future[Results]):
    """The run that :meth:`Pipeline.submit` started; its result is all results, by chore id.

    It is a :class:`concurrent.futures.Future`: ``exception()``, ``add_done_callback()`` and
    ``concurrent.futures.wait([...])`` work. ``result()`` raises

    * ``TimeoutError`` if the run has not ended in time; it goes on;
    * :class:`~matforge.RunFailedError` if chores failed: it carries the results there are and every failure;
    * :class:`~matforge.InterruptedRunError` if the run did not come to its end and can be resumed.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self.set_running_or_notify_cancel()
        session.when_over(self._conclude)

    def _conclude(self) -> None:
        try:
            self._session.wait()  # raises what the manager crashed with, if it did
            self.set_result(self._session.outcome())
        except BaseException as error:  # handed over to whoever asks
            self.set_exception(error)

    @property
    def session(self) -> Session:
        """The running session behind this future."""
        return self._session

    @property
    def run_dir(self) -> Path:
        """The run's directory."""
        return self._session.run_dir

    def partial(self) -> Results:
        """Chore id to result of what has completed so far; a live mapping, it grows with the run."""
        return Results(self._session)

    def result(self, timeout: float | None = None) -> Results:
        """Wait for the end; all results by chore id."""
        try:
            return super().result(timeout)
        except TimeoutError:
            if self.done():
                raise  # a user's own
            raise TimeoutError(
                f"The run in {self.run_dir} has not ended after {timeout} s; it goes on."
            ) from None

    def wait(self, timeout: float | None = None) -> RunState:
        """Wait for the end without an opinion on how it ended."""
        return self._session.wait(timeout)

    def cancel(self) -> bool:
        """End the run, resumable; False if it had ended already."""
        if self.done():
            return False
        self._session.interrupt("cancelled by its script")
        return True


def as_completed(
    references: Iterable[OutputReference], timeout: float | None = None
) -> Iterator[OutputReference]:
    """References in the order in which their chores end, well or badly.

    Parameters
    ----------
    references : iterable of OutputReference
        Of submitted pipelines, also of several.
    timeout : float, optional
        Seconds to wait at most, in all.

    Raises
    ------
    TimeoutError
        If they have not all ended in time; the runs go on.
    MatForgeError
        If a run ended before its chores had.
    """
    # checked at once, not when the first is asked for
    return _completed([(_session_of(one), one) for one in references], timeout)


def _session_of(reference: OutputReference) -> Session:
    reader: Any = reference.reader
    if reader is None:
        raise UsageError(f"The reference to {reference.chore_id} is not bound to a run here.")
    session = reader.session
    assert isinstance(session, Session)
    return session


def _completed(
    waiting: list[tuple[Session, OutputReference]], timeout: float | None
) -> Iterator[OutputReference]:
    deadline = None if timeout is None else time.monotonic() + timeout
    index: dict[tuple[int, str], list[OutputReference]] = {}
    for session, one in waiting:
        index.setdefault((id(session), session.real(one.chore_id)), []).append(one)
    sessions = {id(session): session for session, _ in waiting}
    seen = dict.fromkeys(sessions, 0)

    def news() -> list[OutputReference]:
        found: list[OutputReference] = []
        for key, session in sessions.items():
            while seen[key] < len(session.ended):
                found += index.pop((key, session.ended[seen[key]]), ())
                seen[key] += 1
        return found

    while index:
        with ENDED:
            while not (found := news()):
                over = {key for key, session in sessions.items() if session.over}
                if over and (gone := [name for key, name in index if key in over]):
                    raise MatForgeError(f"The run ended before {gone[0]} had.")
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    missing = sum(map(len, index.values()))
                    raise TimeoutError(f"{missing} chores have not ended after {timeout} s; the run goes on.")
                ENDED.wait(left)
        yield from found
