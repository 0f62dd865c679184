"""What scoring and updating cost, read once a step."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from winnow.lm.forward import Forward
from winnow.lm.layout import Batch
from winnow.lm.passes import FORWARD, Pass
from winnow.products.cost import Work
from winnow.scorer.flops import Flops, Rates
from winnow.scorer.one_pass import Update
from winnow.scorer.pool_pass import PoolPass
from winnow.scorer.reference import Reference


class Meter:
    """What scoring and updating cost since it was last read.

    Args:
        passing: runs the pools.
        update: makes the updates.
        reference: a second model that gives losses.
        optimizer: makes the steps.
    """

    def __init__(self, passing: PoolPass, update: Update, reference: Reference, optimizer: Any) -> None:
        self._passing, self._update, self._reference, self._optimizer = passing, update, reference, optimizer
        self._forward = passing.scope.forward
        self._rates = Rates(self._forward, passing.scope.parameters)
        self._mean = Forward(self._forward.model, "mean", self._forward.packed)
        self._other: Rates | None = None
        self.adds = False
        """Whether calls add up until they are read."""

    def begin(self) -> None:
        """A pool is scored: what nobody has read of the last one is dropped, unless calls are to add up."""
        if not self.adds:
            self._forward.passes.clear()

    def evaluated(self, batch: Batch) -> tuple[Float[Tensor, " batch"], float]:
        """Losses of an evaluation's batch, in nats per token, and operations, which :meth:`take` does not count."""
        losses = self._mean.laid_losses(batch, FORWARD)
        spent = sum(self._rates.forward(one) for one in self._mean.passes)
        self._mean.passes.clear()
        return losses, spent

    def take(self, stepped: bool) -> tuple[Flops, list[Pass]]:
        """Read it, and begin anew.

        Args:
            stepped: whether the optimizer has made a step.

        Returns:
            Operations, and the passes they are of.
        """
        flops, passes = Flops(), list(self._forward.passes)
        self._rates.add(flops, passes)
        other = self._reference.forward
        if other is not None:
            self._other = self._other or Rates(other, {})
            self._other.add(flops, other.passes)
            passes += other.passes
            other.passes.clear()
        flops.products += 2 * self._passing.work.multiplications
        flops.weights += 2 * self._update.multiplications
        if stepped:
            flops.optimizer += step_flops(getattr(self._optimizer, "optimizer", self._optimizer))
        self._forward.passes.clear()
        self._passing.work = Work(self._passing.scope.mode.sketch_dim)
        self._update.multiplications = 0.0
        return flops, passes


def step_flops(optimizer: Any) -> float:
    """Matrix products of an optimizer's step: Muon's Newton-Schulz iterations; others have none.

    Args:
        optimizer: any.

    Returns:
        Operations; of an m x n matrix, m <= n, 2 m m (2 n + m) an iteration.
    """
    total = 0.0
    for group in getattr(optimizer, "param_groups", []):
        if group.get("rule", "muon") != "muon" or "ns_steps" not in group:
            continue
        for parameter in group["params"]:
            if parameter.grad is not None and parameter.ndim == 2:
                small, large = sorted(parameter.shape)
                total += group["ns_steps"] * 2.0 * small * small * (2 * large + small)
    return total
