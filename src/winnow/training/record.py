"""What one step saw and did."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from winnow.selection import Selection
from winnow.signals import Signals


@dataclass(frozen=True)
class StepRecord:
    """What one step saw and did, for the records; callbacks read it as ``module.last_step``.

    Args:
        step: pools seen before this one.
        meta: ids, sources, hidden labels and texts of the pool.
        signals: what the selector was given.
        selection: what it chose and the update used.
        losses: per-example losses as far as they are known, NaN elsewhere.
        metrics: scalars of the step.
    """

    step: int
    meta: dict[str, list[str]]
    signals: Signals
    selection: Selection
    losses: Float[Tensor, " pool"]
    metrics: dict[str, float]
