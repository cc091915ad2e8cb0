"""What a run stores of its author's code, so that resuming needs no script: functions and strategy.

They go into ``out/registry`` as pickles by value, and their description into the journal.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matforge.chore import Call, ChoreRegistry, Registration, content_key, nearest, slug
from matforge.engine.store import OUT_NAME, RunStore
from matforge.model import MatForgeError, Resources, UsageError
from matforge.policy import DEFAULT_POLICY, Policy
from matforge.sources import sources_of
from matforge.steering import Entry
from matforge.strategy import FutureProcessingStrategy, thaw_state

STRATEGY_FILE = "strategy"


@dataclass(frozen=True, slots=True)
class Defaults:
    """What chores of a run get that do not say otherwise."""

    policy: Policy = DEFAULT_POLICY
    memory: int | None = None

    def call(self, call: Call) -> Call:
        """A call with the defaults filled in."""
        if self == NO_DEFAULTS:
            return call
        return replace(call, policy=call.policy.over(self.policy), resources=self.resources(call.resources))

    def entry(self, entry: Entry) -> Entry:
        """A function with the defaults filled in, for what is spawned."""
        return replace(
            entry, policy=entry.policy.over(self.policy), resources=self.resources(entry.resources)
        )

    def resources(self, resources: Resources) -> Resources:
        """Resources with the default memory."""
        if self.memory is None or resources.memory is not None:
            return resources
        return replace(resources, memory=self.memory)


NO_DEFAULTS = Defaults()


def _file_name(name: str, data: bytes) -> str:
    return f"{slug(name)}-{content_key(data)[:10]}"


def check_functions(registry: ChoreRegistry) -> None:
    """Find out before anything is made whether a function cannot be pickled."""
    for name in registry:
        _pickle_function(registry.get(name))


def check_names(strategy: FutureProcessingStrategy, registry: ChoreRegistry) -> None:
    """Find out before anything is made whether a strategy will spawn what nobody has registered."""
    for name in strategy.chore_names():
        if name not in registry:
            raise UsageError(
                f"The strategy {type(strategy).__name__} calls {name!r}, which is not a registered chore"
                f"{nearest(name, registry)}."
            )


def put_functions(registry: ChoreRegistry, defaults: Defaults, store: RunStore) -> dict[str, Entry]:
    """Write the functions of a registry into the run."""
    functions: dict[str, Entry] = {}
    for name in registry:
        entry = registry.get(name)
        data = _pickle_function(entry)
        file = store.put_function(_file_name(name, data), data)
        functions[name] = defaults.entry(Entry.of(entry, file, data))
    return functions


def described(functions: Mapping[str, Entry]) -> dict[str, Any]:
    """Functions as the journal holds them."""
    return {
        name: [
            entry.file,
            entry.resources.as_dict(),
            entry.id_name,
            entry.policy.as_dict(),
            *([entry.fingerprint, entry.sources] if entry.fingerprint else ()),
        ]
        for name, entry in functions.items()
    }


def _pickle_function(entry: Registration) -> bytes:
    import cloudpickle

    try:
        data: bytes = cloudpickle.dumps(entry.func)
    except Exception as error:  # pickling runs arbitrary code
        raise UsageError(f"Chore {entry.qualname!r} cannot be pickled: {error}") from error
    return data


def pickle_strategy(strategy: FutureProcessingStrategy) -> bytes:
    import cloudpickle

    module = sys.modules.get(type(strategy).__module__)
    by_value = module is not None and getattr(module, "__matforge_file__", None) is not None
    if by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        data: bytes = cloudpickle.dumps(strategy)
    except Exception as error:  # pickling runs arbitrary code
        raise UsageError(f"The strategy {type(strategy).__name__} cannot be pickled: {error}") from error
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)
    return data


def stored_functions(records: Sequence[Mapping[str, Any]]) -> dict[str, Entry]:
    """The functions of a run, the latest of each name."""
    functions: dict[str, Entry] = {}
    for record in records:
        if record["e"] in ("run", "functions"):
            for name, (file_name, resources, id_name, policy, *more) in record["functions"].items():
                wants, rules = Resources.from_dict(resources), Policy.from_dict(policy)
                functions[name] = Entry(file_name, wants, id_name, rules, *more)
    return functions


def as_it_is_now(run_dir: Path, entry: Entry) -> Entry:
    """A stored function; without its fingerprint if a module that it needs was changed meanwhile, because
    what it returns from now on is not what the fingerprint stands for."""
    if not entry.sources:
        return entry
    try:
        same = sources_of((run_dir / OUT_NAME / "registry" / entry.file).read_bytes()) == entry.sources
    except OSError:
        same = False  # whoever wants to call it is told
    return entry if same else replace(entry, fingerprint="", sources="")


def load_strategy(run_dir: Path, state: str | None) -> FutureProcessingStrategy:
    """The strategy that the run began with, in the state that was journalled last."""
    path = run_dir / OUT_NAME / "registry" / STRATEGY_FILE
    try:
        with path.open("rb") as file:
            strategy: FutureProcessingStrategy = pickle.load(file)
        thaw_state(strategy, state)
    except Exception as error:  # unpickling runs arbitrary code
        raise MatForgeError(
            f"The strategy of the run cannot be loaded from {path}: {type(error).__name__}: {error}"
        ) from error
    return strategy
