"""UDS: rich candidates, far from those kept before."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from winnow.choice.filters import top
from winnow.choice.weights import standardise
from winnow.selection import Selection
from winnow.selectors.base import candidates, check_filter_size, given, keep
from winnow.signals import Needs, Signals


@dataclass
class UDS:
    """Keep the k candidates with the largest nuclear norm of their logits plus distance to those kept lately.

    Needs: nuclear norms of the logits and mean hidden states; no target task.
    Cost: a forward over the pool and a small decomposition per candidate, then training on the kept.
    Rule: S = top-k of z(||logits_i||_*) + alpha z(mean over the buffer of ||h_i - h_j||), z standardised over the
        pool; the kept then enter the buffer, first in, first out. w_i = 1.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
        alpha: weight of the distance against the norm, >= 0.
        buffer: embeddings remembered, >= 1.
    Source: Zou et al. 2025, Utility-Diversity Sampling, arXiv 2510.16882.
    Departures: both terms are standardised over the pool, since their units differ by orders of magnitude; the
        released code adds them raw, with alpha = 0.0025. Distances are between mean hidden states, in place of
        random projections of the padded logits. The norm is over response positions. An empty buffer has distance
        zero, as released.
    """

    filter_size: int = 4
    alpha: float = 1.0
    buffer: int = 1024
    kept: Tensor = field(default_factory=lambda: torch.zeros(0, 0), init=False, repr=False)

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"selector.alpha must be >= 0 and finite, got {self.alpha}")
        if self.buffer < 1:
            raise ValueError(f"selector.buffer must be at least 1, got {self.buffer}")

    @property
    def needs(self) -> Needs:
        """Norms and hidden states: a forward, never a backward."""
        return Needs(nuclear=True, hidden="mean")

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool and remember what was chosen; deterministic."""
        nuclear, states = given(signals.nuclear, "nuclear"), given(signals.hidden, "hidden")
        far = torch.zeros_like(nuclear)
        if len(self.kept):
            if self.kept.shape[1] != states.shape[1]:
                raise ValueError(
                    f"the buffer holds embeddings of width {self.kept.shape[1]} and the model gives {states.shape[1]}: "
                    "a selector's state belongs to one model"
                )
            far = torch.cdist(states, self.kept.double(), compute_mode="donot_use_mm_for_euclid_dist").mean(1)
        usable = candidates(signals, self.filter_size, *(score.to(signals.valid.device) for score in (nuclear, far)))
        usable = usable[states[usable].isfinite().all(1)]
        scores = standardise(nuclear[usable]) + self.alpha * standardise(far[usable])
        chosen = usable[top(scores, self.filter_size)]
        new = states[chosen].float()
        self.kept = torch.cat([self.kept, new] if len(self.kept) else [new])[-self.buffer :].clone()
        count = max(len(chosen), 1)
        return keep(
            signals,
            chosen,
            nuclear=float(nuclear[chosen].sum()) / count,
            distance=float(far[chosen].sum()) / count,
            short=float(len(usable) < self.filter_size),
        )

    def state_dict(self) -> dict[str, Any]:
        """The embeddings remembered, the oldest first."""
        return {"kept": self.kept.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up remembered embeddings."""
        self.kept = state["kept"].float().clone()
