"""Train on everything that arrives."""

from __future__ import annotations

import torch

from winnow.selection import Selection
from winnow.signals import Needs, Signals


class Full:
    """Keeps every valid candidate with weight one: the upper bound in cost, not a budgeted method.

    Needs: nothing; no candidate is scored.

    Cost: no extra pass.

    Rule: S = C, w_i = 1.

    Knobs: none.

    Source: plain training.

    Departures: none.
    """

    def __init__(self) -> None:
        self.needs = Needs()

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Keep every valid candidate.

        Args:
            signals: only ``valid`` is used.
            generator: unused.

        Returns:
            All valid candidates with weight one.
        """
        return Selection.of(signals.valid.nonzero().squeeze(1))
