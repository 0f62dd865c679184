"""Gradients multiplied elementwise by one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.gradients.factors.base import Factor, Rows
from winnow.gradients.factors.dense import Dense


@dataclass(frozen=True)
class Scaled:
    """Gradients multiplied elementwise by one tensor: scale o G_i.

    Args:
        factor: the gradients.
        scale: multiplier of the parameter's shape.
    """

    factor: Factor
    scale: Float[Tensor, "*shape"]

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter."""
        return self.factor.shape

    @property
    def dtype(self) -> torch.dtype:
        """Precision the gradients are held in."""
        return self.factor.dtype

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.factor)

    def support(self) -> Int[Tensor, " rows"] | None:
        """Rows of the gradients below."""
        return self.factor.support()

    def rows(self, rows: Rows) -> Float[Tensor, "batch rows *rest"]:
        """Per-example gradients of some rows, scaled."""
        scale = self.scale if self.shape else self.scale[None]
        if isinstance(self.factor, Dense) and self.shape:
            return self.factor.values[:, rows] * scale[rows]  # no copy before
        return self.factor.rows(rows).mul_(scale[rows])

    def combine(
        self, weight: Float[Tensor, " kept"], index: Int[Tensor, " kept"] | None = None
    ) -> Float[Tensor, "*shape"]:
        """Scaled weighted sum."""
        return self.scale * self.factor.combine(weight, index)

    def inner(self, direction: Float[Tensor, "*shape"]) -> Float[Tensor, " batch"]:
        """<scale o G_i, V> = <G_i, scale o V>."""
        return self.factor.inner(self.scale * direction)

    def examples(self, index: Rows) -> Scaled:
        """The gradients of some of the examples."""
        return Scaled(self.factor.examples(index), self.scale)

    def to(self, dtype: torch.dtype) -> Scaled:
        """The same gradients in another precision."""
        return Scaled(self.factor.to(dtype), self.scale.to(dtype))
