"""CRAIG: medoids of the gradients, weighted by how many they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from winnow.choice.facility import cluster_sizes, distances, medoids
from winnow.selection import Selection
from winnow.selectors.base import candidates, check_filter_size, coherent, given, keep
from winnow.signals import Needs, Signals


@dataclass
class Craig:
    """Keep k medoids of the candidates' gradients; each stands for the candidates nearest to it.

    Needs: gram in raw gradients (P^0); no target task.
    Cost: scoring the pool once (forward and backward, per-example products), then training on the kept.
    Rule: S = greedy argmax of sum_i max_{j in S} (c - ||g_i - g_j||), c the largest distance; w_j proportional to the
        number of candidates whose nearest medoid is j, of mean one.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
    Source: Mirzasoleiman et al. 2020, CRAIG, ICML, arXiv 1906.01827.
    Departures: at every step and within its pool; gradients of all scored parameters, where the paper bounds distances
        by the last layer's. Weights are rescaled to mean one so that the step size is the optimizer's. A medoid that
        only repeats an earlier one stands for nobody and is left out.
    """

    filter_size: int = 4

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)

    @property
    def needs(self) -> Needs:
        """K, raw."""
        return Needs(gram=0)

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool; deterministic."""
        gram = given(signals.gram, "gram")
        usable = coherent(gram, candidates(signals, self.filter_size))
        short = float(len(usable) < self.filter_size)
        if len(usable) == 0:
            return keep(signals, usable, short=short)
        distance = distances(gram[usable][:, usable])
        chosen = medoids(distance, self.filter_size)
        size = cluster_sizes(distance, chosen).double()
        chosen, size = chosen[size > 0], size[size > 0]
        mean = float(distance[:, chosen].min(1).values.mean())
        return keep(signals, usable[chosen], size / size.mean(), distance=mean, short=short)
