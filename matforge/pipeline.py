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

import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matforge.callbacks import CallbackStrategy
from matforge.chore import ChoreRegistry, nearest
from matforge.drawing import Graph
from matforge.engine.store import find_run
from matforge.future import RunFuture, as_completed
from matforge.model import MatForgeError, OutputReference, UsageError
from matforge.opening import Script, begin, reopen
from matforge.policy import OnFailure, memory_bytes, policy_of
from matforge.recording import Recording
from matforge.session import Results, Session
from matforge.settings import Settings, run_settings
from matforge.stored import Defaults
from matforge.strategy import AdaptiveStrategy, FutureProcessingStrategy, NonAdaptiveStrategy, made

StrategyLike = FutureProcessingStrategy | type[FutureProcessingStrategy]


class Pipeline(Recording):
    """A DAG of chores and how to run it.

    Parameters
    ----------
    basedir : path
        Folder in which the run directory is made.
    registry : ChoreRegistry, optional
        Functions registered beforehand.
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
    seed : int
        Changes the seeds of all chores (:func:`matforge.seed`).
    resume : path, optional
        A run that an earlier execution of the script began: :meth:`submit` goes on with it. Its chores
        are found by their content (function, arguments, and how often they were recorded before), and
        what completed is not run again. If it records others than before, its ids of chores may differ
        from those in the run directory; results and failures go by its own. Default:
        ``MATFORGE_RESUME``, for the first submit of a process.
    reserve_broker_node, controller_cores
        Accepted and without effect: the driver needs no place of its own.
    """

    def __init__(
        self,
        basedir: str | os.PathLike[str] | None = None,
        registry: ChoreRegistry | None = None,
        *,
        executor: str | None = None,
        workers: int | None = None,
        name: str = "matforge",
        campaign: str = "",
        layout: str | None = None,
        durability: str = "process",
        seed: int = 0,
        resume: str | os.PathLike[str] | None = None,
        reserve_broker_node: bool | None = None,
        controller_cores: int | None = None,
    ) -> None:
        super().__init__(registry)
        self._settings = run_settings(
            basedir, executor=executor, workers=workers, name=name, campaign=campaign, layout=layout,
            durability=durability, seed=seed,
        )  # fmt: skip
        self._resume = resume
        self._future: RunFuture | None = None

    # -- what was recorded

    def graph(self) -> Graph:
        """The chores and the edges between them; once submitted, with their states and what was spawned."""
        if self._future is None:
            edges = [(needed, name) for name, call in self._ids.items() for needed in call.inputs]
            return Graph(dict.fromkeys(self._ids), tuple(edges))
        run = self.session.engine
        records = dict(run.records)
        states = {name: run.graph.nodes[name].state for name in records}
        return Graph(
            states, tuple((needed, name) for name, r in records.items() for needed in r.chore.inputs)
        )

    # -- running

    def submit(
        self,
        write_restart_freq: int | None = None,
        buffer_time: float = 0.0,
        log_delay: float = 5.0,
        set_cpu_affinity: bool = False,
        set_gpu_affinity: bool = False,
        adaptive: bool = True,
        dynopro: bool = False,
        processing_strategy: StrategyLike | None = None,
        *,
        reserve_broker_node: bool = False,
        controller_cores: int = 0,
        quiet: bool = False,
        retries: int | None = None,
        timeout: float | str | None = None,
        expected: float | str | None = None,
        memory: int | str | None = None,
        on_failure: OnFailure | None = None,
    ) -> RunFuture:
        """Start the run; returns at once.

        Parameters
        ----------
        buffer_time : float
            Seconds, passed to a strategy with full control; others need none.
        log_delay : float
            Least seconds between two writes of ``status.json``.
        set_cpu_affinity, set_gpu_affinity : bool
            Pin each slot to its cores; bind each task of a job to its GPUs.
        adaptive : bool
            Start chores as resources free up, or in waves.
        processing_strategy
            A strategy or its class; overrides ``adaptive``. Default: ``MATFORGE_STRATEGY``.
        quiet : bool
            Do not say where the run writes.
        retries, timeout, expected, memory, on_failure
            Defaults for all chores that do not say otherwise; see :meth:`chore`.
        write_restart_freq, dynopro, reserve_broker_node, controller_cores
            Accepted and without effect: every run can be resumed at any time, and the driver needs
            no place of its own.

        Raises
        ------
        UsageError
            If a setting is wrong, or a chore can never fit; before anything is made.
        """
        self._check_open()
        strategy = self._strategy(processing_strategy, adaptive)
        settings = replace(
            self._settings,
            buffer_time=buffer_time,
            log_delay=log_delay,
            affinity=set_cpu_affinity,
            gpu_affinity=set_gpu_affinity,
            quiet=quiet,
        )
        defaults = Defaults(
            policy_of(retries, timeout, expected, on_failure),
            None if memory is None else memory_bytes(memory),
        )
        self._future = RunFuture(self._begin(settings, strategy, defaults))
        self._closed = True
        return self._future

    def _begin(self, settings: Settings, strategy: FutureProcessingStrategy, defaults: Defaults) -> Session:
        """A new run, or the one that this script is to go on with; the environment names it once."""
        resume = self._resume or os.environ.pop("MATFORGE_RESUME", None)
        if not resume:
            return begin(settings, self.registry, self._calls, strategy, defaults=defaults)
        script = Script(self.registry, list(self._ids.items()), strategy, defaults)
        named = settings.executor if settings.executor != "auto" else None
        return reopen(
            find_run(Path(resume)),
            executor=named,
            workers=settings.workers,
            quiet=settings.quiet,
            script=script,
        )

    def _strategy(self, given: StrategyLike | None, adaptive: bool) -> FutureProcessingStrategy:
        if self._watches:
            if given is not None:
                raise UsageError(
                    "This pipeline has strategies of its own (@pipe.strategy); give processing_strategy "
                    "to another one."
                )
            return CallbackStrategy(self._watches, backfill=adaptive)
        named = os.environ.get("MATFORGE_STRATEGY")
        if given is None and named:
            given = importlib.import_module("matforge.strategies").load(named)
        if given is None:
            return AdaptiveStrategy() if adaptive else NonAdaptiveStrategy()
        return made(given)

    @property
    def session(self) -> Session:
        """The run behind the pipeline.

        Raises
        ------
        MatForgeError
            Before :meth:`submit`.
        """
        return self._live().session

    def results(self, timeout: float | None = None) -> Results:
        """The results of the submitted run, once it has ended; see :class:`~matforge.future.RunFuture`."""
        return self._live().result(timeout)

    def as_completed(
        self, references: Iterable[OutputReference] | None = None, timeout: float | None = None
    ) -> Iterator[OutputReference]:
        """References in the order in which their chores end; default: all that were recorded."""
        if references is None:
            references = [OutputReference(name, (), self) for name in self._ids]
        return as_completed(references, timeout)

    def cancel(self, reference: OutputReference | str) -> None:
        """Stop a chore, even one that runs, and all that depends on it; returns at once."""
        name = reference.chore_id if isinstance(reference, OutputReference) else reference
        real = self.session.real(name)
        if real not in self.session.engine.records:
            raise UsageError(f"There is no chore {name!r}{nearest(name, self._ids)}.")
        self.session.manager.cancel(real)

    def read_result(self, name: str, timeout: float | None = None, path: Sequence[Any] = ()) -> Any:
        """What :meth:`OutputReference.result` calls: waits for one chore."""
        session = self.session
        real = session.real(name)
        session.wait_for(real, timeout)
        return session.read_result(real, path)

    def _live(self) -> RunFuture:
        if self._future is None:
            raise MatForgeError("This pipeline was not submitted yet; call submit() first.")
        return self._future

    def close(self) -> None:
        """Wait for the submitted run, if there is one."""
        if self._future is not None:
            self._future.wait()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self.close()
