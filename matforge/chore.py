"""What a chore is: a function or a command, its arguments, its policy and its identity."""

from __future__ import annotations

import builtins
import functools
import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from matforge.model import (
    ONE_CORE,
    ChoreType,
    Failure,
    Lane,
    Location,
    Resources,
    UsageError,
)
from matforge.policy import DEFAULT_POLICY, Policy

_Function = TypeVar("_Function", bound=Callable[..., Any])

NAME_LIMIT = 48
"""Characters of a chore's name that are kept in its id, so that paths stay short."""


def slug(name: str) -> str:
    """``name`` reduced to letters, digits, ``_`` and ``-``, bounded, never empty."""
    text = re.sub(r"[^A-Za-z0-9_]+", "-", name.rpartition("<locals>.")[2]).strip("-")
    return text[:NAME_LIMIT] or "chore"


def chore_id(name: str, sequence: int) -> str:
    """Display form of a chore's identity: one counter for a run, at least four digits."""
    return f"chore-{name}-{sequence:04d}"


@dataclass(frozen=True, slots=True)
class Registration:
    """A Python callable known by name, and the resources its calls get unless told otherwise."""

    qualname: str
    func: Callable[..., Any]
    resources: Resources = ONE_CORE
    id_name: str = ""
    policy: Policy = DEFAULT_POLICY


class ChoreRegistry:
    """Python callables by name; a pipeline has one, and one may be filled beforehand and passed in."""

    def __init__(self) -> None:
        self._entries: dict[str, Registration] = {}

    def register(
        self,
        func: Callable[..., Any],
        *,
        name: str | None = None,
        resources: Resources | None = None,
        id_name: str | None = None,
        policy: Policy = DEFAULT_POLICY,
    ) -> Registration:
        """Make ``func`` known as ``name`` (default: its qualified name).

        Raises
        ------
        UsageError
            If the name is taken by another function, or the object cannot be called.
        """
        if not callable(func):
            raise UsageError(f"A chore must be a function, not {type(func).__name__}.")
        if name is not None and not isinstance(name, str):
            raise UsageError(f"The name of a chore must be a string, not {name!r}.")
        qualname = name or _name_of(func)
        known = self._entries.get(qualname)
        if known is not None and known.func is not func and not _redefined(known.func, func):
            raise UsageError(
                f"There is already a chore named {qualname!r}; give one of the two another name "
                "with @pipe.chore(name=...)."
            )
        wants = resources if resources is not None and resources != ONE_CORE else ONE_CORE
        entry = Registration(qualname, func, wants, id_name or slug(name or qualname), policy)
        self._entries[qualname] = entry
        return entry

    def chore(
        self,
        name: str | None = None,
        resources: Resources | None = None,
        num_tasks: int = 1,
        cores_per_task: int = 1,
        gpus_per_task: int = 0,
        mpi: bool = False,
        env: Mapping[str, str] | None = None,
        inherit_env: bool = True,
    ) -> Callable[[_Function], _Function]:
        """Decorate a function so that it is registered; it stays a function, for :meth:`Pipeline.call`.

        Parameters
        ----------
        name : str, optional
            Default: the function's qualified name.
        resources, num_tasks, cores_per_task, gpus_per_task, mpi, env, inherit_env
            What its calls get unless told otherwise; as of :class:`~matforge.Resources`, which can be
            given whole.
        """
        wants = resources or Resources(num_tasks, cores_per_task, gpus_per_task, mpi, env, inherit_env)

        def decorate(func: _Function) -> _Function:
            self.register(func, name=name, resources=wants)
            return func

        return decorate

    def get(self, name: str) -> Registration:
        """The entry called ``name``.

        Raises
        ------
        UsageError
            If there is none; the sentence gives the nearest names.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise UsageError(f"There is no chore named {name!r}{nearest(name, self._entries)}.")
        return entry

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self.get(name).func

    def keys(self) -> Iterable[str]:
        """The names."""
        return self._entries.keys()

    def items(self) -> Iterable[tuple[str, Callable[..., Any]]]:
        """Names and functions."""
        return ((name, entry.func) for name, entry in self._entries.items())

    def values(self) -> Iterable[Callable[..., Any]]:
        """The functions."""
        return (entry.func for entry in self._entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Any:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _name_of(func: Callable[..., Any]) -> str:
    """What its author calls a function, also one that is defined inside another or bound to arguments."""
    while isinstance(func, functools.partial):
        func = func.func
    return str(getattr(func, "__qualname__", type(func).__name__)).rpartition("<locals>.")[2]


def _redefined(old: Callable[..., Any], new: Callable[..., Any]) -> bool:
    """Whether somebody at a prompt or in a notebook has defined a function anew."""
    interactive = hasattr(sys, "ps1") or "get_ipython" in vars(builtins)
    same = getattr(old, "__module__", 0) == getattr(new, "__module__", 1) == "__main__"
    return interactive and same


def nearest(name: str, known: Any) -> str:
    """``"; did you mean 'x'?"``-style ending for an unknown name, or a list of what there is."""
    import difflib

    names = sorted(str(k) for k in known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f" (did you mean {' or '.join(repr(c) for c in close)}?)"
    return f" (known: {', '.join(names[:12])})" if names else " (none is known)"


def check_nice(nice: Any) -> None:
    """Raise :class:`UsageError` if ``nice`` is no place in a queue."""
    if not isinstance(nice, int):
        raise UsageError(f"nice must be a whole number, not {nice!r}.")


@dataclass(frozen=True, slots=True)
class ChoreSpec:
    """A chore that a strategy wants: which registered function, with which arguments.

    Parameters
    ----------
    args, kwargs
        Arguments; references to other chores' results may be nested in them.
    qualname : str
        Name under which the function is registered.
    resources : Resources, optional
        Default: those given at registration.
    nice : int
        Lower runs earlier.
    key : str, optional
        Identity of the chore within the run. By default a spawned chore is known by its parent
        and its ordinal among what the parent spawned; give a key where the parent depends on the
        order of events.
    """

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] | None = None
    qualname: str = ""
    resources: Resources | None = None
    nice: int = 0
    key: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.qualname, str) or not self.qualname:
            raise UsageError("A ChoreSpec needs qualname, the name of a registered chore.")
        check_nice(self.nice)
        if self.key is not None and not isinstance(self.key, str):
            raise UsageError(f"key must be a string, not {self.key!r}.")
        if self.resources is not None and not isinstance(self.resources, Resources):
            raise UsageError(f"resources must be a Resources, not {self.resources!r}.")

    @property
    def chore_key(self) -> str | None:
        """``Chore.key`` of the chore that this becomes: how a strategy knows its own again.

        None without ``key``; then it depends on the chore whose end is being answered.
        """
        return None if self.key is None else named_key(self.key)


@dataclass(frozen=True, slots=True)
class Call:
    """A packed call: all of a chore except its place in a run."""

    name: str
    payload: bytes
    inputs: tuple[str, ...] = ()
    """Ids of the chores whose results the payload refers to, by input number."""
    function: str | None = None
    resources: Resources = ONE_CORE
    nice: int = 0
    key: str | None = None
    policy: Policy = DEFAULT_POLICY


@dataclass(frozen=True, slots=True)
class Chore:
    """A chore of a run; never changes."""

    id: str
    key: str
    """Identity by content or descent, the same on every executor and worker count."""
    name: str
    payload: Location
    inputs: tuple[str, ...] = ()
    function: str | None = None
    """Name in the registry; None for a command."""
    resources: Resources = ONE_CORE
    nice: int = 0
    parent: str | None = None
    """Id of the chore whose end made a strategy spawn this one."""
    unfit: Failure | None = None
    """Why it can never run here, if it cannot."""
    policy: Policy = DEFAULT_POLICY

    @property
    def chore_type(self) -> ChoreType:
        """Python function or command."""
        return ChoreType.EXECUTABLE if self.function is None else ChoreType.PYTHON

    @property
    def lane(self) -> Lane:
        """Warm slots take Python functions on one task; all else is a job."""
        return Lane.JOB if self.function is None or self.resources.job_lane else Lane.WARM

    @property
    def seed(self) -> int:
        """A reproducible 63-bit seed, different for every chore."""
        return int(self.key[:16], 16) >> 1

    def as_dict(self) -> dict[str, Any]:
        """JSON form for the journal; defaults are left out."""
        data: dict[str, Any] = {
            "id": self.id,
            "key": self.key,
            "name": self.name,
            "payload": self.payload.as_list(),
            "inputs": list(self.inputs),
            "function": self.function,
            "resources": self.resources.as_dict(),
            "nice": self.nice,
            "parent": self.parent,
            "unfit": self.unfit.as_dict() if self.unfit else None,
            "policy": self.policy.as_dict(),
        }
        return {k: v for k, v in data.items() if v or k == "payload"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Chore:
        """Inverse of :meth:`as_dict`."""
        return cls(
            id=data["id"],
            key=data["key"],
            name=data["name"],
            payload=Location.from_list(data["payload"]),
            inputs=tuple(data.get("inputs", ())),
            function=data.get("function"),
            resources=Resources.from_dict(data.get("resources", {})),
            nice=data.get("nice", 0),
            parent=data.get("parent"),
            unfit=Failure.from_dict(data["unfit"]) if data.get("unfit") else None,
            policy=Policy.from_dict(data.get("policy", {})),
        )


def salt_of(seed: int) -> int:
    """What a run's own seed changes in the seeds of its chores, by exclusive or; 0 changes nothing."""
    return int(content_key("seed", str(seed))[:16], 16) >> 1 if seed else 0


def named_key(key: str) -> str:
    """Identity of a chore that was given a key of its own."""
    return content_key("named", key)


def content_key(*parts: str | bytes) -> str:
    """SHA-256 over length-prefixed parts, in hex."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()
