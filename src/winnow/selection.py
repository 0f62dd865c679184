"""A selection: which candidates to train on, and with what weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """Candidates kept from a pool, with weights.

    The update uses the gradient (1/k) sum_i weight_i g_i over the k kept candidates, so weights of
    mean one leave the step size to the optimizer.

    Args:
        index: positions in the pool, strictly increasing; may be empty (no update this step).
        weight: weight of each kept candidate, finite and >= 0.
        diagnostics: scalars worth logging about how the choice was made.

    Raises:
        ValueError: index is not strictly increasing or is negative, shapes differ, or a weight is
            negative or not finite.
    """

    index: Int[Tensor, " kept"]
    weight: Float[Tensor, " kept"]
    diagnostics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.index.shape != self.weight.shape or self.index.ndim != 1:
            raise ValueError(
                f"index {tuple(self.index.shape)} and weight {tuple(self.weight.shape)} must be one vector each"
            )
        if len(self.index) and (self.index[0] < 0 or (self.index.diff() <= 0).any()):
            raise ValueError(f"index must be non-negative and strictly increasing, got {self.index.tolist()}")
        if not torch.isfinite(self.weight).all() or (self.weight < 0).any():
            raise ValueError(f"weights must be finite and >= 0, got {self.weight.tolist()}")

    @classmethod
    def of(
        cls,
        index: Int[Tensor, " kept"],
        weight: Float[Tensor, " kept"] | None = None,
        diagnostics: Mapping[str, float] | None = None,
    ) -> Selection:
        """Build a selection from positions in any order; weights default to one.

        Args:
            index: distinct positions in the pool.
            weight: weight of each, in the same order; ones when omitted.
            diagnostics: scalars worth logging.

        Returns:
            The selection in pool order.
        """
        order = index.argsort()
        if weight is None:
            weight = torch.ones(len(index), device=index.device)
        return cls(index[order], weight[order], dict(diagnostics or {}))

    def __len__(self) -> int:
        """How many candidates are kept, k."""
        return len(self.index)

    @property
    def effective_size(self) -> float:
        """Kish's effective sample size (sum w)^2 / sum w^2; 0 for an empty selection."""
        square = float(self.weight.square().sum())
        return float(self.weight.sum()) ** 2 / square if square > 0 else 0.0

    def dense(self, size: int) -> Float[Tensor, " pool"]:
        """Weights over the whole pool, zero where nothing was kept.

        Args:
            size: size of the pool, B.

        Returns:
            Vector of B weights.
        """
        return self.weight.new_zeros(size).index_copy(0, self.index, self.weight)
