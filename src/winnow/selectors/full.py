"""Every candidate: plain training on the whole pool."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from winnow.selection import Selection
from winnow.selectors.base import candidates, keep
from winnow.signals import Needs, Signals


@dataclass
class Full:
    """Train on every candidate, uniformly: the upper bound in cost, not a budgeted method.

    Needs: nothing; no target task.
    Cost: no scoring; trains on the whole pool, data.pool_size / filter_size times the others' budget.
    Rule: S = C, w_i = 1.
    Knobs:
        none.
    Source: plain training.
    Departures: none.
    """

    @property
    def needs(self) -> Needs:
        """Nothing."""
        return Needs()

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Keep every valid candidate."""
        return keep(signals, candidates(signals, 0))
