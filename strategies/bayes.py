"""Find the optimum of an expensive function of a few real numbers in a few dozen calls.

When to use it: each call costs minutes to hours, there are one to some ten parameters, and the
function is reasonably smooth; noise is fitted. Beyond a few hundred calls the model costs more
than it saves; for many cheap calls use random search, and for a finite set ``thompson``.

A Gaussian process (scikit-learn's, Matérn 5/2 kernel with a length scale for each parameter, and
noise) is fitted to what was found; the next point is where the *expected improvement* is largest:
eq. (15) of Jones, Schonlau & Welch, J. Global Optim. 13 (1998) 455. Points that are in flight count
as if each had given what the model expects there: the *kriging believer* of Ginsbourger, Le Riche &
Carraro, "Kriging is well-suited to parallelize optimization" (2010), Algorithm 1. (Their constant
liar, Algorithm 2, with the best, the mean or the worst value so far, was clearly worse on the
functions of our tests.) The first points are a Latin hypercube.

Needs the extra ``bayes``: ``pip install 'matforge[bayes]'``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from matforge.strategies.base import AskTell, Goal, check_interval, check_space

from matforge import Failure, UsageError

Point = tuple[float, ...]
"""A point of the unit cube."""

CANDIDATES = 1000
"""Points at which the expected improvement is looked at, half of them near the best."""
STEPS = (0.02, 0.005, 0.001)
"""Distances at which it is looked at around the best candidate, one after the other."""
RESTART_EVERY = 5
"""So often the kernel's parameters are sought anew, lest they stay in a poor local optimum."""


class Bayes(AskTell):
    """Expected improvement with points in flight.

    The chore is called with a value for each name of the space: ``chore(x=0.3, y=-1.2)``.

    Parameters
    ----------
    chore, budget, parallel, seed, objective, conclude
        See :class:`~matforge.strategies.base.AskTell`.
    space : mapping
        Name of an argument -> ``(low, high)``.
    initial : int, optional
        Points of the Latin hypercube at the beginning; default: twice the number of parameters
        and two more, at least ``parallel``, at most half of the budget.
    goal : str
        ``"min"`` or ``"max"``.

    Raises
    ------
    UsageError
        If a parameter is missing or cannot work, or scikit-learn is not installed.
    """

    constants = AskTell.constants | {"space", "initial", "goal"}

    def __init__(
        self,
        chore: str = "",
        *,
        space: Mapping[str, tuple[float, float]] | None = None,
        initial: int | None = None,
        goal: Goal = "min",
        budget: int = 50,
        parallel: int = 4,
        seed: int = 0,
        objective: str | None = None,
        conclude: str | None = None,
    ) -> None:
        super().__init__(
            chore, budget=budget, parallel=parallel, seed=seed, objective=objective, conclude=conclude
        )
        check_space("Bayes", space)
        assert space is not None
        for name, side in space.items():
            check_interval("Bayes", name, side)
        self.check_choice("goal", goal, ("min", "max"))
        if initial is None:
            initial = min(max(2 * len(space) + 2, parallel), max(budget // 2, 1))
        self.check_whole("initial", initial, 1)
        require_library()
        self.space, self.initial = dict(space), initial
        self.goal = goal
        self.points: list[Point] = []
        self.losses: list[float] = []
        """Of :attr:`points`; the objective, or minus it if that is to be maximised."""
        self.failed: list[Point] = []
        self.theta: list[float] | None = None
        """Logarithms of the kernel's parameters when they were last fitted."""

    # -- ask and tell

    def ask(self, rng: random.Random) -> Point:
        """A point of the Latin hypercube, or the one with the largest expected improvement."""
        if self.asked < self.initial:
            return self._latin(self.asked)
        if not self.losses:  # nothing has succeeded yet: there is nothing to model
            return tuple(rng.random() for _ in self.space)
        with one_thread():
            return self._most_promising(rng)

    def _most_promising(self, rng: random.Random) -> Point:
        points, losses = self._known()
        anew = self.theta is None or len(points) % RESTART_EVERY == 0
        model = Model(points, losses).fit(None if anew else self.theta)
        self.theta = model.theta
        waiting = list(self.open.values())
        if waiting:
            model = model.believing(waiting)
        return model.best_point(rng)

    def _latin(self, number: int) -> Point:
        """That point of a random Latin hypercube of ``initial`` points."""
        point = []
        for axis in range(len(self.space)):
            rng = self.rng("latin", axis)
            strata = rng.sample(range(self.initial), self.initial)
            offsets = [rng.random() for _ in strata]
            point.append((strata[number] + offsets[number]) / self.initial)
        return tuple(point)

    def _known(self) -> tuple[list[Point], list[float]]:
        """What the model is fitted to; what failed counts as the worst, so that it is avoided."""
        return self.points + self.failed, self.losses + [max(self.losses)] * len(self.failed)

    def tell(self, trial: Point, value: float) -> None:
        """Take in a value."""
        self.points.append(trial)
        self.losses.append(value if self.goal == "min" else -value)

    def tell_failure(self, trial: Point, failure: Failure | None) -> None:
        """Take in that there is no value here."""
        self.failed.append(trial)

    # -- chores

    def arguments(self, trial: Point) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The point in the units of the space."""
        return (), self.in_space(trial)

    def in_space(self, point: Point) -> dict[str, float]:
        """A point of the unit cube in the units of the space."""
        sides = self.space.items()
        return {name: low + u * (high - low) for u, (name, (low, high)) in zip(point, sides, strict=True)}

    # -- what was found

    @property
    def best(self) -> dict[str, Any] | None:
        """The best point that was tried, and its value; None before there was any."""
        if not self.losses:
            return None
        loss, point = min(zip(self.losses, self.points, strict=True))
        return {"point": self.in_space(point), "value": loss if self.goal == "min" else -loss}

    def summary(self) -> Any:
        """The best point and its value, and how many were tried."""
        return {"best": self.best, "points": len(self.points), "failures": len(self.failed)}


class Model:
    """A Gaussian process on the unit cube, for losses in units of their own spread.

    Parameters
    ----------
    points : (n, d) array-like
    losses : (n,) array-like
    """

    def __init__(self, points: Any, losses: Any) -> None:
        import numpy as np
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        self.points, self.losses = np.array(points), np.array(losses)
        self._centre = self.losses.mean()
        self._spread = self.losses.std() or 1.0
        scales = np.full(self.points.shape[1], 0.3)
        signal = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(scales, (1e-2, 1e1), nu=2.5)
        self._kernel = signal + WhiteKernel(1e-4, (1e-8, 1.0))

    def fit(self, start: Any = None) -> Model:
        """Fit the kernel's parameters from ``start``, or anew."""
        process = self._condition(self._kernel.theta)
        self.theta: list[float] = likeliest(process, start).tolist()
        self._process = self._condition(self.theta)
        return self

    def _condition(self, theta: Any) -> Any:
        """The process given what is known, with these parameters."""
        from sklearn.gaussian_process import GaussianProcessRegressor

        # no optimiser of its own: it warns of parameters at their bounds, which is usual here
        process = GaussianProcessRegressor(self._kernel.clone_with_theta(theta), optimizer=None)
        return process.fit(self.points, (self.losses - self._centre) / self._spread)

    def believing(self, waiting: Sequence[Point]) -> Model:
        """The model as if points in flight had given what it expects; its parameters stay."""
        import numpy as np

        assumed = self.predict(np.array(waiting))[0] * self._spread + self._centre
        more = Model(np.concatenate([self.points, waiting]), np.concatenate([self.losses, assumed]))
        more.theta, more._process = self.theta, more._condition(self.theta)
        return more

    def predict(self, where: Any) -> tuple[Any, Any]:
        """Mean and standard deviation of the function (noise left out) at (m, d) points."""
        import numpy as np

        noise = float(np.exp(self.theta[-1]))
        mean, deviation = self._process.predict(where, return_std=True)
        return mean, np.sqrt(np.maximum(deviation**2 - noise, 1e-12))

    def improvement(self, where: Any, target: float) -> Any:
        """Expected improvement upon ``target`` at (m, d) points."""
        import numpy as np
        from scipy.special import ndtr

        mean, deviation = self.predict(where)
        gain = target - mean
        u = gain / deviation
        return gain * ndtr(u) + deviation * np.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)

    def best_point(self, rng: random.Random) -> Point:
        """Where the expected improvement is largest, as far as a random search finds it.

        Improvement is upon the least *mean* at the points that are known, not upon the least loss,
        which is too good to be true where there is noise.
        """
        import numpy as np

        numbers = np.random.default_rng(rng.getrandbits(64))
        shape = (CANDIDATES // 2, self.points.shape[1])
        means = self.predict(self.points)[0]
        target = float(means.min())
        near = self.points[means.argmin()] + 0.05 * numbers.standard_normal(shape)
        where = np.concatenate([numbers.random(shape), np.clip(near, 0.0, 1.0)])
        best = where[self.improvement(where, target).argmax()]
        for step in STEPS:
            near = best + step * numbers.standard_normal(shape)
            where = np.concatenate([best[None], np.clip(near, 0.0, 1.0)])
            best = where[self.improvement(where, target).argmax()]
        return tuple(float(x) for x in best)


def likeliest(process: Any, start: Any = None) -> Any:
    """Kernel parameters of the largest marginal likelihood, sought from ``start`` or from two points."""
    import numpy as np
    from scipy.optimize import minimize

    def negative(theta: Any) -> tuple[float, Any]:
        value, gradient = process.log_marginal_likelihood(theta, eval_gradient=True, clone_kernel=False)
        return -value, -gradient

    first, bounds = process.kernel_.theta.copy(), process.kernel_.bounds
    starts = [first, np.clip(first + 1.0, *bounds.T)] if start is None else [start]
    found = [minimize(negative, x, jac=True, bounds=bounds, method="L-BFGS-B") for x in starts]
    return min(found, key=lambda one: one.fun).x


def one_thread() -> Any:
    """Keeps linear algebra on one core, because the others belong to the chores."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def require_library() -> None:
    """Raise :class:`UsageError` if scikit-learn cannot be imported."""
    from importlib.util import find_spec

    if find_spec("sklearn") is None:
        raise UsageError("Bayes needs scikit-learn, which is not installed: pip install 'matforge[bayes]'.")
