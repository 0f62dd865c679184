"""The candidates the model finds hardest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.selection import Selection
from winnow.selectors.base import check_filter_size, given, keep_best
from winnow.signals import Needs, Signals


@dataclass
class MaxLoss:
    """Keep the k candidates with the largest loss.

    Needs: losses; no target task.
    Cost: a forward over the pool, then training on the kept.
    Rule: S = top-k of l_i, w_i = 1.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
    Source: Loshchilov & Hutter 2015, arXiv 1511.06343; Jiang et al. 2019, arXiv 1910.00762.
    Departures: the k largest of the pool at hand, without a rank- or percentile-based probability
        (selective_backprop has that) and without losses remembered from earlier steps.
    """

    filter_size: int = 4

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)

    @property
    def needs(self) -> Needs:
        """Losses: a forward, never a backward."""
        return Needs(losses=True)

    def scores(self, signals: Signals) -> Float[Tensor, " pool"]:
        """What the rule ranks by, the highest kept."""
        return given(signals.losses, "losses")

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool; deterministic."""
        return keep_best(signals, self.scores(signals), self.filter_size)
