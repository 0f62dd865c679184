"""The target's negative log-likelihood, watched while training goes on."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from winnow.data import Target


class TargetNLL:
    """Mean NLL of every target's validation examples, a batch at a time."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, int]] = {}

    def add(self, target: int, losses: Float[Tensor, " batch"], active: Bool[Tensor, " batch"]) -> None:
        """Add a batch.

        Args:
            target: number of the target.
            losses: of its examples, in nats.
            active: which of them have a response.
        """
        total, count = self._sums.get(target, (0.0, 0))
        self._sums[target] = (total + float(losses[active].double().sum()), count + int(active.sum()))

    def take(self, targets: Sequence[Target]) -> tuple[float | None, dict[str, float]]:
        """The means since the last call.

        Args:
            targets: for their names and weights.

        Returns:
            The weighted mean over targets, None without examples, and each target's metric where there are several.
        """
        means = {number: total / max(count, 1) for number, (total, count) in self._sums.items()}
        self._sums = {}
        if not means:
            return None, {}
        weights = {number: targets[number].weight if number < len(targets) else 1.0 for number in means}
        mean = sum(weights[number] * means[number] for number in means) / sum(weights.values())
        if len(means) == 1:
            return mean, {}
        return mean, {f"target/{targets[number].name}/val_nll": means[number] for number in means}
