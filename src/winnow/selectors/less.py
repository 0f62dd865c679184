"""LESS, online: cosine of the optimizer's update with the gradient of the best-served target task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.choice.filters import per_norm, top
from winnow.selection import Selection
from winnow.selectors.base import by_task, candidates, check_aggregate, check_filter_size, given, keep
from winnow.signals import Needs, Signals


@dataclass
class Less:
    """Keep the k candidates whose updates point most along the gradient of one of the target tasks.

    Needs: alignment (P^1) per task and norms (P^2): updates, not gradients. A target task.
    Cost: scoring pool and target once (forward and backward, per-example norms), then training on the kept.
    Rule: S = top-k of max_t cos(P g_i, g*_t), t the target tasks, or of the mean over t. w_i = 1.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
        aggregate: max (the best-served task counts) | mean (all tasks alike, whatever their weights).
    Source: Xia et al. 2024, LESS, ICML, arXiv 2402.04333.
    Departures: online, at the present parameters and optimizer state, in place of a warm-up and the sum over its
        checkpoints (python -m winnow.score does that). No random projection: it saves the storage of a gradient
        library, and there is none here; winnow.score takes a CountSketch where LESS has dense random signs. P is the
        linearised Adam, without the momentum that the released code mixes into every candidate's update. The cosine is
        with a task's mean gradient, as in the paper; the released code takes the mean of the cosines with its examples.
    """

    filter_size: int = 4
    aggregate: str = "max"

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)
        check_aggregate(self.aggregate)

    @property
    def needs(self) -> Needs:
        """Alignment of updates by task, and their norms."""
        return Needs(alignment=1, norms=2, per_task=True)

    def task_scores(self, signals: Signals) -> Float[Tensor, "tasks pool"]:
        """Cosines with the gradient of each task."""
        alignment, lengths = given(signals.task_alignment, "task_alignment"), given(signals.task_norms, "task_norms")
        norms = given(signals.norms, "norms")
        return torch.stack([per_norm(row, norms * length) for row, length in zip(alignment, lengths, strict=True)])

    def scores(self, signals: Signals) -> Float[Tensor, " pool"]:
        """What the rule ranks by, the highest kept."""
        return by_task(self.task_scores(signals), self.aggregate)

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool; deterministic."""
        scores, norms = self.scores(signals), given(signals.norms, "norms")
        usable = candidates(signals, self.filter_size, scores.to(signals.valid.device))
        usable = usable[norms[usable].isfinite()]
        chosen = usable[top(scores[usable], self.filter_size)]
        mean = float(scores[chosen].mean()) if len(chosen) else 0.0
        return keep(signals, chosen, cosine=mean, short=float(len(usable) < self.filter_size))
