"""The accounts of a search: what was to be done against what was, so that nothing is left out unseen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

DIGEST_SEED = 1
"""Fixed: digests of different chores are compared."""


def digest(rows: Any) -> int:
    """A number that adds up: the sum over rows of a hash of each, so order and cuts do not matter.

    Two sets of rows with equal sums are the same, but for a chance of about 2^-64.
    """
    values = np.asarray(rows, dtype=np.int64).astype(np.uint64)
    odd = np.random.default_rng(DIGEST_SEED).integers(1, 2**63, values.shape[1], dtype=np.uint64) * 2 + 1
    mixed = (values * odd).sum(axis=1, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's finaliser
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return int((mixed ^ (mixed >> np.uint64(31))).sum(dtype=np.uint64))


def check_complete(counts: dict[str, Any]) -> None:
    """Refuse a search of which a part was left out or done twice; drops the digests."""
    done = {"h": "h_begun", "starts": "newton_starts", "pieces_left": "pieces_done"}
    for wanted, found in done.items():
        pairs = [(counts.get(wanted, 0), counts.get(found, 0))]
        pairs += [(counts.pop(f"{wanted}_digest", 0) % 2**64, counts.pop(f"{found}_digest", 0) % 2**64)]
        if any(a != b for a, b in pairs):
            raise RuntimeError(
                f"{pairs[0][1]} of {pairs[0][0]} were done ({found} of {wanted}), or not the right ones: the "
                "strategy did not spawn everything exactly once, so the search is not complete."
            )


def add_counts(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of all numbers by name."""
    total: dict[str, Any] = {}
    for part in counts:
        for name, value in part.items():
            if isinstance(value, int | float):
                total[name] = total.get(name, 0) + value
    return total
