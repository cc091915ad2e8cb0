"""The global random generators of Python and NumPy, which begin at the seed of each chore."""

from __future__ import annotations

import random
import sys


class Generators:
    """Seeds what is imported already at once, and NumPy's generator right after its import."""

    def __init__(self) -> None:
        self._seed = 0
        self._numpy_seeded = False

    def begin(self, seed: int) -> None:
        """A chore (or a rank of one) with this seed begins."""
        self._seed = seed
        random.seed(seed)
        self._seed_numpy()

    def after_import(self) -> None:
        """Something has been imported; it may have been NumPy."""
        if not self._numpy_seeded:
            self._seed_numpy()

    def _seed_numpy(self) -> None:
        seed_it = getattr(sys.modules.get("numpy.random"), "seed", None)
        self._numpy_seeded = seed_it is not None
        if seed_it is not None:
            # a whole number is five times as fast as a list of two, but must have 32 bits
            seed_it((self._seed ^ self._seed >> 32) & 0xFFFFFFFF)
