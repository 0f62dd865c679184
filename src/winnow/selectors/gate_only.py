"""The gate alone: what stage 0 promises most, whatever the exact scores say."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from winnow.selection import Selection
from winnow.selectors.base import check_filter_size, given, keep_best
from winnow.signals import Needs, Signals


@dataclass
class GateOnly:
    """Keep the k candidates that the gate in front of the pool predicts the highest score for.

    Needs: the gate's predictions; a pool is scored for the gate to learn from, and for nothing else.
    Cost: no scoring of its own, then training on the kept; what the gate learns from is scored all the same.
    Rule: S = top-k of phi(x_i)^T w (docs/METHOD.md, "Stage 0, gate"), w_i = 1.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
    Source: the ablation of the filter behind the gate; nothing published.
    Departures: none.
    """

    filter_size: int = 4

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)

    @property
    def needs(self) -> Needs:
        """The gate's predictions."""
        return Needs(predicted=True)

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool; deterministic."""
        return keep_best(signals, given(signals.predicted, "predicted"), self.filter_size)
