"""A user's selector from outside the package, slow enough to be killed in the middle."""

from __future__ import annotations

import time

import torch

from winnow.selection import Selection
from winnow.selectors import FilterWeight
from winnow.signals import Signals


class SlowFilterWeight:
    """Filter-then-weight with one more candidate at random, after a pause."""

    def __init__(self, filter_size: int = 4, seconds: float = 0.0) -> None:
        self.inner, self.seconds = FilterWeight(filter_size=filter_size), seconds
        self.needs = self.inner.needs

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        time.sleep(self.seconds)
        chosen = self.inner(signals, generator)
        extra = int(torch.randint(len(signals), (1,), generator=generator))
        if extra in chosen.index.tolist():
            return chosen
        index = torch.cat([chosen.index, torch.tensor([extra])])
        return Selection.of(index, torch.cat([chosen.weight, torch.ones(1)]))
