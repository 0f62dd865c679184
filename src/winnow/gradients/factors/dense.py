"""Gradients stored as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.gradients.factors.base import Rows

LARGE = 2**14
"""On a CPU, gradients of at least so many numbers are combined one at a time, without a copy of the chosen ones."""


@dataclass(frozen=True)
class Dense:
    """Gradients stored as they are: biases, norms, and whatever has no factored form.

    Args:
        values: one gradient per example.
    """

    values: Float[Tensor, " batch *shape"]

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter."""
        return self.values.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        """Precision the gradients are held in."""
        return self.values.dtype

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.values)

    def support(self) -> None:
        """Every row is touched."""

    def rows(self, rows: Rows) -> Float[Tensor, "batch rows *rest"]:
        """Per-example gradients of some rows."""
        values = self.values if self.shape else self.values[:, None]
        return values[:, rows].clone()

    def combine(
        self, weight: Float[Tensor, " kept"], index: Int[Tensor, " kept"] | None = None
    ) -> Float[Tensor, "*shape"]:
        """sum_i weight_i G_{index_i}."""
        wide = torch.promote_types(self.dtype, torch.float32)
        if self.values.device.type == "cpu" and self.shape.numel() >= LARGE:
            out = self.values.new_zeros(self.shape, dtype=wide)
            rows = range(len(self)) if index is None else index.tolist()
            for row, share in zip(rows, weight.tolist(), strict=True):
                out.add_(self.values[row], alpha=share)
            return out.to(self.dtype)
        values = self.values if index is None else self.values[index]
        return torch.tensordot(weight.to(wide), values.to(wide), dims=1).to(self.dtype)

    def inner(self, direction: Float[Tensor, "*shape"]) -> Float[Tensor, " batch"]:
        """<G_i, V>."""
        return self.values.reshape(len(self), -1) @ direction.to(self.dtype).reshape(-1)

    def examples(self, index: Rows) -> Dense:
        """The gradients of some of the examples."""
        return Dense(self.values[index])

    def to(self, dtype: torch.dtype) -> Dense:
        """The same gradients in another precision."""
        return Dense(self.values.to(dtype))
