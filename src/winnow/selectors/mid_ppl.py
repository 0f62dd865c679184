"""The candidates of middling perplexity: neither known already nor hopeless."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.choice.filters import top
from winnow.selection import Selection
from winnow.selectors.base import candidates, check_filter_size, given, keep, source_of_chance
from winnow.signals import Needs, Signals


@dataclass
class MidPPL:
    """Keep candidates whose loss lies near a quantile of the pool's losses, its median by default.

    Needs: losses; no target task.
    Cost: a forward over the pool, then training on the kept.
    Rule: S = the k with the smallest |l_i - q|, q the pool's quantile at ``center``; with a ``width`` > 0, k drawn
        uniformly of those with a loss between the quantiles center - width/2 and center + width/2. w_i = 1.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
        center: quantile of the pool's losses, in [0, 1]; 0.5 is the median.
        width: of the band in shares of the pool, in [0, 1]; 0 takes the nearest.
    Source: Marion et al. 2023, When Less is More: perplexity pruning by its middle, arXiv 2309.04564.
    Departures: online and per pool: the model being trained gives the perplexities, where the paper takes those of a
        fixed reference model over a whole corpus, once. A band with fewer than k is filled up with the nearest.
    """

    filter_size: int = 4
    center: float = 0.5
    width: float = 0.0

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)
        for name in ("center", "width"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"selector.{name} must be in [0, 1], got {getattr(self, name)}")

    @property
    def needs(self) -> Needs:
        """Losses: a forward, never a backward."""
        return Needs(losses=True)

    def scores(self, signals: Signals) -> Float[Tensor, " pool"] | None:
        """What the rule ranks by, the highest kept."""
        if self.width > 0:
            return None
        losses, usable = given(signals.losses, "losses"), candidates(signals, 0)
        if len(usable) == 0:
            return losses
        return -(losses - torch.quantile(losses[usable], self.center)).abs()

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool; deterministic unless there is a ``width``."""
        losses = given(signals.losses, "losses")
        usable = candidates(signals, self.filter_size, losses.to(signals.valid.device))
        losses, short = losses[usable], float(len(usable) < self.filter_size)
        if len(usable) == 0:
            return keep(signals, usable, short=short)
        middle = torch.quantile(losses, self.center)
        nearness = -(losses - middle).abs()
        if self.width > 0:
            source = source_of_chance(generator, "MidPPL")
            edges = torch.tensor([self.center - self.width / 2, self.center + self.width / 2], dtype=losses.dtype)
            low, high = torch.quantile(losses, edges.clamp(0, 1))
            inside = (losses >= low) & (losses <= high)
            draw = torch.rand(len(losses), generator=source, dtype=torch.float64)
            nearness = torch.where(inside, draw, nearness - 1)  # those outside come after, the nearest first
        return keep(signals, usable[top(nearness, self.filter_size)], center=float(middle), short=short)
