"""What the ask/tell strategies share, and a base that makes a new one a dozen lines.

When to use it: what is to be evaluated next depends on what was found so far, one function is
evaluated over and over, and several evaluations run at once. Say what to try in ``ask`` and take
in what came of it in ``tell``::

    class Climb(AskTell):
        best = (math.inf, 0.0)

        def ask(self, rng):
            return rng.gauss(self.best[1], 0.3)

        def tell(self, trial, value):
            self.best = min(self.best, (value, trial))

    pipe.submit(processing_strategy=Climb(chore="energy", budget=200, parallel=8))

The ask/tell interface as such is described by Collette et al., "Object-oriented programming of
optimizers", in *Multidisciplinary Design Optimization in Computational Mechanics* (2010), ch. 14.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from matforge import (
    ChoreSpec,
    ChoreState,
    Decision,
    Event,
    Failure,
    FutureProcessingStrategy,
    MatForgeError,
    Spawn,
    UsageError,
    View,
)

Goal = Literal["min", "max"]
Space = Mapping[str, Sequence[Any]]
"""Name of an argument -> ``(low, high)`` of an interval, or a list of choices."""

GIVE_UP_AFTER = 3


class AskTell(FutureProcessingStrategy):
    """Keeps ``parallel`` calls of one chore in flight until ``budget`` were made.

    Override :meth:`ask` and :meth:`tell`. Whatever attributes they change is saved with every
    decision, so a run that was killed goes on as if nothing had happened.

    Parameters
    ----------
    chore : str
        Name of the registered function to call.
    budget : int
        Calls in all; failed ones count, because they cost as much.
    parallel : int
        Calls in flight at once: the number of workers, or a little more.
    seed : int
        Of all random numbers: the n-th :meth:`ask` always gets the same ones, and so does a chore,
        through its own seed, if its key is the same.
    objective : str, optional
        What of a call's outcome is told: this entry of its report, or else of its result.
        Default: the whole result.
    conclude : str, optional
        Name of a registered function that is called once, with :meth:`summary`, when all is told.

    Raises
    ------
    UsageError
        If a parameter is missing or cannot work.
    """

    numeric: ClassVar[bool] = True
    """Whether :meth:`tell` takes finite numbers only: anything that is no number is then an error,
    and NaN or infinity a failure. False: it takes whatever the chore returned."""
    constants: ClassVar[frozenset[str]] = frozenset(
        ("chore", "budget", "parallel", "seed", "objective", "conclude", "manager")
    )
    """Attributes that never change, and so are not saved with every decision. A subclass adds
    its own; those need not be picklable by reference (a lambda will do)."""

    def __init__(
        self,
        chore: str = "",
        *,
        budget: int = 100,
        parallel: int = 4,
        seed: int = 0,
        objective: str | None = None,
        conclude: str | None = None,
    ) -> None:
        name = type(self).__name__
        if not isinstance(chore, str) or not chore:
            raise UsageError(
                f"{name} needs the name of the chore to call: make it in the script, as in "
                f"pipe.submit(processing_strategy={name}(chore='simulate')), or write a class with an "
                "__init__ that gives it, and name that with --strategy FILE.py:Class."
            )
        self.check_whole("parallel", parallel, 1)
        self.check_whole("budget", budget, 1)
        self.check_whole("seed", seed, 0)
        if budget < parallel:
            raise UsageError(f"{name}: budget ({budget}) must be at least parallel ({parallel}).")
        self.chore, self.budget, self.parallel, self.seed = chore, budget, parallel, seed
        self.objective, self.conclude = objective, conclude
        self.asked = 0
        """Calls made so far."""
        self.open: dict[str, Any] = {}
        """Trials in flight, by the key of their chore."""
        self.concluded = False

    # -- what a strategy is made of

    def ask(self, rng: random.Random) -> Any:
        """What to try next; None to wait for what is in flight, or to end if nothing is.

        By default the *trial* is the arguments of the call: a dict are keyword arguments, a tuple
        positional ones, anything else is the only one. Make it of plain types, and small: it is
        saved with the state, and a class of the script cannot be found when a run is resumed.
        """
        raise NotImplementedError

    def tell(self, trial: Any, value: Any) -> None:
        """Take in what came of a trial."""

    def tell_failure(self, trial: Any, failure: Failure | None) -> None:
        """Take in that a trial failed, was cancelled (None), or gave no finite number (None)."""

    def arguments(self, trial: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the call for a trial."""
        return spread(trial)

    def key(self, trial: Any, number: int) -> str:
        """Identity of a trial; from it the chore has its seed.

        Default: the how-manieth it is. Where a trial itself says which one it is (an arm and the
        number of the pull, say), return that: then it is the same chore with the same result
        whatever the order in which others ended.
        """
        return str(number)

    def summary(self) -> Any:
        """What :attr:`conclude` is called with."""
        return None

    # -- the machinery

    def chore_names(self) -> Iterable[str]:
        """The chore, and what concludes: a name that is not registered is told before work starts."""
        return (self.chore,) if self.conclude is None else (self.chore, self.conclude)

    def on_start(self, view: View) -> Iterable[Decision]:
        """Spawn the first calls."""
        return self._refill()

    def on_event(self, view: View, event: Event) -> Iterable[Decision]:
        """Tell what came of a call of ours, and make up for it; others are none of our business."""
        if event.chore.key not in self.open:
            return ()
        self.observe(event, self.open.pop(event.chore.key))
        return self._refill()

    def observe(self, event: Event, trial: Any) -> None:
        """Pass the end of a trial on to :meth:`tell` or :meth:`tell_failure`."""
        if event.outcome is not ChoreState.COMPLETED:
            self.tell_failure(trial, event.failure)
            return
        value = self._measure(event)
        if self.numeric and not math.isfinite(value):
            self.tell_failure(trial, None)
        else:
            self.tell(trial, value)

    def get_state(self) -> dict[str, Any]:
        """All attributes but the constants, which were stored when the run began."""
        return {k: v for k, v in self.__dict__.items() if k not in self.constants}

    def set_state(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`get_state`."""
        self.__dict__.update(state)

    def rng(self, *labels: Any) -> random.Random:
        """Random numbers that depend on nothing but :attr:`seed` and the labels.

        Drawn afresh rather than kept, so that the state stays small (a ``random.Random`` is 2.5 kB
        in every journal record) and no draw depends on the order in which chores ended.
        """
        return random.Random("/".join(map(str, (self.seed, *labels))))

    def check_whole(self, label: str, value: Any, least: int) -> None:
        """Raise :class:`UsageError` unless a parameter is a whole number of at least ``least``."""
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(
                f"{type(self).__name__}: {label} must be a whole number of at least {least}, not {value!r}."
            )

    def check_choice(self, label: str, value: Any, choices: Sequence[str]) -> None:
        """Raise :class:`UsageError` unless a parameter is one of ``choices``."""
        if value not in choices:
            known = ", ".join(map(repr, choices))
            raise UsageError(f"{type(self).__name__}: {label} must be one of {known}, not {value!r}.")

    def _refill(self) -> list[Decision]:
        out: list[Decision] = []
        while len(self.open) < self.parallel and self.asked < self.budget:
            trial = self.ask(self.rng("ask", self.asked))
            if trial is None:
                break
            spec = self._spec(trial)
            assert spec.chore_key is not None
            if spec.chore_key in self.open:
                raise MatForgeError(f"{type(self).__name__}: two trials in flight have the key {spec.key!r}.")
            self.open[spec.chore_key] = trial
            self.asked += 1
            out.append(Spawn(spec))
        if not self.open and self.conclude is not None and not self.concluded:
            self.concluded = True
            out.append(
                Spawn(ChoreSpec((self.summary(),), None, self.conclude, key=f"{self._label}/conclude"))
            )
        return out

    @property
    def _label(self) -> str:
        """What the keys begin with; the seed too, so that another one gives the chores other seeds."""
        return f"{type(self).__name__}/{self.chore}/{self.seed}"

    def _spec(self, trial: Any) -> ChoreSpec:
        args, kwargs = self.arguments(trial)
        return ChoreSpec(args, kwargs, self.chore, key=f"{self._label}/{self.key(trial, self.asked)}")

    def _measure(self, event: Event) -> Any:
        """The objective of a call that completed."""
        found: Any
        if self.objective is not None and self.objective in event.report:
            found = event.report[self.objective]
        else:
            found = event.result()
            if self.objective is not None:
                found = self._entry(event, found)
        return self._number(event, found) if self.numeric else found

    def _entry(self, event: Event, result: Any) -> Any:
        try:
            return result[self.objective]
        except (KeyError, TypeError, IndexError):
            raise UsageError(
                f"{type(self).__name__}: neither the report nor the result of {event.chore.id} has an "
                f"entry {self.objective!r}."
            ) from None

    def _number(self, event: Event, found: Any) -> float:
        # by what it can do rather than by its type: NumPy's and JAX's scalars are numbers too
        if hasattr(found, "__float__") and getattr(found, "ndim", 0) == 0:
            return float(found)
        which = "" if self.objective is None else f"[{self.objective!r}]"
        raise UsageError(
            f"{type(self).__name__} needs a number, but {event.chore.id}{which} gave "
            f"{type(found).__name__}; name the entry that it shall use with objective=..."
        )


def spread(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: a dict are keywords, a tuple positions, else there is one."""
    if isinstance(given, dict):
        return (), given
    return (given if isinstance(given, tuple) else (given,)), {}


Moments = tuple[int, float, float]
"""Number and mean of some values, and the sum of the squares of their deviations from it."""


def welford(moments: Moments, value: float) -> Moments:
    """The moments with one value more (Welford, Technometrics 4 (1962) 419; no cancellation)."""
    n, mean, deviations = moments
    after = mean + (value - mean) / (n + 1)
    return n + 1, after, deviations + (value - mean) * (value - after)


def hopeless(failures: int, successes: int) -> bool:
    """Whether something fails so regularly that trying it again is a waste."""
    return failures >= GIVE_UP_AFTER and failures > successes


def check_space(owner: str, space: Any) -> None:
    """Raise :class:`UsageError` unless ``space`` is a :data:`Space`."""
    if not isinstance(space, Mapping) or not space:
        raise UsageError(f"{owner} needs a space to search: space={{'x': (0.0, 1.0), ...}}, not {space!r}.")
    for name, side in space.items():
        if isinstance(side, tuple):
            check_interval(owner, name, side)
        elif not isinstance(side, list) or not side:
            raise UsageError(f"{owner}: space[{name!r}] must be (low, high) or a list of choices.")


def check_interval(owner: str, name: str, side: Any) -> None:
    """Raise :class:`UsageError` unless ``side`` is ``(low, high)``, finite and not empty."""
    fine = isinstance(side, tuple) and len(side) == 2 and all(isinstance(x, int | float) for x in side)
    if not (fine and math.isfinite(side[0]) and math.isfinite(side[1]) and side[0] < side[1]):
        raise UsageError(f"{owner}: space[{name!r}] must be (low, high) with low < high, not {side!r}.")


def draw(space: Space | Callable[[random.Random], Any], rng: random.Random) -> Any:
    """A point of ``space``, uniformly; or what a function makes of the random numbers."""
    if callable(space):
        return space(rng)
    return {
        name: rng.choice(side) if isinstance(side, list) else rng.uniform(*side)
        for name, side in space.items()
    }
