"""Building a run: functions become chores, calls become nodes, arguments become edges.

>>> from matforge import Pipeline
>>> pipe = Pipeline(basedir="runs")              # doctest: +SKIP
>>> @pipe.chore()                                # doctest: +SKIP
... def square(x):
...     return x * x
>>> total = square(square(3))                    # doctest: +SKIP
>>> pipe.submit().result()[total.chore_id]       # doctest: +SKIP
81
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matforge.chore import Call, ChoreRegistry, Registration, check_nice, chore_id, pack, slug
from matforge.executors import choose
from matforge.model import MatForgeError, OutputReference, Resources, RunState, UsageError
from matforge.opening import Settings, begin
from matforge.session import Results, Session
from matforge.strategy import AdaptiveStrategy, FutureProcessingStrategy, NonAdaptiveStrategy


class Delayed:
    """A registered function: calling it records a chore and returns a reference to its result.

    ``.func`` is the function itself. On a worker this object *is* the function, so chores may
    call each other's code directly.
    """

    def __init__(self, pipeline: Pipeline, entry: Registration) -> None:
        self._pipeline = pipeline
        self._entry = entry
        self.func = entry.func
        functools.update_wrapper(self, entry.func)

    def __call__(self, *args: Any, nice: int = 0, **kwargs: Any) -> OutputReference:
        return self._pipeline.call(self._entry.qualname, *args, nice=nice, **kwargs)

    def __reduce__(self) -> Any:
        return (_itself, (self.func,))


def _itself(func: Callable[..., Any]) -> Callable[..., Any]:
    return func


class RunFuture:
    """The run that :meth:`Pipeline.submit` started."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def session(self) -> Session:
        """The running session behind this future."""
        return self._session

    @property
    def run_dir(self) -> Path:
        """The run's directory."""
        return self._session.run_dir

    def done(self) -> bool:
        """Whether the run has ended."""
        return self._session.manager.done.is_set()

    def result(self, timeout: float | None = None) -> Results:
        """Wait for the end; all results by chore id.

        Raises
        ------
        TimeoutError
            If the run has not ended in time; it goes on.
        RunFailedError
            If chores failed; carries the results there are and every failure.
        InterruptedRunError
            If the run was interrupted.
        """
        self._session.wait(timeout)
        return self._session.outcome()

    def wait(self, timeout: float | None = None) -> RunState:
        """Wait for the end without an opinion on how it ended."""
        return self._session.wait(timeout)


class Pipeline:
    """A DAG of chores and how to run it.

    Parameters
    ----------
    basedir : path
        Folder in which the run directory is made.
    executor : str
        ``auto``, ``local``. Default: ``MATFORGE_EXECUTOR``, else ``auto``.
    workers : int, optional
        Slots; default: ``MATFORGE_WORKERS``, else the cores this process may use.
    name, campaign : str
        Shown in ``status.json``.
    layout : str
        ``auto``, ``full`` (a directory a chore) or ``packed`` (segments).
    durability : str
        ``process`` (a killed process loses nothing that was journalled) or ``power`` (every result
        is synced).
    registry : ChoreRegistry, optional
        Functions registered beforehand.
    """

    def __init__(
        self,
        basedir: str | os.PathLike[str] | None = None,
        *,
        executor: str | None = None,
        workers: int | None = None,
        name: str = "matforge",
        campaign: str = "",
        layout: str | None = None,
        durability: str = "process",
        registry: ChoreRegistry | None = None,
    ) -> None:
        environment = os.environ
        self.registry = registry if registry is not None else ChoreRegistry()
        self._settings: dict[str, Any] = {
            "basedir": Path(basedir if basedir is not None else environment.get("MATFORGE_DIR") or "."),
            "executor": executor or environment.get("MATFORGE_EXECUTOR") or "auto",
            "workers": workers if workers is not None else _whole(environment.get("MATFORGE_WORKERS")),
            "name": name,
            "campaign": campaign,
            "layout": layout or environment.get("MATFORGE_LAYOUT") or "auto",
            "durability": durability,
        }
        choose.check(self._settings["executor"], self._settings["workers"])
        self._calls: list[Call] = []
        self._ids: set[str] = set()
        self._keys: dict[str, OutputReference] = {}
        self._session: Session | None = None

    # -- recording

    def chore(
        self,
        name: str | None = None,
        *,
        resources: Resources | None = None,
        num_tasks: int = 1,
        cores_per_task: int = 1,
        gpus_per_task: int = 0,
        mpi: bool = False,
        env: Mapping[str, str] | None = None,
        inherit_env: bool = True,
        isolated: bool = False,
    ) -> Callable[[Callable[..., Any]], Delayed]:
        """Decorate a function so that its calls are recorded as chores.

        Raises
        ------
        UsageError
            If it is used without parentheses, or a resource is out of range.
        """
        if callable(name):
            raise UsageError("Write @pipe.chore(), with parentheses, above the function.")
        wants = resources or Resources(
            num_tasks, cores_per_task, gpus_per_task, mpi, env, inherit_env, isolated
        )

        def decorate(func: Callable[..., Any]) -> Delayed:
            return Delayed(self, self.registry.register(func, name=name, resources=wants))

        return decorate

    def call(
        self, qualname: str, /, *args: Any, nice: int = 0, key: str | None = None, **kwargs: Any
    ) -> OutputReference:
        """Record a call of a registered function; a ``key`` that is known already is the same chore."""
        entry = self.registry.get(qualname)
        self._check_open()
        payload, inputs = pack((args, kwargs))
        return self._record(Call(entry.id_name, payload, inputs, qualname, entry.resources, nice, key))

    def exec(
        self,
        command: Sequence[Any] | str,
        *,
        name: str | None = None,
        nice: int = 0,
        resources: Resources | None = None,
        **wants: Any,
    ) -> OutputReference:
        """Record a command; references among its arguments become their results as text."""
        import shlex

        self._check_open()
        words = shlex.split(command) if isinstance(command, str) else list(command)
        if not words:
            raise UsageError("A command needs at least the name of a program.")
        payload, inputs = pack(words)
        program = "command" if isinstance(words[0], OutputReference) else Path(str(words[0])).name
        label = slug(name or program)
        return self._record(Call(label, payload, inputs, None, resources or Resources(**wants), nice))

    def _record(self, call: Call) -> OutputReference:
        check_nice(call.nice)
        for name in call.inputs:
            if name not in self._ids:
                raise UsageError(
                    f"An argument of {call.name!r} refers to {name}, which is not a chore of this pipeline."
                )
        if call.key is not None and call.key in self._keys:
            return self._keys[call.key]
        self._calls.append(call)
        name = chore_id(call.name, len(self._calls))
        self._ids.add(name)
        reference = OutputReference(name, (), self)
        if call.key is not None:
            self._keys[call.key] = reference
        return reference

    def _check_open(self) -> None:
        if self._session is not None:
            raise UsageError("This pipeline was submitted already; make another one for more chores.")

    # -- running

    def submit(
        self,
        *,
        buffer_time: float = 0.0,
        log_delay: float = 5.0,
        adaptive: bool = True,
        processing_strategy: FutureProcessingStrategy | type[FutureProcessingStrategy] | None = None,
        set_cpu_affinity: bool = False,
        quiet: bool = False,
    ) -> RunFuture:
        """Start the run; returns at once.

        Parameters
        ----------
        buffer_time : float
            Seconds a strategy with full control waits for more events; others need none.
        log_delay : float
            Least seconds between two writes of ``status.json``.
        adaptive : bool
            Start chores as resources free up, or in waves.
        processing_strategy
            A strategy or its class; overrides ``adaptive``.
        set_cpu_affinity : bool
            Pin each slot to its cores.
        quiet : bool
            Do not say where the run writes.
        """
        self._check_open()
        strategy = processing_strategy
        if strategy is None:
            strategy = AdaptiveStrategy() if adaptive else NonAdaptiveStrategy()
        if isinstance(strategy, type):
            strategy = strategy()
        if not isinstance(strategy, FutureProcessingStrategy):
            raise UsageError(
                f"processing_strategy must be a FutureProcessingStrategy, not {type(strategy).__name__}."
            )
        settings = Settings(**self._settings, log_delay=log_delay, affinity=set_cpu_affinity, quiet=quiet)
        self._session = begin(settings, self.registry, self._calls, strategy)
        return RunFuture(self._session)

    def results(self, timeout: float | None = None) -> Results:
        """The results of the submitted run, once it has ended; see :meth:`RunFuture.result`."""
        return RunFuture(self._live()).result(timeout)

    def read_result(self, name: str) -> Any:
        """What :meth:`OutputReference.result` calls: waits for one chore."""
        session = self._live()
        session.wait_for(name)
        return session.read_result(name)

    def _live(self) -> Session:
        if self._session is None:
            raise MatForgeError("This pipeline was not submitted yet; call submit() first.")
        return self._session

    def close(self) -> None:
        """Wait for the submitted run, if there is one."""
        if self._session is not None:
            self._session.wait()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self.close()


def _whole(text: str | None) -> int | None:
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"MATFORGE_WORKERS must be a whole number, not {text!r}.") from None
