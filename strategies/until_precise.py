"""Repeat a random computation until its mean is known well enough, and not once more.

When to use it: a chore is a Monte Carlo estimate, a simulation with a random start, or a timing,
and what is wanted is its mean to a given standard error, for one setting or for several *groups*
whose noise differs. Groups that are noisy get more replicates, those that are not get few.

Sequential sampling to a fixed precision: Chow & Robbins, Ann. Math. Statist. 36 (1965) 457. A
group is precise when, for the first n of its replicates,

    sqrt((s_n^2 + tol^2 / n) / n) <= tol,

with s_n^2 their variance and tol the tolerance. The small term (their 1/n, in units of the
tolerance) keeps an n that by chance has a tiny s_n from ending it all. Still, who stops when the
estimate looks good stops early a little too often: an interval of two standard errors covers a
bit less than it says when n is small; raise ``least`` where that matters.

Replicates count in the order in which they were numbered, not in which they ended. So the answer
is the same on any number of workers, and quick replicates are not preferred: where the value and
the time it takes are related, a mean over *whatever has ended* is wrong.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from matforge.strategies.base import AskTell, Moments, hopeless, spread, welford

from matforge import Failure, UsageError

Trial = tuple[int, int]
"""Index of the group, and number of the replicate."""


class UntilPrecise(AskTell):
    """Replicates until the standard error of each group's mean is below a tolerance.

    Parameters
    ----------
    chore, budget, parallel, seed, objective, conclude
        See :class:`~matforge.strategies.base.AskTell`. When the budget is spent, what is not
        precise stays so: see ``precise`` in :meth:`summary`.
    groups : mapping or sequence
        Arguments of the chore by name of the group; a sequence is named by index. A dict are
        keyword arguments, a tuple positional ones, anything else is the only one. Default: one
        group without arguments.
    tolerance : float
        Standard error to reach.
    relative : bool
        Whether the tolerance is a fraction of the absolute mean.
    least : int
        Replicates that each group gets in any case.
    replicate : str, optional
        Name of an argument that gets the number of the replicate. Without it a chore takes its
        random numbers from its own seed, which differs for each replicate.

    Raises
    ------
    UsageError
        If a parameter is missing or cannot work.
    """

    constants = AskTell.constants | {"names", "settings", "tolerance", "relative", "least", "replicate"}

    def __init__(
        self,
        chore: str = "",
        *,
        groups: Mapping[str, Any] | Sequence[Any] = ((),),
        tolerance: float | None = None,
        relative: bool = False,
        least: int = 8,
        replicate: str | None = None,
        budget: int = 1000,
        parallel: int = 4,
        seed: int = 0,
        objective: str | None = None,
        conclude: str | None = None,
    ) -> None:
        super().__init__(
            chore, budget=budget, parallel=parallel, seed=seed, objective=objective, conclude=conclude
        )
        by_name = dict(groups) if isinstance(groups, Mapping) else dict(enumerate(groups))
        if not by_name:
            raise UsageError("UntilPrecise needs at least one group: groups={name: arguments}.")
        if not isinstance(tolerance, int | float) or not 0 < tolerance < math.inf:
            raise UsageError(
                "UntilPrecise needs the standard error to reach, tolerance=..., a number above 0, "
                f"not {tolerance!r}."
            )
        self.check_whole("least", least, 2)
        if budget < least * len(by_name):
            raise UsageError(
                f"UntilPrecise: a budget of {budget} is too small for {len(by_name)} groups of at least "
                f"{least} replicates."
            )
        self.names, self.settings = list(by_name), list(by_name.values())
        self.tolerance, self.relative, self.least = float(tolerance), relative, least
        self.replicate = replicate
        count = len(by_name)
        self.moments: list[Moments] = [(0, 0.0, 0.0)] * count
        """Of each group, over the replicates that count."""
        self.numbered = [0] * count
        """Replicates asked for."""
        self.counted = [0] * count
        """Replicates up to which all have ended, and were counted."""
        self.ahead: list[dict[int, float | None]] = [{} for _ in range(count)]
        """What has ended before its turn; None for a failure."""
        self.failures = [0] * count

    # -- ask and tell

    def ask(self, rng: random.Random) -> Trial | None:
        """Another replicate of the group that is furthest from its goal; none if enough are in flight."""
        missing = [self._missing(group) for group in range(len(self.settings))]
        group = max(range(len(missing)), key=missing.__getitem__)
        if missing[group] <= 0:
            return None
        self.numbered[group] += 1
        return group, self.numbered[group] - 1

    def _missing(self, group: int) -> float:
        """How much a group lacks beyond what was asked for, as a fraction of what it seems to need."""
        n, mean, deviations = self.moments[group]
        if self._closed(group):
            return 0.0
        asked = n + self.numbered[group] - self.counted[group]  # failures are made up for
        if asked < self.least:
            return 2.0 - asked / self.least  # before all who have that
        if n < 2:
            return 0.0
        tolerance = self._tolerance(mean)
        need = max(deviations / (n - 1) / tolerance**2 if tolerance else math.inf, n + 1.0)
        return 1.0 if need == math.inf else (need - asked) / need

    def _tolerance(self, mean: float) -> float:
        return self.tolerance * abs(mean) if self.relative else self.tolerance

    def _closed(self, group: int) -> bool:
        return self.is_precise(group) or hopeless(self.failures[group], self.moments[group][0])

    def is_precise(self, group: int) -> bool:
        """Whether the rule holds for the replicates that count."""
        n, mean, deviations = self.moments[group]
        if n < self.least:
            return False
        tolerance = self._tolerance(mean)
        return math.sqrt((deviations / (n - 1) + tolerance**2 / n) / n) <= tolerance

    def tell(self, trial: Trial, value: float) -> None:
        """Take in a replicate."""
        self._end(trial, value)

    def tell_failure(self, trial: Trial, failure: Failure | None) -> None:
        """The replicate is left out; a group that fails more often than not gets no more."""
        self._end(trial, None)

    def _end(self, trial: Trial, value: float | None) -> None:
        """Count whatever has its turn by now; what is beyond the end of a group is dropped."""
        group, number = trial
        ahead = self.ahead[group]
        ahead[number] = value
        while self.counted[group] in ahead and not self._closed(group):
            found = ahead.pop(self.counted[group])
            self.counted[group] += 1
            if found is None:
                self.failures[group] += 1
            else:
                self.moments[group] = welford(self.moments[group], found)
        if self._closed(group):
            ahead.clear()

    # -- chores

    def arguments(self, trial: Trial) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The group's, and the number of the replicate."""
        args, kwargs = spread(self.settings[trial[0]])
        return args, kwargs if self.replicate is None else {**kwargs, self.replicate: trial[1]}

    def key(self, trial: Trial, number: int) -> str:
        """The group and the replicate."""
        return f"{trial[0]}/{trial[1]}"

    # -- what was found

    def summary(self) -> dict[Any, dict[str, Any]]:
        """Of each group: number of replicates, mean, its standard error, and whether that is precise.

        The mean is None without replicates, the standard error with fewer than two.
        """
        out = {}
        for group, name in enumerate(self.names):
            n, mean, deviations = self.moments[group]
            out[name] = {
                "n": n,
                "mean": mean if n else None,
                "standard_error": math.sqrt(deviations / (n - 1) / n) if n > 1 else None,
                "failures": self.failures[group],
                "precise": self.is_precise(group),
            }
        return out
