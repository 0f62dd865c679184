"""GREATS: greedy selection by a second-order utility in plain gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.choice.filters import top
from winnow.selection import Selection
from winnow.selectors.base import candidates, check_filter_size, coherent, given, keep
from winnow.signals import Needs, Signals


@dataclass
class Greats:
    """Greedily keep k candidates by alignment with the target less similarity with those already kept.

    Needs: alignment and gram in raw gradients (P^0). A target task.
    Cost: scoring pool and target once (forward and backward, per-example products), then training on the kept.
    Rule: k times: S <- S + argmax_i <g_i, g*> - s sum_{j in S} <g_i, g_j>, w_i = 1.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
        as_released: s = lr as in the released code (first order times lr, second order times lr^2);
            otherwise s is the best common step along the k most aligned candidates.
        lr: learning rate of the training, > 0; used only by as_released.
    Source: Wang et al. 2024, GREATS: Online Selection of High-Quality Data for LLM Training, NeurIPS 2024.
    Departures: s is calibrated by default: at learning rates of fine-tuning the released scaling leaves the
        second term orders of magnitude below the first, and the rule is TracIn. as_released takes the
        configured learning rate, not a schedule's present one. The Hessian is the identity, as in the code.
    """

    filter_size: int = 4
    as_released: bool = False
    lr: float | None = None

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)
        if self.as_released and (self.lr is None or not self.lr > 0):
            raise ValueError(f"selector.lr must be > 0 with selector.as_released=true, got {self.lr}")

    @property
    def needs(self) -> Needs:
        """Alignment and K, raw."""
        return Needs(alignment=0, gram=0)

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool; deterministic."""
        alignment, gram = given(signals.alignment, "alignment"), given(signals.gram, "gram")
        usable = candidates(signals, self.filter_size, alignment.to(signals.valid.device))
        usable = coherent(gram, usable)
        alignment, gram = alignment[usable], gram[usable][:, usable]
        step = float(self.lr or 0) if self.as_released else common_step(gram, alignment, self.filter_size)
        chosen = greedy(alignment, step * gram, self.filter_size)
        return keep(signals, usable[chosen], step=step, short=float(len(usable) < self.filter_size))


def greedy(scores: Float[Tensor, " pool"], interaction: Float[Tensor, "pool pool"], k: int) -> Int[Tensor, " kept"]:
    """Repeats: take the largest score, subtract its row of interactions from all.

    Args:
        scores: first-order utilities.
        interaction: what taking one costs the others.
        k: how many to take.

    Returns:
        min(k, B) positions in the order taken.
    """
    scores, picked = scores.clone(), []
    for _ in range(min(k, len(scores))):
        best = int(scores.argmax())
        picked.append(best)
        scores = scores - interaction[best]
        scores[picked] = -math.inf
    return torch.tensor(picked, dtype=torch.long, device=scores.device)


def common_step(gram: Float[Tensor, "pool pool"], alignment: Float[Tensor, " pool"], k: int) -> float:
    """The s >= 0 that minimises 1/2 || s sum_{i in T} g_i - g* ||^2 over the k most aligned candidates T.

    Args:
        gram: K.
        alignment: b.
        k: how many.

    Returns:
        s; zero if they are not aligned at all.
    """
    first = top(alignment, k)
    length = float(gram[first][:, first].sum())
    return max(float(alignment[first].sum()), 0.0) / length if length > 0 else 0.0
