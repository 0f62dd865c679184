"""Selective backpropagation: hard candidates, by chance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.choice.sampling import without_replacement
from winnow.selection import Selection
from winnow.selectors.base import candidates, check_filter_size, given, keep, source_of_chance
from winnow.signals import Needs, Signals


@dataclass
class SelectiveBackprop:
    """Keep candidates with a chance that rises with the percentile of their loss among recent losses.

    Needs: losses; no target task.
    Cost: a forward over the pool, then training on the kept.
    Rule: p_i = (share of the last ``window`` losses that are <= l_i)^beta, this pool's included. fixed: k drawn
        without replacement in proportion to p_i. bernoulli: each kept with chance p_i, at most k. w_i = 1.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
        beta: how strongly hard candidates are preferred, >= 0; 0 is uniform.
        window: how many recent losses percentiles are taken among, >= 1.
        sampling: fixed (k of every pool, the budget of the other methods) | bernoulli (the paper's; the number
            varies).
    Source: Jiang et al. 2019, arXiv 1910.00762.
    Departures: fixed by default, for an equal budget. bernoulli trains at once on what passes of a pool, where the
        paper queues it until a batch is full; of more than k that pass a random k are kept.
    """

    filter_size: int = 4
    beta: float = 1.0
    window: int = 1024
    sampling: str = "fixed"
    recent: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64), init=False, repr=False)

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"selector.beta must be >= 0 and finite, got {self.beta}")
        if self.window < 1:
            raise ValueError(f"selector.window must be at least 1, got {self.window}")
        if self.sampling not in ("fixed", "bernoulli"):
            raise ValueError(f"selector.sampling must be fixed or bernoulli, got {self.sampling!r}")

    @property
    def needs(self) -> Needs:
        """Losses: a forward, never a backward."""
        return Needs(losses=True)

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Draw from one pool, and remember its losses."""
        source = source_of_chance(generator, "SelectiveBackprop")
        losses = given(signals.losses, "losses")
        usable = candidates(signals, self.filter_size, losses.to(signals.valid.device))
        losses = losses[usable]
        self.recent = torch.cat([self.recent, losses])[-self.window :]
        chance = percentiles(losses, self.recent) ** self.beta
        if self.sampling == "fixed":
            chosen = without_replacement(chance.log(), self.filter_size, source)
        else:
            passes = torch.rand(len(chance), generator=source, dtype=torch.float64) < chance
            chosen = passes.nonzero().squeeze(1)
            chosen = chosen[torch.randperm(len(chosen), generator=source)[: self.filter_size]]
        mean = float(chance.mean()) if len(chance) else 0.0
        return keep(signals, usable[chosen], chance=mean, short=float(len(usable) < self.filter_size))

    def state_dict(self) -> dict[str, Any]:
        """The losses remembered."""
        return {"recent": self.recent.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up remembered losses."""
        self.recent = state["recent"].double().clone()


def percentiles(losses: Float[Tensor, " pool"], among: Float[Tensor, " window"]) -> Float[Tensor, " pool"]:
    """Share of some losses that are at most as large, in (0, 1] for losses that are among them.

    Args:
        losses: whose percentiles.
        among: the losses compared with.

    Returns:
        The shares.
    """
    below = torch.searchsorted(among.sort().values, losses.contiguous(), right=True)
    return below.double().clamp_min(1) / max(len(among), 1)
