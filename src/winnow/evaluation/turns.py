"""Batches that several processes take in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from winnow.lm.layout import KEYS, Batch
from winnow.lm.losses import IGNORE


class Turns:
    """Whose turn a batch is. Every process asks for every batch, in the same order; one process has all of them.

    Batches stay as they are, so that their losses are those of one process, and whoever has none adds nothing.

    Args:
        rank: of this process.
        size: how many there are.
        totals: adds numbers up over the processes; None for one process.
        together: whether all have to run the model at the same time, as each holds a part of it.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        totals: Callable[[Sequence[float]], list[float]] | None = None,
        together: bool = False,
    ) -> None:
        self.rank, self.size, self.together = rank, size, together
        self._totals, self._asked = totals, 0

    def mine(self) -> bool:
        """Whether the next batch is this process's.

        Returns:
            True in one process alone.
        """
        self._asked += 1
        return (self._asked - 1) % self.size == self.rank

    @property
    def owes(self) -> bool:
        """Whether others have run a batch more, and wait in the model for this process to run a blank one."""
        return self.together and 0 < self._asked % self.size <= self.rank

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the processes; called by all of them.

        Args:
            numbers: this process's, as many as the others'.

        Returns:
            The same everywhere.
        """
        return list(numbers) if self._totals is None else self._totals(numbers)


def blank(batch: Batch) -> dict[str, Tensor]:
    """The least that can be run.

    Args:
        batch: any token batch.

    Returns:
        Its first row without a response token.
    """
    row = {key: batch[key][:1] for key in KEYS}
    return row | {"labels": torch.full_like(row["labels"], IGNORE)}
