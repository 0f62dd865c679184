"""Online TracIn: first-order utility in plain gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.filters import top
from winnow.selection import Selection
from winnow.selectors.base import candidates, check_filter_size, given, keep
from winnow.signals import Needs, Signals


@dataclass
class TracIn:
    """Keep the k candidates whose gradients have the largest inner product with the target's.

    Needs: alignment in raw gradients (P^0). A target task.
    Cost: scoring pool and target once (forward and backward; no per-example gradient), then training on the kept.
    Rule: S = top-k of <g_i, g*>, w_i = 1.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
    Source: Pruthi et al. 2020, arXiv 2002.08484 (TracInCP at the current checkpoint).
    Departures: online: the sum over saved checkpoints is its one term at the present step, whose
        learning rate is common to all candidates and drops out.
    """

    filter_size: int = 4

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)

    @property
    def needs(self) -> Needs:
        """Alignment, raw."""
        return Needs(alignment=0)

    def scores(self, signals: Signals) -> Float[Tensor, " pool"]:
        """What the rule ranks by, the highest kept.

        Args:
            signals: alignment.

        Returns:
            A score per candidate, in float64 on the CPU.
        """
        return given(signals.alignment, "alignment")

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool; deterministic.

        Args:
            signals: alignment.
            generator: unused.

        Returns:
            Candidates with weight one.
        """
        alignment = self.scores(signals)
        usable = candidates(signals, self.filter_size, alignment.to(signals.valid.device))
        chosen = top(alignment[usable], self.filter_size)
        return keep(signals, usable[chosen], short=float(len(usable) < self.filter_size))
