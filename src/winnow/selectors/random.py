"""Random candidates: what any selection has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from winnow.selection import Selection
from winnow.selectors.base import candidates, check_filter_size, keep, source_of_chance
from winnow.signals import Needs, Signals


@dataclass
class Random:
    """Keep k candidates drawn uniformly without replacement.

    Needs: nothing; no target task.
    Cost: no scoring, then training on the kept.
    Rule: S ~ Uniform{S in C : |S| = k}, w_i = 1.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
    Source: the protocol's own control.
    Departures: none.
    """

    filter_size: int = 4

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)

    @property
    def needs(self) -> Needs:
        """Nothing: no forward is paid for."""
        return Needs()

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Draw from one pool."""
        source = source_of_chance(generator, "Random")
        usable = candidates(signals, self.filter_size)
        chosen = torch.randperm(len(usable), generator=source)[: self.filter_size]
        return keep(signals, usable[chosen], short=float(len(usable) < self.filter_size))
