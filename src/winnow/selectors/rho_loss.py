"""RHO-LOSS: what the model has not learnt and a reference model has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.selection import Selection
from winnow.selectors.base import check_filter_size, given, keep_best
from winnow.signals import Needs, Signals


@dataclass
class RhoLoss:
    """Keep the k candidates with the largest reducible holdout loss.

    Needs: losses, and losses under a reference model, named by scoring.reference; no target task.
    Cost: a forward over the pool, another one by the reference model unless its losses come from a file, then
        training on the kept. The reference model's own training is not counted.
    Rule: S = top-k of l_i - l_i^ref, w_i = 1.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
    Source: Mindermann et al. 2022, arXiv 2206.07137.
    Departures: the reference model is whatever scoring.reference names, best one trained on data like the target's; the
        paper trains it on a holdout set of the stream. A mean over response tokens takes the place of a label's loss.
    """

    filter_size: int = 4

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)

    @property
    def needs(self) -> Needs:
        """Two losses: forwards, never a backward."""
        return Needs(losses=True, reference=True)

    def scores(self, signals: Signals) -> Float[Tensor, " pool"]:
        """What the rule ranks by, the highest kept."""
        return given(signals.losses, "losses") - given(signals.reference, "reference")

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool; deterministic."""
        return keep_best(signals, self.scores(signals), self.filter_size, "reducible")
