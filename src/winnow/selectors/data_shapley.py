"""In-run data Shapley: each candidate's share in what training on the whole pool would do to the target loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.choice.filters import top
from winnow.choice.weights import proportional
from winnow.selection import Selection
from winnow.selectors.base import candidates, check_filter_size, given, keep
from winnow.signals import Needs, Signals


@dataclass
class DataShapley:
    """Keep the k candidates with the largest Shapley value for one step's drop of the target loss.

    Needs: alignment in raw gradients (P^0); with ``order: second`` curvature too. A target task.
    Cost: scoring pool and target once (forward and backward; no per-example gradient); ``second`` adds a forward
        and backward over the pool and a Hessian-vector product of the target loss (two backwards). Then training on
        the kept.
    Rule: S = top-k of phi_i; first: phi_i = <g_i, g*>; second: phi_i = <g_i, g*> - (s/2) <g_i, H sum_j g_j>, H the
        target loss's Hessian, the sum over the pool, s = lr / k. w_i = 1, or proportional to max(phi_i, 0), of mean
        one.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
        order: first | second.
        weighting: uniform | proportional.
        lr: learning rate of the training, > 0; used only by second.
    Source: Wang et al. 2024, Data Shapley in One Training Run, arXiv 2406.11011.
    Departures: values choose at once, where the paper adds them up over a run to attribute it. They are those of an
        SGD step, as in the paper, whatever the optimizer. s is the configured learning rate over k, since an update
        takes the mean over the kept; a schedule's present rate does not enter.
    """

    filter_size: int = 4
    order: str = "first"
    weighting: str = "uniform"
    lr: float | None = None

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)
        if self.order not in ("first", "second"):
            raise ValueError(f"selector.order must be first or second, got {self.order!r}")
        if self.weighting not in ("uniform", "proportional"):
            raise ValueError(f"selector.weighting must be uniform or proportional, got {self.weighting!r}")
        if self.order == "second" and (self.lr is None or not self.lr > 0):
            raise ValueError(f"selector.lr must be > 0 with selector.order=second, got {self.lr}")

    @property
    def needs(self) -> Needs:
        """Alignment, raw, and the curvature of the second order."""
        return Needs(alignment=0, curvature=self.order == "second")

    def scores(self, signals: Signals) -> Float[Tensor, " pool"] | None:
        """What the rule ranks by, the highest kept."""
        return given(signals.alignment, "alignment") if self.order == "first" else None

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool; deterministic."""
        value = given(signals.alignment, "alignment")
        if self.order == "second":
            value = value - float(self.lr or 0) / self.filter_size / 2 * given(signals.curvature, "curvature")
        usable = candidates(signals, self.filter_size, value.to(signals.valid.device))
        value, short = value[usable], float(len(usable) < self.filter_size)
        chosen = top(value, self.filter_size)
        total = float(value[chosen].sum())
        if self.weighting == "uniform" or len(usable) == 0:
            return keep(signals, usable[chosen], value=total, short=short)
        share = proportional(value[chosen])
        if not bool((share > 0).any()):
            return keep(signals, usable[chosen[:1]], value=total, short=short)
        chosen, share = chosen[share > 0], share[share > 0]
        return keep(signals, usable[chosen], share / share.mean(), value=total, short=short)
