"""A :class:`concurrent.futures.Executor` whose calls are the chores of a run.

For code that speaks to executors already: each ``submit`` is a chore with a place in the run
directory, in ``status.json`` and in the journal, and it may run wherever the run does.

A call that raises is a chore that failed, of which the journal keeps a text. The exception itself, which
whoever waits for the future is to get, is left beside the chore's streams, in :data:`RAISED`.
"""

from __future__ import annotations

import os
import pickle
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from matforge.chore import Call, ChoreRegistry, slug
from matforge.engine.store import OUT_NAME
from matforge.model import ONE_CORE, ChoreState, Failure, FailureKind, MatForgeError, Resources, UsageError
from matforge.opening import begin
from matforge.packing import pack
from matforge.session import Session, told
from matforge.settings import run_settings

_CALL = "call"
RAISED = "raised.pickle"
"""File of a chore's directory: the exception that its call has raised, if it can be pickled."""


class ChoreFailedError(MatForgeError):
    """A call did not succeed, and not by an exception of its own; or that exception's ``__cause__``.

    Attributes
    ----------
    failure : Failure
        Its kind, message, traceback and the tail of its standard error.
    """

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure

    def __reduce__(self) -> Any:
        return (ChoreFailedError, (str(self), self.failure))


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a chore of an executor runs; the identity is taken first, as the call may change everything."""
    folder = Path(os.environ["MATFORGE_RUN_DIR"], OUT_NAME, os.environ["MATFORGE_CHORE_ID"])
    try:
        return function(*args, **kwargs)
    except Exception as error:
        with suppress(Exception):  # then the text has to do
            import cloudpickle

            data = cloudpickle.dumps(error)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RAISED).write_bytes(data)
        raise


def _raised(folder: Path, told: ChoreFailedError) -> BaseException:
    """The exception that a call has raised, ``told`` being its cause; or that, if there is none."""
    try:
        error = pickle.loads((folder / RAISED).read_bytes())
    except Exception:  # none was left, or a class that is not to be had here
        return told
    if not isinstance(error, Exception):
        return told
    error.__cause__ = told
    return error


class ChoreExecutor(Executor):
    """Runs calls as chores of one run, which ends at :meth:`shutdown`.

    Parameters
    ----------
    workers, basedir, executor, name, campaign, layout, durability, seed
        As of :class:`~matforge.Pipeline`.
    resources : Resources, optional
        What each call gets.
    quiet : bool
        Do not say where the run writes.

    Examples
    --------
    >>> with ChoreExecutor(workers=2) as pool:            # doctest: +SKIP
    ...     print(list(pool.map(abs, [-1, -2])))
    [1, 2]
    """

    def __init__(
        self,
        workers: int | None = None,
        basedir: str | os.PathLike[str] | None = None,
        *,
        resources: Resources | None = None,
        quiet: bool = False,
        **settings: Any,
    ) -> None:
        self._resources = resources or ONE_CORE
        registry = ChoreRegistry()
        registry.register(_call, name=_CALL, resources=self._resources)
        options = run_settings(basedir, workers=workers, **settings)
        self._session: Session = begin(replace(options, quiet=quiet), registry, [], held=True)
        self._open = True
        self._lock = threading.Lock()
        self._futures: dict[str, Future[Any]] = {}
        self._ended: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._session.on_chore.append(self._ended.put)
        self._session.when_over(partial(self._ended.put, None))
        self._teller = threading.Thread(target=self._tell, name="matforge-futures", daemon=True)
        self._teller.start()
        threading.Thread(target=self._mind_the_script, name="matforge-executor-end", daemon=True).start()

    @property
    def run_dir(self) -> Path:
        """The run's directory."""
        return self._session.run_dir

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` as a chore.

        Returns
        -------
        Future
            Its ``exception()`` is what the call has raised, with a :class:`ChoreFailedError` as its
            ``__cause__``; that itself, if the chore failed otherwise (a signal, no memory, ...) or the
            exception cannot be pickled. ``cancel()`` also stops a call that runs.

        Raises
        ------
        RuntimeError
            After :meth:`shutdown`.
        """
        if not callable(fn):
            raise UsageError(f"A chore must be a function, not {type(fn).__name__}.")
        payload, inputs = pack(((fn, *args), kwargs))
        if inputs:
            raise UsageError(
                f"An argument refers to {inputs[0]} of a pipeline; a call of an executor can only use "
                "values. Take that one's value with .result() and pass it on."
            )
        name = slug(str(getattr(fn, "__qualname__", type(fn).__name__)))
        future = _ChoreFuture(self._session)
        with self._lock:
            if not self._open:
                raise RuntimeError("cannot schedule new futures after shutdown")
            call = Call(name, payload, inputs, _CALL, self._resources)
            chore = self._session.manager.add(call).result()
            future.chore_id = chore.id
            self._futures[chore.id] = future
        if self._session.has_ended(chore.id):
            self._ended.put(chore.id)  # it was faster than we were
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; the run ends when its chores have.

        Parameters
        ----------
        wait : bool
            Return when it has.
        cancel_futures : bool
            Cancel the calls that were not given to a worker yet; those that were come to their end.
        """
        with self._lock:
            self._open = False
            waiting = list(self._futures.values())
        if cancel_futures:
            for future in waiting:
                if not future.running():
                    future.cancel()
        self._session.manager.release()
        if wait:
            self._session.wait()
            self._teller.join()

    def _mind_the_script(self) -> None:
        """A script may end without :meth:`shutdown`; then the run ends when its calls have."""
        threading.main_thread().join()
        self.shutdown(wait=False)

    def _tell(self) -> None:
        """Load results in a thread of our own: what a user pickled may take its time."""
        while (chore_id := self._ended.get()) is not None:
            with self._lock:
                future = self._futures.pop(chore_id, None)
            if future is not None and future.set_running_or_notify_cancel():
                self._conclude(future, chore_id)
        with self._lock:
            left, self._futures = self._futures, {}
        for future in left.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(MatForgeError(f"The run in {self.run_dir} ended before this call did."))

    def _conclude(self, future: Future[Any], chore_id: str) -> None:
        failure = self._session.failures.get(chore_id)
        try:
            if failure is not None:
                error = ChoreFailedError(f"{told(chore_id, failure)}.", failure)
                own = failure.kind is FailureKind.EXCEPTION
                raise _raised(self.run_dir / OUT_NAME / chore_id, error) if own else error
            future.set_result(self._session.read_result(chore_id))
        except BaseException as error:  # unpickling runs arbitrary code
            future.set_exception(error)


class _ChoreFuture(Future[Any]):
    """A future whose chore is stopped when it is cancelled."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self.chore_id = ""

    def running(self) -> bool:
        """Whether the call was given to a worker and has not ended."""
        node = self._session.engine.graph.nodes.get(self.chore_id)
        return not self.done() and node is not None and node.state is ChoreState.RUNNING

    def cancel(self) -> bool:
        """Cancel the chore, even one that runs; False if it has ended."""
        if not super().cancel():
            return False
        self._session.manager.cancel(self.chore_id)
        return True
