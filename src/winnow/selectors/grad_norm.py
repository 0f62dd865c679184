"""The candidates with the largest gradients, taken at the top or by importance sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.choice.filters import top
from winnow.selection import Selection
from winnow.selectors.base import candidates, check_filter_size, given, keep
from winnow.signals import Needs, Signals


@dataclass
class GradNorm:
    """Keep candidates with large gradients: the k largest, or a sample that stays unbiased.

    Needs: norms of raw gradients (P^0); no target task.
    Cost: scoring the pool once (forward and backward, per-example norms), then training on the kept.
    Rule: top: S = top-k of ||g_i||, w_i = 1. importance: k draws with replacement from p_i = ||g_i|| / sum ||g_j||,
        each drawn gradient entering with 1/(k B p_i): the expected gradient is the mean over the pool.
    Knobs:
        filter_size: candidates kept, or drawn, k; 1 to data.pool_size.
        sampling: top | importance.
    Source: Katharopoulos & Fleuret 2018, arXiv 1803.00942.
    Departures: exact norms of all scored parameters; the paper bounds them by the last layer's. Always
        on: no test of whether sampling pays. Candidates drawn twice are trained once at twice the weight,
        so that importance may keep fewer than k.
    """

    filter_size: int = 4
    sampling: str = "top"

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)
        if self.sampling not in ("top", "importance"):
            raise ValueError(f"selector.sampling must be top or importance, got {self.sampling!r}")

    @property
    def needs(self) -> Needs:
        """Norms, raw."""
        return Needs(norms=0)

    def scores(self, signals: Signals) -> Float[Tensor, " pool"] | None:
        """What the rule ranks by, the highest kept."""
        return given(signals.norms, "norms") if self.sampling == "top" else None

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool."""
        norms = given(signals.norms, "norms")
        usable = candidates(signals, self.filter_size, norms.to(signals.valid.device))
        norms = norms[usable]
        short = float(len(usable) < self.filter_size)
        if self.sampling == "top":
            return keep(signals, usable[top(norms, self.filter_size)], short=short)
        if generator is None:
            raise ValueError("GradNorm draws from the generator it is given and never from a global one: pass one")
        if len(usable) == 0:
            return keep(signals, usable, short=short)
        chance = norms / norms.sum() if norms.sum() > 0 else torch.full_like(norms, 1 / len(norms))
        draws = torch.multinomial(chance, self.filter_size, replacement=True, generator=generator)
        chosen, weight = importance_weights(chance, draws)
        return keep(signals, usable[chosen], weight, short=short)


def importance_weights(
    chance: Float[Tensor, " pool"], draws: Int[Tensor, " draws"]
) -> tuple[Int[Tensor, " kept"], Float[Tensor, " kept"]]:
    """Weights that make the update's gradient unbiased for the mean over the pool.

    Args:
        chance: probability of each of B candidates.
        draws: k positions drawn with replacement.

    Returns:
        The d distinct positions, and weights such that (1/d) sum_i w_i g_i = (1/k) sum_draws g_i / (B p_i).
    """
    chosen, count = draws.unique(return_counts=True)
    return chosen, count * len(chosen) / (len(draws) * len(chance) * chance[chosen])
