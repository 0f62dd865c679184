"""Similarity to the target in the model's own embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.choice.similarity import cosines
from winnow.selection import Selection
from winnow.selectors.base import check_filter_size, given, keep_best
from winnow.signals import Needs, Signals


@dataclass
class Embedding:
    """Keep the k candidates whose embeddings are most similar to the target examples'.

    Needs: hidden states of pool and target, their mean over tokens. A target task.
    Cost: a forward over pool and target, then training on the kept.
    Rule: S = top-k of the mean over the target batch of cos(h_i, h_j), h the mean of the last hidden states. w_i = 1.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
    Source: the SBERT baseline of GREATS (Wang et al. 2024, NeurIPS), with the states of the model being trained.
    Departures: those states in place of a separate sentence encoder's, so that nothing is downloaded and the embedding
        moves with the model. With several target tasks the mean takes their weights.
    """

    filter_size: int = 4

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)

    @property
    def needs(self) -> Needs:
        """Hidden states: a forward, never a backward."""
        return Needs(hidden="mean", target_hidden=True)

    def scores(self, signals: Signals) -> Float[Tensor, " pool"]:
        """What the rule ranks by, the highest kept."""
        states, anchors = given(signals.hidden, "hidden"), given(signals.target_hidden, "target_hidden")
        return cosines(states, anchors) @ given(signals.target_share, "target_share")

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool; deterministic."""
        return keep_best(signals, self.scores(signals), self.filter_size, "similarity")
