"""Online TracIn: first-order utility in plain gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.selection import Selection
from winnow.selectors.base import by_task, check_aggregate, check_filter_size, given, keep_best
from winnow.signals import Needs, Signals


@dataclass
class TracIn:
    """Keep the k candidates whose gradients have the largest inner product with the target's.

    Needs: alignment in raw gradients (P^0), by task with ``aggregate: max``. A target task.
    Cost: scoring pool and target once (forward and backward; no per-example gradient), then training on the kept.
    Rule: S = top-k of <g_i, g*>, g* the mean over the target tasks by their weights; with ``aggregate: max`` top-k of
        max_t <g_i, g*_t> / ||g*_t||, t the target tasks. w_i = 1.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
        aggregate: mean | max (the best-served task counts).
    Source: Pruthi et al. 2020, arXiv 2002.08484 (TracInCP at the current checkpoint).
    Departures: online: the sum over saved checkpoints is its one term at the present step, whose
        learning rate is common to all candidates and drops out.
    """

    filter_size: int = 4
    aggregate: str = "mean"

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)
        check_aggregate(self.aggregate)

    @property
    def needs(self) -> Needs:
        """Alignment, raw."""
        return Needs(alignment=0, per_task=self.aggregate == "max")

    def scores(self, signals: Signals) -> Float[Tensor, " pool"]:
        """What the rule ranks by, the highest kept."""
        if self.aggregate == "mean":
            return given(signals.alignment, "alignment")
        alignment, lengths = given(signals.task_alignment, "task_alignment"), given(signals.task_norms, "task_norms")
        # A task whose gradient vanishes has been served.
        return by_task(torch.where(lengths > 0, 1 / lengths, 0)[:, None] * alignment, "max")

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool; deterministic."""
        return keep_best(signals, self.scores(signals), self.filter_size)
