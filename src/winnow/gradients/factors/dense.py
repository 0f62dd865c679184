"""Gradients stored as they are, and any gradients times one tensor, elementwise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.gradients.factors.base import Factor, Rows

LARGE = 2**14
"""On a CPU, gradients of at least this many numbers are combined one at a time, without copying the chosen ones."""


class Formed(Factor):
    """Maps of gradients by forming them, for kinds and cases without a better way."""

    def times(self, scalar: float) -> Factor:
        """Scalar G_i."""
        return Dense(self.block(slice(None)) * scalar)

    def scaled(self, scale: Float[Tensor, "*shape"]) -> Factor:
        """Scale o G_i, still factored below the scale."""
        return Scaled(self, scale)

    def scale_sides(self, row: Float[Tensor, " rows"], column: Float[Tensor, " columns"]) -> Factor:
        """diag(row) G_i diag(column), still factored below the scale."""
        return Scaled(self, row[:, None] * column)

    def multiply_left(self, matrix: Float[Tensor, "rows rows"]) -> Factor:
        """A G_i, dense."""
        return Dense(matrix @ self.block(slice(None)))

    def multiply_right(self, matrix: Float[Tensor, "columns columns"]) -> Factor:
        """G_i A, dense."""
        return Dense(self.block(slice(None)) @ matrix)


@dataclass(frozen=True)
class Dense(Formed):
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

    def rows(self, rows: Rows) -> Float[Tensor, "batch rows *rest"]:
        """Per-example gradients of some rows."""
        return self.block(rows).clone()

    def block(self, rows: Rows) -> Float[Tensor, "batch rows *rest"]:
        """A view of some rows."""
        values = self.values if self.shape else self.values[:, None]
        return values[:, rows]

    def times(self, scalar: float) -> Dense:
        """Scalar G_i."""
        return Dense(self.values * scalar)

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
        return self.values.reshape(len(self), self.shape.numel()) @ direction.to(self.dtype).reshape(-1)

    def examples(self, index: Rows) -> Dense:
        """The gradients of some of the examples."""
        return Dense(self.values[index])

    def to(self, dtype: torch.dtype) -> Dense:
        """The same gradients in another precision."""
        return Dense(self.values.to(dtype))


@dataclass(frozen=True)
class Scaled(Formed):
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

    def times(self, scalar: float) -> Scaled:
        """The scalar goes to the gradients below."""
        return Scaled(self.factor.times(scalar), self.scale)

    def scale_sides(self, row: Float[Tensor, " rows"], column: Float[Tensor, " columns"]) -> Scaled:
        """The sides go to the gradients below."""
        return Scaled(self.factor.scale_sides(row, column), self.scale)

    def elementwise_of(self, factor: Factor) -> bool:
        """Of the gradients below."""
        return self.factor is factor

    def over(self, factor: Factor) -> Scaled:
        """The same scale over other gradients."""
        return Scaled(factor, self.scale)
