"""Influence distillation: weights that minimise a second-order model of the target loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from winnow.choice.bounded_simplex import minimise_bounded
from winnow.choice.filters import top
from winnow.choice.quadratic import minimise
from winnow.selection import Selection
from winnow.selectors.base import candidates, check_filter_size, coherent, given, keep
from winnow.selectors.greats import common_step
from winnow.signals import Needs, Signals


@dataclass
class InfluenceDistillation:
    """Weigh the whole pool by a quadratic programme and keep the k largest weights.

    Needs: alignment (P^1) and gram (P^2): updates, not gradients. A target task.
    Cost: scoring pool and target once (forward and backward, per-example products), then training on the kept.
    Rule: w = argmin -b'w + (s/2) w'Kw + lambda ||w||^2 over 0 <= w <= w_max, sum(w) = k; S = the k largest w_i > 0,
        their weights rescaled to mean one.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
        curvature: s in units of the best common step along the k most aligned candidates, >= 0; 0 leaves the
            second-order term out.
        ridge: lambda in units of the largest |b_i|, > 0; more of it spreads the weights.
        w_max: largest weight before rescaling, >= 1; null for no bound.
    Source: Nikdan et al. 2025, Influence Distillation, arXiv 2505.19051.
    Departures: K is that of the updates: the target's Hessian is taken as a multiple of the identity, whose size s
        is calibrated. Every candidate is scored, where the paper scores landmarks and propagates to the rest. The
        paper tunes lambda; here it is a knob.
    """

    filter_size: int = 4
    curvature: float = 1.0
    ridge: float = 0.1
    w_max: float | None = None

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)
        if not 0 <= self.curvature < math.inf:
            raise ValueError(f"selector.curvature must be >= 0 and finite, got {self.curvature}")
        if not 0 < self.ridge < math.inf:
            raise ValueError(f"selector.ridge must be > 0 and finite, got {self.ridge}")
        if self.w_max is not None and not 1 <= self.w_max < math.inf:
            raise ValueError(f"selector.w_max must be >= 1 and finite, or null, got {self.w_max}")

    @property
    def needs(self) -> Needs:
        """Alignment and K of the updates."""
        return Needs(alignment=1, gram=2)

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool; deterministic."""
        alignment, gram = given(signals.alignment, "alignment"), given(signals.gram, "gram")
        usable = candidates(signals, self.filter_size, alignment.to(signals.valid.device))
        usable = coherent(gram, usable)
        short = float(len(usable) < self.filter_size)
        if len(usable) == 0:
            return keep(signals, usable, short=short)
        alignment, gram = alignment[usable], gram[usable][:, usable]
        step = self.curvature * common_step(gram, alignment, self.filter_size)
        weight = self._solve(step * gram, alignment, float(min(self.filter_size, len(usable))))
        chosen = top(weight, self.filter_size)
        chosen = chosen[weight[chosen] > 0]
        diagnostics = {"step": step, "positive": float((weight > 0).sum()), "short": short}
        return keep(signals, usable[chosen], weight[chosen] / weight[chosen].mean(), **diagnostics)

    def _solve(self, gram: Tensor, alignment: Tensor, total: float) -> Tensor:
        unit = float(alignment.abs().max())
        if unit == 0:
            unit = 1.0
        # In units of the largest |b_i| the solver's tolerances mean the same for gradients of any size.
        matrix = gram / unit + 2 * self.ridge * torch.eye(len(gram), dtype=gram.dtype)
        if self.w_max is None:
            return minimise(matrix, alignment / unit, total=total)
        return minimise_bounded(matrix, alignment / unit, total, self.w_max)
