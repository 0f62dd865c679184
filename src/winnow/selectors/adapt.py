"""ADAPT: soft weights on every candidate by similarity to anchors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from winnow.choice.similarity import cosines
from winnow.selection import Selection
from winnow.selectors.base import candidates, given, keep
from winnow.signals import Needs, Signals


@dataclass
class Adapt:
    """Train on every candidate, weighted by how similar its embedding is to the target examples'.

    Needs: hidden states of pool and target, weighted by position. A target task.
    Cost: a forward over pool and target; trains on the whole pool, data.pool_size / filter_size times the others'
        budget.
    Rule: w_i = sigmoid(s_i / temperature), s_i the mean over the target batch of cos(h_i, h_j), h the mean of the
        last hidden states with weights 1, 2, 3, ... along the tokens.
    Knobs:
        temperature: in units of cosine, > 0; small ones make the weights hard.
        normalise: mean_one (weights of mean one: the step size stays the optimizer's) | none (as in the rule).
    Source: ADAPT, online reweighting as in DataFlex; position-weighted pooling: Muennighoff 2022, arXiv 2202.08904.
    Departures: the anchors are the target batch of the step, by the weights of their tasks. The temperature is
        ours. Not a budgeted method: compare it by what it costs.
    """

    temperature: float = 0.1
    normalise: str = "mean_one"

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"selector.temperature must be > 0 and finite, got {self.temperature}")
        if self.normalise not in ("mean_one", "none"):
            raise ValueError(f"selector.normalise must be mean_one or none, got {self.normalise!r}")

    @property
    def needs(self) -> Needs:
        """Hidden states: a forward, never a backward."""
        return Needs(hidden="position", target_hidden=True)

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Weigh one pool; deterministic."""
        states, anchors = given(signals.hidden, "hidden"), given(signals.target_hidden, "target_hidden")
        scores = cosines(states, anchors) @ given(signals.target_share, "target_share")
        usable = candidates(signals, 0, scores.to(signals.valid.device))
        if len(usable) == 0:
            return keep(signals, usable, similarity=0.0)
        weight = torch.sigmoid(scores[usable] / self.temperature)
        if self.normalise == "mean_one":
            weight = weight / weight.mean()
        return keep(signals, usable, weight, similarity=float(scores[usable].mean()))
