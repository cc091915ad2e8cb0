"""What the tests of strategies share: functions with a known optimum, played on the virtual clock."""

from __future__ import annotations

import base64
import io
import math
import pickle
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matforge.strategies.base import AskTell, Space, draw

from matforge import FutureProcessingStrategy
from matforge.engine.locations import read
from matforge.executors.protocol import Task
from matforge.executors.simulated import Outcome, SimulatedExecutor
from matforge.model import Failure, FailureKind, Location, RunState
from matforge.session import Session
from tests.harness import killed_after, outcome, play, records, resume

BOOM = Failure(FailureKind.EXCEPTION, "boom")
BRANIN_SPACE = {"x": (-5.0, 10.0), "y": (0.0, 15.0)}
BRANIN_MINIMUM = 0.397887


def branin(x: float, y: float) -> float:
    """The Branin function; three minima of 0.397887."""
    a = y - 5.1 / (4 * math.pi**2) * x * x + 5 / math.pi * x - 6
    return a * a + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


class RandomSearch(AskTell):
    """What every strategy has to beat."""

    def __init__(self, chore: str, space: Space, **parameters: Any) -> None:
        super().__init__(chore, **parameters)
        self.space = space
        self.best, self.point = math.inf, None

    def ask(self, rng: random.Random) -> Any:
        """A point of the space."""
        return draw(self.space, rng)

    def tell(self, trial: Any, value: float) -> None:
        """Keep the best."""
        if value < self.best:
            self.best, self.point = value, trial


class Plain(pickle.Unpickler):
    """Reads a state that holds no class: one of a user's file could not be found after a resume."""

    def find_class(self, module: str, name: str) -> Any:
        raise AssertionError(f"the state holds a {module}.{name}")


def state_of(session: Session) -> tuple[Any, int]:
    """The strategy's last state, and its length in the journal."""
    text = session.engine.decisions.strategy_state
    assert text is not None
    return Plain(io.BytesIO(base64.b64decode(text))).load(), len(text)


class _Reader(pickle.Unpickler):
    """Arguments, with a word in place of each reference."""

    def persistent_load(self, pid: Any) -> Any:
        return "<a result>"


class Objective:
    """A function as a behaviour of the simulated executor.

    Parameters
    ----------
    function : callable
        Called with a generator seeded by the chore's own seed and the chore's arguments; an
        :class:`Outcome` or a failure is taken as it is.
    duration : callable
        Of the arguments' keywords; virtual seconds.
    """

    def __init__(
        self, function: Callable[..., Any], duration: Callable[..., float] = lambda *a, **k: 1.0
    ) -> None:
        self.function, self.duration = function, duration
        self.run_dir: Path | None = None
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, task: Task) -> Outcome:
        payload = task.payload
        if isinstance(payload, Location):
            assert self.run_dir is not None
            payload = read(self.run_dir, payload)
        args, kwargs = _Reader(io.BytesIO(payload)).load()
        self.calls.append((args, kwargs))
        value = self.function(random.Random(task.seed), *args, **kwargs)
        seconds = self.duration(*args, **kwargs)
        if isinstance(value, Outcome):
            return value
        if isinstance(value, Failure):
            return Outcome(seconds, failure=value)
        return Outcome(seconds, value)


def at_once(strategy: FutureProcessingStrategy) -> FutureProcessingStrategy:
    """The same strategy, but asked in the manager's thread, as the cheap built-in ones are.

    The virtual clock does not wait for another thread, so chores would end in an order that depends
    on how fast this machine happens to be.
    """
    kind = type(strategy)
    strategy.__class__ = type(kind.__name__, (kind,), {"inline": True})
    return strategy


def played(
    folder: Path,
    function: Callable[..., Any],
    strategy: FutureProcessingStrategy,
    *,
    workers: int = 4,
    names: Sequence[str] = ("f",),
    duration: Callable[..., float] = lambda *a, **k: 1.0,
    threaded: bool = False,
) -> tuple[Session, SimulatedExecutor, Objective]:
    """A run in which the strategy makes all the chores, played to its end."""
    objective = Objective(function, duration)
    session, executor = play(
        folder, [], objective, strategy if threaded else at_once(strategy),
        names=names, workers=workers, layout="packed",
    )  # fmt: skip
    session.wait(60)
    return session, executor, objective


def solved(
    folder: Path, function: Callable[..., Any], strategy: FutureProcessingStrategy, **options: Any
) -> Objective:
    """Play a run that must succeed; what was called."""
    session, _, objective = played(folder, function, strategy, **options)
    assert session.engine.decisions.strategy_errors == []
    assert session.manager.status.state is RunState.COMPLETED
    return objective


def error_of(folder: Path, function: Callable[..., Any], strategy: FutureProcessingStrategy) -> str:
    """The one thing that the strategy complained of."""
    session, _, _ = played(folder, function, strategy)
    assert session.manager.status.state is RunState.FAILED
    return session.engine.decisions.strategy_errors[0]


def continues_exactly(
    folder: Path,
    function: Callable[..., Any],
    make: Callable[[], FutureProcessingStrategy],
    *,
    every: int = 1,
) -> int:
    """Assert that a run killed after any of its records decides as one that was never disturbed.

    Returns
    -------
    int
        Number of chores.
    """
    session, _, _ = played(folder, function, make())
    assert session.engine.decisions.strategy_errors == []
    expected, state = outcome(session), session.engine.decisions.strategy_state
    written = records(session.run_dir)
    first = next(n for n, r in enumerate(written) if r["e"] == "submitted") + 1
    for count in range(first, len(written), every):
        objective = Objective(function)
        objective.run_dir = killed_after(session.run_dir, count, folder / f"killed-{count}")
        again, _ = resume(objective.run_dir, objective, workers=4)
        again.wait(60)
        assert outcome(again) == expected, f"killed after record {count}"
        assert again.engine.decisions.strategy_state == state, f"killed after record {count}"
    return len(expected)
