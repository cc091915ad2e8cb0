"""What a script records: functions that become chores, calls of them, and commands."""

from __future__ import annotations

import functools
import inspect
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matforge.callbacks import Watch
from matforge.chore import Call, ChoreRegistry, Registration, check_nice, chore_id, nearest, slug
from matforge.delayed import Delayed
from matforge.model import OutputReference, Resources, UsageError
from matforge.packing import pack
from matforge.policy import OnFailure, memory_bytes, policy_of


class Recording(ABC):
    """The recording half of a :class:`~matforge.Pipeline`; it knows nothing of how a run is driven.

    The parameters of :meth:`chore`, :meth:`strategy` and :meth:`exec` are written out in each: scripts
    give them by position, in this order.
    """

    def __init__(self, registry: ChoreRegistry | None = None) -> None:
        self.registry = registry if registry is not None else ChoreRegistry()
        self._calls: list[Call] = []
        self._ids: dict[str, Call] = {}
        self._keys: dict[str, OutputReference] = {}
        self._watches: list[Watch] = []
        self._signatures: dict[str, tuple[Any, inspect.Signature | None]] = {}
        self._closed = False
        """Whether it was submitted, so that nothing more can be recorded."""

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
        """Record a call of a function of the registry; what :class:`~matforge.delayed.Delayed` does.

        Raises
        ------
        UsageError
            If the function cannot be called so, or an argument cannot be pickled.
        """
        self._check_open()
        self._check_arguments(entry, args, kwargs)
        payload, inputs = pack((tuple(args), dict(kwargs)), self)
        wants = resources or entry.resources
        return self._record(
            Call(entry.id_name, payload, inputs, entry.qualname, wants, nice, key, entry.policy)
        )

    def _check_arguments(self, entry: Registration, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Arguments that do not fit are told at the line that has them, not when the chore runs."""
        for value in (*args, *kwargs.values()):
            if _holds_text_of_reference(value):
                raise UsageError(
                    f"An argument of {entry.qualname!r} holds the text of a reference, {value[:60]!r}: give "
                    "the reference itself, and make the text of its result in the chore."
                )
        func, signature = self._signatures.get(entry.qualname, (None, None))
        if func is not entry.func:
            signature = _signature(entry.func)
            self._signatures[entry.qualname] = entry.func, signature
        if signature is None:
            return
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise UsageError(f"{entry.qualname!r} cannot be called like this: {error}.") from error

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
        if self._closed:
            raise UsageError("This pipeline was submitted already; make another one for more chores.")

    @abstractmethod
    def read_result(self, name: str, timeout: float | None = None, path: Sequence[Any] = ()) -> Any:
        """What :meth:`OutputReference.result` calls: waits for one chore."""


def _signature(func: Callable[..., Any]) -> inspect.Signature | None:
    """How a function is called; None if it does not tell.

    What a decorator has put around it is what is called, and may take other arguments than it.
    """
    try:
        return inspect.signature(func, follow_wrapped=False)
    except (TypeError, ValueError):
        return None


def _words(command: Sequence[Any] | str) -> list[Any]:
    """A command as a list; raises :class:`UsageError` if it cannot be one."""
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:  # shlex: a quotation that nobody closes
        raise UsageError(f"The command {command!r} cannot be taken apart: {error}.") from error
    if not words:
        raise UsageError("A command needs at least the name of a program.")
    for word in words:
        if _holds_text_of_reference(word):
            raise UsageError(
                f"The command holds the text of a reference, {word[:60]!r}: give the command as a list "
                "and the reference as an item of it."
            )
    return words


def _holds_text_of_reference(value: Any) -> bool:
    """Whether somebody formatted a reference into a text, where its result will never be."""
    return isinstance(value, str) and "OutputReference(chore_id='" in value


def _references(deps: Iterable[OutputReference] | OutputReference) -> list[OutputReference]:
    """What a command waits for; anything but a reference would be no wait at all, and nobody told."""
    found = [deps] if isinstance(deps, OutputReference) else list(deps)
    for one in found:
        if not isinstance(one, OutputReference):
            raise UsageError(f"deps must be references to chores of this pipeline, not {one!r}.")
    return found
