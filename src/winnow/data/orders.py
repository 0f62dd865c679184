"""Orders in which a finite split is gone through: shuffled once a lap, by seed, split and lap alone."""

from __future__ import annotations

import numpy as np


class Orders:
    """Shuffled positions, of which the latest lap of each split is kept.

    Laps come one after another, so an older one is not asked for again, and at ten million rows each takes 40 MB.

    Args:
        seed: decides all of them.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._latest: dict[tuple[int, int], tuple[int, np.ndarray]] = {}

    def __reduce__(self) -> tuple[type[Orders], tuple[int]]:
        """A worker process makes its own; sending them would take longer than that."""
        return Orders, (self.seed,)

    def order(self, size: int, split: int, lap: int) -> np.ndarray:
        """The order of a lap.

        Args:
            size: examples of the split.
            split: its number; 0 for the stream.
            lap: how often the split was gone through before.

        Returns:
            Each position once. [size]
        """
        if (size, split) in self._latest and self._latest[size, split][0] == lap:
            return self._latest[size, split][1]
        self._latest.pop((size, split), None)  # before the next is made, so that there is never room for two
        # The draws do not depend on the width of the numbers: four bytes hold the same order as eight.
        positions = np.arange(size, dtype=np.int32 if size < 2**31 else np.int64)
        np.random.default_rng((self.seed, split, lap)).shuffle(positions)
        self._latest[size, split] = lap, positions
        return positions
