"""What a search is: geometry, region and tuning, in the plain types that its chores are given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from matforge.model import UsageError
from matforge.vacua.geometry import Geometry
from matforge.vacua.region import Region

LEAF = 0.1
"""Largest change of the ISD matrix from the centre of a leaf to a face."""
BLOCK = 256
"""Values of h in a chunk."""
BUDGET = 2_000_000
"""Counted steps after which a chunk hands back its unfinished boxes (about a second)."""
BATCH = 8192
"""Starts in a refine."""
GROUP = 32
"""Blocks whose vacua go into one shard."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the work is cut up; none of it changes the answer."""

    leaf: float = LEAF
    block: int = BLOCK
    budget: int = BUDGET
    batch: int = BATCH
    group: int = GROUP
    conjugation: bool = True
    """Search Re z1 >= 0 only and add the complex conjugate images."""

    def __post_init__(self) -> None:
        for name in ("block", "budget", "batch", "group"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be a whole number of at least 1, not {value!r}.")
        if not 0.005 <= self.leaf <= 0.3:
            raise UsageError(f"leaf must lie between 0.005 and 0.3, not {self.leaf!r}.")


def problem_of(
    geometry: Geometry,
    region: Region,
    tuning: Tuning | None = None,
    publish: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Everything a chore has to know, in plain types."""
    tuning = tuning or Tuning()
    return {
        "geometry": geometry.to_dict(),
        "region": region.as_dict(),
        "tuning": {name: getattr(tuning, name) for name in Tuning.__slots__},
        **({"publish": dict(publish)} if publish else {}),
    }


def unpack(problem: Mapping[str, Any]) -> tuple[Geometry, Region, Tuning]:
    """Inverse of :func:`problem_of`; read once a process."""
    return _parsed(json.dumps(problem, sort_keys=True))


@lru_cache(maxsize=4)
def _parsed(text: str) -> tuple[Geometry, Region, Tuning]:
    problem = json.loads(text)
    geometry = Geometry.from_dict(problem["geometry"])
    return geometry, Region.from_dict(geometry, problem["region"]), Tuning(**problem["tuning"])
