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
import importlib
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matforge.callbacks import CallbackStrategy, Watch
from matforge.chore import Call, ChoreRegistry, Registration, check_nice, chore_id, nearest, pack, slug
from matforge.delayed import Delayed
from matforge.drawing import Graph
from matforge.engine.store import find_run
from matforge.future import RunFuture, as_completed
from matforge.model import MatForgeError, OutputReference, Resources, UsageError
from matforge.opening import Script, begin, reopen
from matforge.policy import OnFailure, memory_bytes, policy_of
from matforge.session import Results, Session
from matforge.settings import Settings, run_settings
from matforge.stored import Defaults
from matforge.strategy import AdaptiveStrategy, FutureProcessingStrategy, NonAdaptiveStrategy, made

StrategyLike = FutureProcessingStrategy | type[FutureProcessingStrategy]


class Pipeline:
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
        self.registry = registry if registry is not None else ChoreRegistry()
        self._settings = run_settings(
            basedir, executor=executor, workers=workers, name=name, campaign=campaign, layout=layout,
            durability=durability, seed=seed,
        )  # fmt: skip
        self._calls: list[Call] = []
        self._ids: dict[str, Call] = {}
        self._keys: dict[str, OutputReference] = {}
        self._resume = resume
        self._watches: list[Watch] = []
        self._future: RunFuture | None = None

    # -- recording

    def chore(
        self,
        name: str | None = None,
        num_tasks: int = 1,
        cores_per_task: int = 1,
        gpus_per_task: int = 0,
        mpi: bool = False,
        env: Mapping[str, str] | None = None,
        inherit_env: bool = True,
        *,
        isolated: bool = False,
        resources: Resources | None = None,
        nice: int = 0,
        retries: int | None = None,
        timeout: float | str | None = None,
        expected: float | str | None = None,
        memory: int | str | None = None,
        on_failure: OnFailure | None = None,
        cache: bool | str = False,
    ) -> Callable[[Callable[..., Any]], Delayed]:
        """Decorate a function so that its calls are recorded as chores.

        Parameters
        ----------
        name : str, optional
            Default: the function's name.
        num_tasks, cores_per_task, gpus_per_task, mpi, env, inherit_env, isolated
            As of :class:`~matforge.Resources`, which can be given whole instead.
        resources : Resources, optional
        nice : int
            Lower runs earlier.
        retries : int
            Failures of its own (:data:`matforge.policy.RULES`) after which it is tried again; default: 0.
        timeout : float or str
            After so long an attempt is ended: seconds, or a text like ``"20m"``.
        expected : float or str
            How long it will probably take; so that nothing is started that cannot finish.
        memory : int or str
            What it may occupy: bytes, or a text like ``"4GiB"``; counted when chores are placed.
        on_failure : str
            ``continue`` (the default), or ``stop``: start nothing more once it has failed for good.
        cache : bool or str
            Take results from other runs in the same ``basedir`` if function, arguments and inputs are
            the same; a version like ``"v2"`` tells what the code cannot (files, compiled libraries).

        Raises
        ------
        UsageError
            If it is used without parentheses, or a value is out of range.
        """
        if callable(name):
            raise UsageError("Write @pipe.chore(), with parentheses, above the function.")
        check_nice(nice)
        wants = resources or Resources(
            num_tasks, cores_per_task, gpus_per_task, mpi, env, inherit_env, isolated
        )
        if memory is not None:
            wants = replace(wants, memory=memory_bytes(memory))
        policy = policy_of(retries, timeout, expected, on_failure, cache)

        def decorate(func: Callable[..., Any]) -> Delayed:
            entry = self.registry.register(func, name=name, resources=wants, policy=policy)
            return Delayed(self, entry, {"nice": nice})

        return decorate

    def strategy(
        self,
        bolo_list: Sequence[str],
        name: str | None = None,
        num_tasks: int = 1,
        cores_per_task: int = 1,
        gpus_per_task: int = 0,
        mpi: bool = False,
        env: Mapping[str, str] | None = None,
        inherit_env: bool = True,
        *,
        isolated: bool = False,
        resources: Resources | None = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorate a function so that it is called, as a chore, with what certain others return.

        What it returns is carried out: a :class:`~matforge.ChoreSpec` is spawned, and so are several
        in a list; other decisions are made; ``None`` does nothing. Chores that fail are not told to it.

        Parameters
        ----------
        bolo_list : sequence of str
            Names of the chores to look out for; they are registered already.
        name, num_tasks, cores_per_task, gpus_per_task, mpi, env, inherit_env, isolated, resources
            As of :meth:`chore`, for the strategy's own chores.

        Raises
        ------
        UsageError
            If a name is unknown; the sentence gives the nearest.
        """
        if isinstance(bolo_list, str) or callable(bolo_list):
            raise UsageError('Write @pipe.strategy(bolo_list=["NAME", ...]) above the function.')
        for watched in bolo_list:
            if watched not in self.registry:
                raise UsageError(
                    f"bolo_list names {watched!r}, which is not a registered chore"
                    f"{nearest(watched, self.registry)}."
                )
        wants = resources or Resources(
            num_tasks, cores_per_task, gpus_per_task, mpi, env, inherit_env, isolated
        )

        def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
            entry = self.registry.register(func, name=name, resources=wants)
            self._watches.append(Watch(entry.qualname, frozenset(bolo_list)))

            @functools.wraps(func)
            def refuse(*args: Any, **kwargs: Any) -> None:
                raise UsageError(f"{entry.qualname!r} is a strategy: the run calls it, not the script.")

            return refuse

        return decorate

    def call(
        self,
        name: str,
        /,
        *args: Any,
        resources: Resources | None = None,
        nice: int = 0,
        queue_nice: int = 0,
        key: str | None = None,
        **kwargs: Any,
    ) -> OutputReference:
        """Record a call of a registered function.

        Parameters
        ----------
        name : str
            Under which it is registered.
        resources : Resources, optional
            Default: those given at registration.
        nice, queue_nice : int
            Lower runs earlier (two names for the same).
        key : str, optional
            A key that is known already is the same chore.
        """
        entry = self.registry.get(name)
        return self.record_call(entry, args, kwargs, nice=nice or queue_nice, resources=resources, key=key)

    def record_call(
        self,
        entry: Registration,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        nice: int = 0,
        resources: Resources | None = None,
        key: str | None = None,
    ) -> OutputReference:
        """Record a call of a function of the registry; what :class:`~matforge.delayed.Delayed` does."""
        self._check_open()
        payload, inputs = pack((tuple(args), dict(kwargs)), self)
        wants = resources or entry.resources
        return self._record(
            Call(entry.id_name, payload, inputs, entry.qualname, wants, nice, key, entry.policy)
        )

    def exec(
        self,
        command: Sequence[Any] | str,
        name: str | None = None,
        num_tasks: int = 1,
        cores_per_task: int = 1,
        gpus_per_task: int = 0,
        mpi: bool = False,
        env: Mapping[str, str] | None = None,
        inherit_env: bool = True,
        *,
        deps: Iterable[OutputReference] = (),
        resources: Resources | None = None,
        nice: int = 0,
        retries: int | None = None,
        timeout: float | str | None = None,
        expected: float | str | None = None,
        memory: int | str | None = None,
        on_failure: OnFailure | None = None,
    ) -> OutputReference:
        """Record a command.

        Parameters
        ----------
        command : sequence or str
            The program and its arguments; references among them become their results as text. A
            string is taken apart like a shell does, but no shell is run.
        name : str, optional
            Default: the program's name.
        num_tasks, cores_per_task, gpus_per_task, mpi, env, inherit_env, resources, nice, retries, timeout, \
        expected, memory, on_failure
            As of :meth:`chore`.
        deps : iterable of OutputReference
            Chores that have to complete before.

        Returns
        -------
        OutputReference
            To a :class:`~matforge.CommandResult`: exit code and the paths of its streams.
        """
        self._check_open()
        words = _words(command)
        payload, inputs = pack(words, self)
        _, after = pack(_references(deps), self)
        program = "command" if isinstance(words[0], OutputReference) else Path(str(words[0])).name
        wants = resources or Resources(num_tasks, cores_per_task, gpus_per_task, mpi, env, inherit_env)
        if memory is not None:
            wants = replace(wants, memory=memory_bytes(memory))
        policy = policy_of(retries, timeout, expected, on_failure)
        needed = tuple(dict.fromkeys((*inputs, *after)))
        return self._record(Call(slug(name or program), payload, needed, None, wants, nice, policy=policy))

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
        self._ids[name] = call
        reference = OutputReference(name, (), self)
        if call.key is not None:
            self._keys[call.key] = reference
        return reference

    def _check_open(self) -> None:
        if self._future is not None:
            raise UsageError("This pipeline was submitted already; make another one for more chores.")

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


def _words(command: Sequence[Any] | str) -> list[Any]:
    """A command as a list; raises :class:`UsageError` if it cannot be one."""
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:  # shlex: a quotation that nobody closes
        raise UsageError(f"The command {command!r} cannot be taken apart: {error}.") from error
    if not words:
        raise UsageError("A command needs at least the name of a program.")
    for word in words:
        if isinstance(word, str) and "OutputReference(" in word:
            raise UsageError(
                f"The command holds the text of a reference, {word[:60]!r}: give the command as a list "
                "and the reference as an item of it."
            )
    return words


def _references(deps: Iterable[OutputReference] | OutputReference) -> list[OutputReference]:
    """What a command waits for; anything but a reference would be no wait at all, and nobody told."""
    found = [deps] if isinstance(deps, OutputReference) else list(deps)
    for one in found:
        if not isinstance(one, OutputReference):
            raise UsageError(f"deps must be references to chores of this pipeline, not {one!r}.")
    return found
