"""CoLM: small sources whole, medoids of the rest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from winnow.choice.facility import distances, medoids
from winnow.selection import Selection
from winnow.selectors.base import candidates, check_filter_size, coherent, facts, given, keep
from winnow.signals import Needs, Signals


@dataclass
class CoLM:
    """Keep every candidate of small sources, and medoids of the optimizer's updates of all others.

    Needs: gram of updates (P^2), and meta (each candidate's source); no target task.
    Cost: scoring the pool once (forward and backward, per-example products), then training on the kept. Set
        scoring.layers=last:1 as baseline=colm does.
    Rule: a source is small if the pool has at most k / (number of sources in the pool) of it; S = all of the small
        sources and the greedy facility-location medoids of the rest under ||P g_i - P g_j||, k in all. w_i = 1.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
    Source: Nguyen et al. 2025, CoLM, ICLR, arXiv 2407.19580.
    Departures: exact gradients of the last block, where the paper estimates those of its last value projection by
        zeroth-order differences and keeps their largest entries. Euclidean distances. Whether a source is small is
        read off the pool at hand, not off the data set. P is the linearised Adam, without its momentum.
    """

    filter_size: int = 4

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)

    @property
    def needs(self) -> Needs:
        """K of the updates, and the sources."""
        return Needs(gram=2, meta=("source",))

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool; deterministic."""
        gram, sources = given(signals.gram, "gram"), facts(signals, "source")
        usable = coherent(gram, candidates(signals, self.filter_size))
        names = [sources[at] for at in usable.tolist()]
        counts = Counter(names)
        small = torch.tensor([counts[name] * len(counts) <= self.filter_size for name in names], dtype=torch.bool)
        whole, rest = usable[small], usable[~small]
        chosen = rest[medoids(distances(gram[rest][:, rest]), self.filter_size - len(whole))]
        return keep(
            signals,
            torch.cat([whole, chosen]),
            small=float(len(whole)),
            short=float(len(usable) < self.filter_size),
        )
