"""Give every configuration a little, and more only to the best of them.

When to use it: many configurations, and a cheap evaluation (few steps, a coarse grid, a small
sample) says something about the expensive one. A configuration is evaluated with ``min_resource``;
the best one of every ``eta`` goes to the next *rung*, with ``eta`` times as much, up to
``max_resource``. If cheap and expensive evaluations rank differently, use ``bayes`` or a plain
random search instead.

By default promotion is asynchronous: ASHA, Algorithm 2 of Li et al., "A system for massively
parallel hyperparameter tuning", arXiv:1810.05934. A configuration is promoted as soon as it is
among the best 1/``eta`` of what has ended on its rung, so no core waits for a rung; the price is
that some are promoted which, had one waited, would not have been. ``asynchronous=False`` waits:
Algorithm 1 there (Jamieson & Talwalkar, arXiv:1502.07943).
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Any

from matforge.strategies.base import AskTell, Goal, Space, check_space, draw, spread

from matforge import Event, Failure, OutputReference, UsageError

Trial = tuple[int, int]
"""Number of the configuration, and of the rung."""
Found = tuple[float, int]
"""Loss, and number of the configuration."""


class SuccessiveHalving(AskTell):
    """ASHA, or successive halving rung by rung.

    The chore is called with the configuration and the resource: ``chore(**configuration,
    resource=9)``, if a configuration is a dict, else ``chore(configuration, resource=9)``.

    Parameters
    ----------
    chore, parallel, seed, objective, conclude
        See :class:`~matforge.strategies.base.AskTell`.
    space : mapping or callable
        Where configurations are drawn: name -> ``(low, high)`` or a list of choices, or a function
        of a ``random.Random`` that returns a configuration.
    total : int
        Resource to spend in all. Each rung gets about the same share of it; with ``asynchronous``
        new configurations are drawn until it is spent, without it as many as it allows.
    min_resource, max_resource : int
        On the lowest rung, and at most (the paper's r and R).
    eta : int
        One of so many is promoted, with so many times the resource.
    resource : str
        Name of the argument that gets the amount.
    carry : str, optional
        Name of an argument that gets a reference to the same configuration's result on the rung
        below (None on the lowest), so that it need not begin anew.
    asynchronous : bool
        Promote at once, or when a rung is complete.
    goal : str
        ``"min"`` or ``"max"``.

    Raises
    ------
    UsageError
        If a parameter is missing or cannot work.
    """

    constants = AskTell.constants | {
        "space", "total", "eta", "resource", "carry", "asynchronous", "goal", "resources", "sizes",
    }  # fmt: skip

    def __init__(
        self,
        chore: str = "",
        *,
        space: Space | Callable[[random.Random], Any] | None = None,
        total: int = 324,
        min_resource: int = 1,
        max_resource: int = 27,
        eta: int = 3,
        resource: str = "resource",
        carry: str | None = None,
        asynchronous: bool = True,
        goal: Goal = "min",
        parallel: int = 4,
        seed: int = 0,
        objective: str | None = None,
        conclude: str | None = None,
    ) -> None:
        for label, value, least in (
            ("total", total, 1), ("min_resource", min_resource, 1), ("eta", eta, 2),
            ("max_resource", max_resource, 1),
        ):  # fmt: skip
            self.check_whole(label, value, least)
        if max_resource < min_resource:
            raise UsageError(
                f"SuccessiveHalving: max_resource ({max_resource}) must be at least min_resource "
                f"({min_resource})."
            )
        self.check_choice("goal", goal, ("min", "max"))
        self.resources = [min_resource]
        while self.resources[-1] * eta <= max_resource:
            self.resources.append(self.resources[-1] * eta)
        rungs = len(self.resources)
        if total < rungs * self.resources[-1]:
            raise UsageError(
                f"SuccessiveHalving: a total of {total} is too small for one configuration of each "
                f"{eta ** (rungs - 1)} to get {self.resources[-1]}; it must be at least "
                f"{rungs * self.resources[-1]}."
            )
        self.check_whole("parallel", parallel, 1)
        if total < parallel * min_resource:
            raise UsageError(
                f"SuccessiveHalving: a total of {total} is too small for {parallel} calls in parallel."
            )
        super().__init__(
            chore,
            budget=total // min_resource,
            parallel=parallel,
            seed=seed,
            objective=objective,
            conclude=conclude,
        )
        if not callable(space):
            check_space("SuccessiveHalving", space)
        self.space: Any = space
        self.total, self.eta, self.resource, self.carry = total, eta, resource, carry
        self.asynchronous, self.goal = asynchronous, goal
        self.sizes = [total // (min_resource * rungs) // eta**k for k in range(rungs)]
        """Configurations on each rung, if promotion waits."""
        self.drawn = self.spent = 0
        self.waiting: list[list[Found]] = [[] for _ in range(rungs)]
        """By rung, what has ended there and was not promoted; sorted, so each step is a bisection."""
        self.promoted: list[list[Found]] = [[] for _ in range(rungs)]
        """By rung, sorted, what was."""
        self.origins: dict[int, str] = {}
        """Configuration -> id of its last chore, if results are carried on."""

    # -- ask and tell

    def ask(self, rng: random.Random) -> Trial | None:
        """Promote where that is possible, from the top; else draw another configuration."""
        left = self.total - self.spent
        for k in range(len(self.resources) - 2, -1, -1):
            if self.resources[k + 1] <= left and self._promotable(k):
                best = self.waiting[k].pop(0)
                insort(self.promoted[k], best)
                return self._take(best[1], k + 1)
        if self.resources[0] > left or (not self.asynchronous and self.drawn == self.sizes[0]):
            return None
        self.drawn += 1
        return self._take(self.drawn - 1, 0)

    def _take(self, number: int, k: int) -> Trial:
        self.spent += self.resources[k]
        return number, k

    def _promotable(self, k: int) -> bool:
        """Whether the best that waits on rung ``k`` is good enough among all that ended there."""
        waiting, ended = self.waiting[k], self._ended(k)
        if not waiting or waiting[0][0] == math.inf:
            return False
        if self.asynchronous:
            quota = ended // self.eta
        else:
            quota = self.sizes[k + 1] if ended >= self.sizes[k] else 0
        return bisect_left(self.promoted[k], waiting[0]) < quota

    def _ended(self, k: int) -> int:
        return len(self.waiting[k]) + len(self.promoted[k])

    def tell(self, trial: Trial, value: float) -> None:
        """Take in the objective."""
        number, k = trial
        insort(self.waiting[k], (value if self.goal == "min" else -value, number))

    def tell_failure(self, trial: Trial, failure: Failure | None) -> None:
        """The worst there is: so a rung becomes complete, and a quota is that of all who tried."""
        insort(self.waiting[trial[1]], (math.inf, trial[0]))

    # -- chores

    def configuration(self, number: int) -> Any:
        """The configuration of that number; drawn again, so that none has to be kept."""
        return draw(self.space, self.rng("configuration", number))

    def arguments(self, trial: Trial) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The configuration, the resource, and what the rung below left."""
        number, k = trial
        args, kwargs = spread(self.configuration(number))
        kwargs = {**kwargs, self.resource: self.resources[k]}
        if self.carry is not None:
            origin = self.origins.get(number)
            kwargs[self.carry] = None if origin is None else OutputReference(origin)
        return args, kwargs

    def key(self, trial: Trial, number: int) -> str:
        """The configuration and the rung, whenever that comes about."""
        return f"{trial[0]}/{trial[1]}"

    def observe(self, event: Event, trial: Trial) -> None:
        """Remember which chore a promoted configuration can go on from."""
        if self.carry is not None and event.ok:
            self.origins[trial[0]] = event.chore.id
        super().observe(event, trial)

    # -- what was found

    @property
    def best(self) -> dict[str, Any] | None:
        """The best on the highest rung that anything succeeded on; None before that."""
        for k in range(len(self.resources) - 1, -1, -1):
            ended = [*self.waiting[k][:1], *self.promoted[k][:1]]
            if ended and min(ended)[0] < math.inf:
                loss, number = min(ended)
                return {
                    "configuration": self.configuration(number),
                    "resource": self.resources[k],
                    "value": loss if self.goal == "min" else -loss,
                }
        return None

    def summary(self) -> Any:
        """The best configuration, and how many reached each rung."""
        return {
            "best": self.best,
            "rungs": {amount: self._ended(k) for k, amount in enumerate(self.resources)},
        }
