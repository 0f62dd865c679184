"""GRAD-MATCH: a weighted subset whose gradient matches the pool's, or the target's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from winnow.choice.filters import omp, top
from winnow.choice.weights import nnls
from winnow.selection import Selection
from winnow.selectors.base import candidates, check_filter_size, coherent, given, keep
from winnow.signals import Needs, Signals


@dataclass
class GradMatch:
    """Keep at most k candidates, with non-negative weights, whose weighted gradient comes closest to a given one.

    Needs: gram in raw gradients (P^0); alignment too, and a target task, with ``match: target``.
    Cost: scoring the pool (and the target) once (forward and backward, per-example products), then training on the
        kept.
    Rule: orthogonal matching pursuit on min_{w >= 0} ||sum_S w_i g_i - tau||^2 + ridge * mean(diag K) ||w||^2:
        picks by residual correlation b_i - K_iS w_S, tau the pool's mean gradient or g*. Weights rescaled to mean
        one.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
        match: pool (the pool's mean gradient, no target) | target (the target's).
        ridge: in units of the mean squared gradient norm, >= 0.
    Source: Killamsetty et al. 2021, GRAD-MATCH, ICML, arXiv 2103.00123.
    Departures: at every step and within its pool, where the paper chooses among mini-batches every 20 epochs;
        gradients of all scored parameters instead of the last layer's. The ridge is relative. When no candidate
        improves the match any more fewer than k are kept; the released code fills up at random with weight one.
    """

    filter_size: int = 4
    match: str = "pool"
    ridge: float = 0.1

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)
        if self.match not in ("pool", "target"):
            raise ValueError(f"selector.match must be pool or target, got {self.match!r}")
        if not 0 <= self.ridge < math.inf:
            raise ValueError(f"selector.ridge must be >= 0 and finite, got {self.ridge}")

    @property
    def needs(self) -> Needs:
        """K, raw; b for the target."""
        return Needs(gram=0, alignment=0 if self.match == "target" else None)

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool; deterministic."""
        gram = given(signals.gram, "gram")
        scores = [given(signals.alignment, "alignment")] if self.match == "target" else []
        usable = candidates(signals, self.filter_size, *(score.to(signals.valid.device) for score in scores))
        usable = coherent(gram, usable)
        gram = gram[usable][:, usable]
        short = float(len(usable) < self.filter_size)
        if len(usable) == 0:
            return keep(signals, usable, short=short)
        alignment = scores[0][usable] if scores else gram.mean(1)
        chosen = omp(gram, alignment, self.filter_size, self.ridge, fill=False, normalised=False)
        shrink = self.ridge * gram.diagonal().mean() * torch.eye(len(chosen), dtype=gram.dtype)
        coefficient = nnls(gram[chosen][:, chosen] + shrink, alignment[chosen])
        chosen, coefficient = chosen[coefficient > 0], coefficient[coefficient > 0]
        empty = len(chosen) == 0
        if empty:
            chosen = top(alignment, 1)
            coefficient = torch.ones(1, dtype=gram.dtype)
        diagnostics = {"scale": 0.0 if empty else float(coefficient.sum()), "short": short, "empty": float(empty)}
        length = float(gram.mean())
        if self.match == "pool" and length > 0:
            fit = float(coefficient @ gram[chosen][:, chosen] @ coefficient - 2 * coefficient @ alignment[chosen])
            diagnostics["residual"] = 1.0 if empty else 1 + fit / length
        return keep(signals, usable[chosen], coefficient / coefficient.mean(), **diagnostics)
