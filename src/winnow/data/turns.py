"""How a target batch is shared among the targets: by rows, or by turns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Turns:
    """Which target has its turn at a step: at every step the one that is furthest behind its share.

    Args:
        weights: of the targets, > 0.

    Raises:
        ValueError: a weight is not positive.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        if not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"data target weights must be > 0, got {list(weights)}")
        self.shares = np.array(weights, dtype=float) / sum(weights)
        self._taken = np.zeros(len(weights), dtype=int)
        self._turns: list[tuple[int, int]] = []

    def __getitem__(self, step: int) -> tuple[int, int]:
        """The target of a step, a pure function of it.

        Args:
            step: since the start of training.

        Returns:
            Number of the target, and how many turns it has had before.
        """
        while len(self._turns) <= step:
            behind = self.shares * (len(self._turns) + 1) - self._taken
            number = int(behind.argmax())
            self._turns.append((number, int(self._taken[number])))
            self._taken[number] += 1
        return self._turns[step]


def rows_per_target(rows: int, weights: Sequence[float]) -> list[int]:
    """Split the target batch among targets: by weight, largest remainder, at least one row each.

    Args:
        rows: size of the target batch, M.
        weights: weight of each target, > 0.

    Returns:
        Rows per target; they sum to ``rows``.

    Raises:
        ValueError: fewer rows than targets, or a weight that is not positive.
    """
    if not weights:
        return []
    if not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"data target weights must be > 0, got {list(weights)}")
    if rows < len(weights):
        raise ValueError(f"data.target_batch_size={rows} is smaller than the number of targets ({len(weights)})")
    exact = np.array(weights, dtype=float) / sum(weights) * rows
    counts = np.maximum(np.floor(exact).astype(int), 1)
    while counts.sum() != rows:
        gap = exact - counts
        if counts.sum() < rows:
            counts[int(gap.argmax())] += 1
        else:
            counts[int(np.where(counts > 1, gap, np.inf).argmin())] -= 1
    return counts.tolist()
