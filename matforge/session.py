"""A run together with the thread that drives it: waited for, read from, interrupted.

:mod:`matforge.opening` begins one or reopens it.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matforge import signals
from matforge.engine import results
from matforge.engine.records import Ending
from matforge.engine.run import Run
from matforge.engine.store import LOG_NAME
from matforge.manager import FluxManager
from matforge.model import ChoreState, Failure, Location, MatForgeError, RunState, apply_path

log = logging.getLogger("matforge")


ENDED = threading.Condition()
"""Told whenever a chore or a run of this process ends; one for all, so that one can wait for several."""


OTHER = "other:"
"""Before the id of a chore that a script does not know, if the script has another with that id."""


class RunFailedError(MatForgeError):
    """Chores failed; carries the results there are and every failure.

    Attributes
    ----------
    results : Mapping
        Chore id to result, of the chores that completed.
    failures : dict
        Chore id to :class:`~matforge.model.Failure`.
    """

    def __init__(self, message: str, results: Mapping[str, Any], failures: dict[str, Failure]) -> None:
        super().__init__(message)
        self.results = results
        self.failures = failures

    def __reduce__(self) -> Any:
        return (RunFailedError, (str(self), dict(self.results), self.failures))


class InterruptedRunError(MatForgeError):
    """The run ended before its end and can be resumed."""


class Results(Mapping[str, Any]):
    """Chore id to result of what has completed; a result is read when it is asked for.

    They stand in the order in which the chores were recorded or spawned, not in that of their ends.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getitem__(self, chore_id: str) -> Any:
        real = self._session.real(chore_id)
        if real not in self._session.results:
            raise KeyError(chore_id)
        return self._session.read_result(real)

    def __iter__(self) -> Iterator[str]:
        session = self._session
        # each copied in one step of the interpreter, as the manager's thread may add to it
        recorded, completed = list(session.engine.records), session.results.copy()
        return (session.shown(name) for name in recorded if name in completed)

    def __len__(self) -> int:
        return len(self._session.results)

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass(eq=False)
class Session:
    """One run being driven by a thread of this process."""

    run_dir: Path
    manager: FluxManager
    engine: Run
    results: dict[str, Location] = field(default_factory=dict)
    """Chore id to location of the result, of what has completed (and is journalled)."""
    failures: dict[str, Failure] = field(default_factory=dict)
    alias: dict[str, str] = field(default_factory=dict)
    """Id in the script's pipeline to id in the run, where they differ: a run that a script went on with
    may have numbered its chores otherwise."""
    _shown: dict[str, str] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    """Ids of the chores that have ended, whichever way, in that order."""
    on_chore: list[Callable[[str], None]] = field(default_factory=list)
    """Called in the manager's thread with the id of every chore that has ended."""
    _on_over: list[Callable[[], None]] = field(default_factory=list)
    _told: bool = False
    _has_ended: set[str] = field(default_factory=set)
    _thread: threading.Thread | None = None
    _crash: BaseException | None = None

    # -- life

    def start(self, undo: ExitStack) -> None:
        """Drive the run in a thread; the process stays until it has ended.

        Parameters
        ----------
        undo : ExitStack
            What would have to be undone if this came to nothing; from here on the run cleans up
            after itself.
        """
        self._thread = threading.Thread(target=self._drive, name="matforge-manager")
        signals.catch(self)
        try:
            self._thread.start()
        finally:
            if self._thread.ident is not None:
                undo.pop_all()

    def _drive(self) -> None:
        try:
            self.manager.run()
        except BaseException as error:  # handed over to whoever waits
            self._crash = error
            log.exception("the manager failed")
        finally:
            self.manager.done.set()
            close_log(self.run_dir)
            with ENDED:
                self._told = True
                ENDED.notify_all()
            for tell in self._on_over:
                tell()

    def when_over(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` when the run has ended, in the manager's thread; at once if it has."""
        with ENDED:
            if not self._told:
                self._on_over.append(tell)
                return
        tell()

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.manager.done.is_set()

    def wait(self, timeout: float | None = None) -> RunState:
        """Wait for the end.

        Raises
        ------
        TimeoutError
            If the run has not ended in time; it goes on.
        """
        if not self.manager.done.wait(timeout):
            raise TimeoutError(f"The run in {self.run_dir} has not ended after {timeout} s; it goes on.")
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        if self._crash is not None:
            raise self._crash
        return self.manager.status.state

    def join(self, timeout: float) -> None:
        """Wait for the thread; takes no lock that a signal handler might have interrupted."""
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(timeout)

    def interrupt(self, reason: str) -> None:
        """End the run soon; it can be resumed."""
        self.manager.interrupt(reason)

    def drain(self, reason: str, within: float | None = None) -> None:
        """Start nothing more, let what runs end, and leave; the run can be resumed."""
        self.manager.drain(reason, within)

    # -- what it has

    def note(self, ending: Ending) -> None:
        """Called in the manager's thread for each chore that has ended."""
        with ENDED:
            self.remember(ending.chore.id, ending.result, ending.failure, ending.state)
            ENDED.notify_all()
        if ending.again:  # whoever wants to know has been told
            return
        for tell in self.on_chore:
            tell(ending.chore.id)

    def remember(
        self, chore_id: str, result: Location | None, failure: Failure | None, state: ChoreState
    ) -> None:
        """A chore has ended, now or before this session began."""
        if state is ChoreState.COMPLETED and result is not None:
            self.results[chore_id] = result
        else:
            self.results.pop(chore_id, None)
        if failure is not None and state is ChoreState.FAILED:
            self.failures[chore_id] = failure
        if chore_id not in self._has_ended:
            self._has_ended.add(chore_id)
            self.ended.append(chore_id)

    def has_ended(self, chore_id: str) -> bool:
        """Whether a chore has ended, whichever way."""
        return chore_id in self._has_ended

    def rename(self, ids: Mapping[str, str]) -> None:
        """Take ids of a script's pipeline (to ids in the run), where they differ.

        What the script does not know keeps its id in the run, marked if the script has given that to
        another chore.
        """
        known = set(ids.values())
        marked = {f"{OTHER}{name}": name for name in ids if name not in known}
        self.alias = {**ids, **marked}
        self._shown = {real: name for name, real in self.alias.items()}

    def real(self, chore_id: str) -> str:
        """The id in the run of a chore that the script knows as ``chore_id``."""
        return self.alias.get(chore_id, chore_id)

    def shown(self, chore_id: str) -> str:
        """Inverse of :meth:`real`."""
        return self._shown.get(chore_id, chore_id)

    def wait_for(self, chore_id: str, timeout: float | None = None) -> None:
        """Wait until one chore has ended, or the run has.

        Raises
        ------
        TimeoutError
            If it has not in time.
        """
        with ENDED:
            if not ENDED.wait_for(lambda: self.has_ended(chore_id) or self.over, timeout):
                raise TimeoutError(f"{chore_id} has not ended after {timeout} s; the run goes on.")

    def read_result(self, chore_id: str, path: Sequence[Any] = ()) -> Any:
        """A completed chore's result, or the part of it at ``path``.

        Raises
        ------
        MatForgeError
            If it has none, with the reason.
        """
        where = self.results.get(chore_id)
        if where is None:
            failure = self.failures.get(chore_id)
            if failure is not None:
                raise MatForgeError(f"{told(chore_id, failure)}.")
            node = self.engine.graph.nodes.get(chore_id)
            if node is None:
                raise MatForgeError(f"{chore_id} is not a chore of the run in {self.run_dir}.")
            if node.state is ChoreState.CANCELLED:
                raise MatForgeError(f"{chore_id} has no result: it was cancelled.")
            raise MatForgeError(f"{chore_id} has no result yet.")
        try:
            value = results.opened(self.run_dir, where) if path else results.load(self.run_dir, where)
        except MatForgeError:
            raise
        except Exception as error:  # unpickling runs arbitrary code
            raise MatForgeError(
                f"The result of {chore_id} in {self.run_dir / where.path} cannot be loaded: "
                f"{type(error).__name__}: {error}."
            ) from error
        return apply_path(value, path)

    def outcome(self) -> Results:
        """All results, once the run has ended.

        Raises
        ------
        RunFailedError
            If chores or the strategy failed.
        InterruptedRunError
            If the run did not come to its end.
        """
        state, manager = self.manager.status.state, self.manager
        if state is RunState.COMPLETED:
            return Results(self)
        if state is RunState.INTERRUPTED:
            raise InterruptedRunError(
                f"The run was interrupted ({(manager.problem or '').removesuffix('.')}); "
                f"`matforge resume {self.run_dir}` goes on with it."
            )
        raise RunFailedError(self._sentence(), Results(self), self._told_failures())

    def _told_failures(self) -> dict[str, Failure]:
        """Failures by the ids that the script knows."""
        if not self.alias:
            return dict(self.failures)
        return {
            self.shown(i): f if f.root is None else replace(f, root=self.shown(f.root))
            for i, f in self.failures.items()
        }

    def _sentence(self) -> str:
        if self.manager.problem:
            return self.manager.problem
        errors = self.engine.decisions.strategy_errors
        if not self.failures:
            return f"The strategy failed: {errors[0]}." if errors else "The run has not ended."
        roots = [i for i, f in self.failures.items() if f.root is None]
        first = roots[0] if roots else next(iter(self.failures))
        rest = len(self.failures) - 1
        more = f"; {rest} more did not complete" if rest else ""
        return f"{told(first, self.failures[first])}{more}."


def told(chore_id: str, failure: Failure) -> str:
    """What happened, without a full stop; the message itself may begin with the chore's id."""
    message = failure.message.removeprefix(f"{chore_id}: ").removesuffix(".")
    return f"{chore_id} failed ({failure.kind.value}): {message}"


class _LogFile(logging.FileHandler):
    """A run's log, which nothing depends on: that its disk is full is told by what does."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def open_log(run_dir: Path) -> None:
    """Write the log of this process to the run's file as well."""
    handler = _LogFile(run_dir / LOG_NAME)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.set_name(str(run_dir))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def close_log(run_dir: Path) -> None:
    """Inverse of :func:`open_log`."""
    for handler in list(log.handlers):
        if handler.get_name() == str(run_dir):
            log.removeHandler(handler)
            handler.close()
