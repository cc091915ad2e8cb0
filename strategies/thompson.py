"""Spend most calls on the best of a finite set of arms, while finding out which that is.

When to use it: a handful to some hundreds of alternatives (algorithms, settings, regions), each
call of one gives a noisy reward, and calls on poor alternatives are wasted. If the noise is small
enough that one call decides, just call each once; if alternatives lie on a scale, use ``bayes``.

Thompson sampling (Thompson, Biometrika 25 (1933) 285; Algorithm 1 of Agrawal & Goyal,
arXiv:1111.1797): draw from each arm's posterior and pull the arm with the best draw. As draws
differ, many pulls may be in flight at once without waiting for each other (asynchronous Thompson
sampling, Kandasamy et al., arXiv:1705.09236).

* ``posterior="beta"``: rewards are 0 or 1, or between: success rates, with a uniform prior. A
  reward r counts as r successes and 1 - r failures.
* ``posterior="normal"``: any real reward, mean and variance of each arm unknown, with a prior that
  is uniform in mean and standard deviation (alpha = -1/2 in Honda & Takemura, arXiv:1311.1894, who
  show that Jeffreys' prior explores too little). After n rewards with mean m and S for the sum of
  the squares of their deviations, the arm's mean is m + t sqrt(S / (n (n - 2))) with t of
  Student's distribution with n - 2 degrees of freedom; so each arm is first pulled three times.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, Literal

from matforge.strategies.base import AskTell, Goal, Moments, hopeless, spread, welford

from matforge import Failure, UsageError

Trial = tuple[int, int]
"""Index of the arm, and how many pulls it had before."""
FIRST_PULLS = {"beta": 0, "normal": 3}


class Thompson(AskTell):
    """Thompson sampling.

    Parameters
    ----------
    chore, budget, parallel, seed, objective, conclude
        See :class:`~matforge.strategies.base.AskTell`.
    arms : sequence
        Arguments of the chore, one entry an arm: a dict are keyword arguments, a tuple positional
        ones, anything else is the only one.
    posterior : str
        ``"beta"`` or ``"normal"``.
    goal : str
        ``"max"`` or ``"min"``.

    Raises
    ------
    UsageError
        If a parameter is missing or cannot work.
    """

    constants = AskTell.constants | {"arms", "posterior", "goal"}

    def __init__(
        self,
        chore: str = "",
        *,
        arms: Sequence[Any] = (),
        posterior: Literal["beta", "normal"] = "beta",
        goal: Goal = "max",
        budget: int = 100,
        parallel: int = 4,
        seed: int = 0,
        objective: str | None = None,
        conclude: str | None = None,
    ) -> None:
        super().__init__(
            chore, budget=budget, parallel=parallel, seed=seed, objective=objective, conclude=conclude
        )
        self.arms = list(arms)
        if not self.arms:
            raise UsageError("Thompson needs at least one arm: arms=[...], the arguments of each.")
        self.check_choice("posterior", posterior, tuple(FIRST_PULLS))
        self.check_choice("goal", goal, ("min", "max"))
        first = FIRST_PULLS[posterior] * len(self.arms)
        if budget < first:
            raise UsageError(
                f"Thompson: a budget of {budget} is too small for {len(self.arms)} arms, each of which is "
                f"first pulled {FIRST_PULLS[posterior]} times; it must be at least {first}."
            )
        self.posterior, self.goal = posterior, goal
        count = len(self.arms)
        self.pulls = [0] * count
        """Calls made of each arm, those in flight included."""
        self.rewards: list[Moments] = [(0, 0.0, 0.0)] * count
        """Of each arm."""
        self.failures = [0] * count

    def ask(self, rng: random.Random) -> Trial | None:
        """Pull the arm with the best draw."""
        open_arms = [i for i, (n, _, _) in enumerate(self.rewards) if not hopeless(self.failures[i], n)]
        if not open_arms:
            return None
        # of arms that draw alike (those without a posterior) the one with the fewest pulls
        draws = {i: (self._draw(i, rng), -self.pulls[i]) for i in open_arms}
        arm = max(open_arms, key=lambda i: draws[i])
        self.pulls[arm] += 1
        return arm, self.pulls[arm] - 1

    def _draw(self, arm: int, rng: random.Random) -> float:
        """A draw from the posterior of an arm's mean; its sign is such that more is better."""
        n, mean, deviations = self.rewards[arm]
        sign = 1.0 if self.goal == "max" else -1.0
        if self.posterior == "beta":
            return sign * rng.betavariate(1.0 + n * mean, 1.0 + n * (1.0 - mean))
        if n < FIRST_PULLS["normal"]:  # no posterior yet: it goes first, or waits for those in flight
            missing = FIRST_PULLS["normal"] + self.failures[arm] - self.pulls[arm]
            return math.inf if missing > 0 else -math.inf
        # a Student variable is a normal one over the root of a chi-square (a gamma) one per degree
        freedom = n - 2
        student = rng.gauss(0.0, 1.0) / math.sqrt(rng.gammavariate(freedom / 2, 2.0) / freedom)
        return sign * mean + student * math.sqrt(deviations / (n * freedom))

    def tell(self, trial: Trial, value: float) -> None:
        """Take in a reward."""
        if self.posterior == "beta" and not 0.0 <= value <= 1.0:
            raise UsageError(
                f"Thompson with posterior='beta' needs rewards between 0 and 1, but arm {trial[0]} gave "
                f"{value:g}; use posterior='normal' for others."
            )
        self.rewards[trial[0]] = welford(self.rewards[trial[0]], value)

    def tell_failure(self, trial: Trial, failure: Failure | None) -> None:
        """Says nothing of the reward; an arm that fails more often than not is pulled no more."""
        self.failures[trial[0]] += 1

    def arguments(self, trial: Trial) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arm's."""
        return spread(self.arms[trial[0]])

    def key(self, trial: Trial, number: int) -> str:
        """The arm and the pull: the k-th pull of an arm is the same chore whenever it comes."""
        return f"{trial[0]}/{trial[1]}"

    @property
    def best(self) -> Any:
        """The arm with the most rewards; None before there was any.

        That, rather than the best mean: an arm that was pulled twice may have been lucky.
        """
        told = [i for i, (n, _, _) in enumerate(self.rewards) if n]
        if not told:
            return None
        sign = 1.0 if self.goal == "max" else -1.0
        return self.arms[max(told, key=lambda i: (self.rewards[i][0], sign * self.rewards[i][1]))]

    def summary(self) -> list[dict[str, Any]]:
        """Arm, number and mean of the rewards, and failures, of every arm."""
        return [
            {"arm": arm, "n": n, "mean": mean if n else None, "failures": failed}
            for arm, (n, mean, _), failed in zip(self.arms, self.rewards, self.failures, strict=True)
        ]
