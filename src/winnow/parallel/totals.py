"""Sums of every process's candidates made those of all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from winnow.gradients.factors.dense import Dense
from winnow.parallel.ranks import Ranks
from winnow.parallel.shards import shards
from winnow.products.products import Products
from winnow.products.sums import Sums


@dataclass(frozen=True)
class Totals:
    """What the processes tell one another of a pool.

    Args:
        ranks: the processes.
        total: candidates of the pool.
    """

    ranks: Ranks
    total: int

    @property
    def size(self) -> int:
        """Candidates of each process, those included that fill its part up."""
        return self.ranks.share(self.total)

    @property
    def rows(self) -> slice:
        """This process's candidates among those of all."""
        return slice(self.size * self.ranks.rank, self.size * (self.ranks.rank + 1))

    def over_all(self, sums: Sums, more: Sequence[str] = ()) -> Sums:
        """Sum over the processes what each has summed of its rows of parameters, or of its candidates.

        Args:
            sums: changed in place.
            more: names beside those of b and the norms.

        Returns:
            The sums.
        """
        names = ["alignment", "squares", "target_square", "task_alignment", "task_squares", "curvature", *more]
        taken = {name: value for name in names if (value := getattr(sums, name)) is not None}
        for name, value in zip(taken, self.ranks.sums(list(taken.values())), strict=True):
            setattr(sums, name, value)
        return sums

    def apart(self, products: Products) -> Sums:
        """Of candidates that every process had by itself, whose sketches the others get.

        Args:
            products: of this process's candidates, at :attr:`rows`.

        Returns:
            Of all.
        """
        if self.ranks.rank and products.sums.task_squares is not None:
            products.sums.task_squares.zero_()  # every process has taken them whole
        self.over_all(products.sums)
        products.join(self.rows, lambda own: [self.ranks.gather(own, len(own) * self.ranks.size)])
        return products.finish().first(self.total)

    def crossed(self, products: Products, elements: int) -> Sums:
        """Of candidates whose gradients every process has stored: some numbers of all of them meet at each.

        Args:
            products: of this process's candidates, at :attr:`rows`.
            elements: most numbers that are received at a time.

        Returns:
            Of all.
        """

        def received(own: Tensor) -> Iterable[Tensor]:
            return (values for _, values in shards(Dense(own), self.ranks, self.size * self.ranks.size, elements))

        products.join(self.rows, received)
        return self.over_all(products.finish(), ["gram"]).first(self.total)

    def blocks(self, sums: Sums) -> Sums:
        """Of candidates that every process had by itself, one after the other; K has a block for each process.

        Args:
            sums: of this process's candidates alone.

        Returns:
            Of all.
        """
        joined = self._joined
        sums.alignment = None if sums.alignment is None else joined(sums.alignment)
        sums.squares = None if sums.squares is None else joined(sums.squares)
        sums.task_alignment = None if sums.task_alignment is None else joined(sums.task_alignment.T).T
        sums.gram = None if sums.gram is None else torch.block_diag(*joined(sums.gram).split(self.size))
        for name in ("target_square", "task_squares"):  # every process has them whole: the first one's bits for all
            value = getattr(sums, name)
            setattr(sums, name, None if value is None else self.ranks.gather(value[None], self.ranks.size)[0])
        return sums.first(self.total)

    def _joined(self, own: Tensor) -> Tensor:
        return self.ranks.gather(own, self.size * self.ranks.size)
