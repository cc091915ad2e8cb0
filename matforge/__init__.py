"""MatForge: adaptive ensembles inside one allocation.

The public names are loaded when first used (PEP 562), so that ``import matforge`` stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matforge._version import __version__

if TYPE_CHECKING:
    from matforge.chore import Chore, ChoreRegistry, ChoreSpec
    from matforge.concurrent import ChoreExecutor, ChoreFailedError
    from matforge.future import RunFuture, as_completed
    from matforge.manager import FluxManager
    from matforge.model import (
        ChoreState,
        ChoreType,
        CommandResult,
        Failure,
        FailureKind,
        MatForgeError,
        OutputReference,
        Resources,
        UsageError,
        WithReport,
        seed,
    )
    from matforge.pipeline import Pipeline
    from matforge.session import InterruptedRunError, RunFailedError
    from matforge.strategy import (
        AdaptiveStrategy,
        Cancel,
        Decision,
        Event,
        FutureProcessingStrategy,
        NonAdaptiveStrategy,
        Reprioritise,
        Spawn,
        Stop,
        View,
    )

_HOMES = {
    "Chore": "chore",
    "ChoreRegistry": "chore",
    "ChoreSpec": "chore",
    "ChoreExecutor": "concurrent",
    "ChoreFailedError": "concurrent",
    "RunFuture": "future",
    "as_completed": "future",
    "FluxManager": "manager",
    "ChoreState": "model",
    "ChoreType": "model",
    "CommandResult": "model",
    "Decision": "strategy",
    "Failure": "model",
    "FailureKind": "model",
    "MatForgeError": "model",
    "OutputReference": "model",
    "Resources": "model",
    "UsageError": "model",
    "WithReport": "model",
    "seed": "model",
    "Pipeline": "pipeline",
    "InterruptedRunError": "session",
    "RunFailedError": "session",
    "AdaptiveStrategy": "strategy",
    "Cancel": "strategy",
    "Event": "strategy",
    "FutureProcessingStrategy": "strategy",
    "NonAdaptiveStrategy": "strategy",
    "Reprioritise": "strategy",
    "Spawn": "strategy",
    "Stop": "strategy",
    "View": "strategy",
}

__all__ = [
    "AdaptiveStrategy",
    "Cancel",
    "Chore",
    "ChoreExecutor",
    "ChoreFailedError",
    "ChoreRegistry",
    "ChoreSpec",
    "ChoreState",
    "ChoreType",
    "CommandResult",
    "Decision",
    "Event",
    "Failure",
    "FailureKind",
    "FluxManager",
    "FutureProcessingStrategy",
    "InterruptedRunError",
    "MatForgeError",
    "NonAdaptiveStrategy",
    "OutputReference",
    "Pipeline",
    "Reprioritise",
    "Resources",
    "RunFailedError",
    "RunFuture",
    "Spawn",
    "Stop",
    "UsageError",
    "View",
    "WithReport",
    "__version__",
    "as_completed",
    "seed",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'matforge' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"matforge.{home}"), name)


def __dir__() -> list[str]:
    return __all__
