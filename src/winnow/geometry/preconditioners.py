"""The forms that P of one parameter takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.geometry.base import Preconditioner
from winnow.gradients.factors.base import Factor


@dataclass(frozen=True)
class Identity:
    """P = I."""

    def tensor(self, gradient: Float[Tensor, "*shape"], power: float) -> Float[Tensor, "*shape"]:
        """The gradient itself."""
        return gradient

    def factor(self, factor: Factor, power: float) -> Factor:
        """The gradients themselves."""
        return factor


@dataclass(frozen=True)
class Diagonal:
    """P = diag(diagonal).

    Args:
        diagonal: entries >= 0, of the parameter's shape.
    """

    diagonal: Float[Tensor, "*shape"]

    def power(self, power: float) -> Float[Tensor, "*shape"]:
        """Entries of P^power.

        Args:
            power: any real.

        Returns:
            A tensor of the parameter's shape.
        """
        return _power(self.diagonal, power)

    def tensor(self, gradient: Float[Tensor, "*shape"], power: float) -> Float[Tensor, "*shape"]:
        """P^power o gradient."""
        return gradient if power == 0 else gradient * self.power(power).to(gradient.dtype)

    def factor(self, factor: Factor, power: float) -> Factor:
        """P^power o G_i."""
        if power == 0:
            return factor
        scale = self.power(power).to(factor.dtype)
        return factor.scaled(scale)


@dataclass(frozen=True)
class RankOne:
    """P multiplies entry (r, c) by row_r column_c, so it goes into the factors of an outer product.

    Args:
        row: multipliers >= 0 of the rows of a matrix.
        column: multipliers >= 0 of its columns.
    """

    row: Float[Tensor, " rows"]
    column: Float[Tensor, " columns"]

    def tensor(self, gradient: Float[Tensor, "rows columns"], power: float) -> Float[Tensor, "rows columns"]:
        """P^power o gradient."""
        if power == 0:
            return gradient
        row, column = (_power(side, power).to(gradient.dtype) for side in (self.row, self.column))
        return gradient * row[:, None] * column

    def factor(self, factor: Factor, power: float) -> Factor:
        """P^power o G_i."""
        if power == 0:
            return factor
        row, column = (_power(side, power).to(factor.dtype) for side in (self.row, self.column))
        return factor.scale_sides(row, column)


@dataclass(frozen=True)
class OneSided:
    """P G = A G, or G A where ``right``, for a symmetric positive semi-definite A = Q diag(values) Q^T.

    Args:
        values: eigenvalues of A, >= 0.
        vectors: eigenvectors Q, in columns.
        right: A multiplies from the right.
    """

    values: Float[Tensor, " side"]
    vectors: Float[Tensor, "side side"]
    right: bool

    def power(self, power: float) -> Float[Tensor, "side side"]:
        """A^power.

        Args:
            power: any real.

        Returns:
            A symmetric matrix.
        """
        return (self.vectors * _power(self.values, power)) @ self.vectors.T

    def tensor(self, gradient: Float[Tensor, "rows columns"], power: float) -> Float[Tensor, "rows columns"]:
        """A^power G, or G A^power."""
        if power == 0:
            return gradient
        matrix = self.power(power).to(gradient.dtype)
        return gradient @ matrix if self.right else matrix @ gradient

    def factor(self, factor: Factor, power: float) -> Factor:
        """A^power G_i, or G_i A^power."""
        if power == 0:
            return factor
        matrix = self.power(power).to(factor.dtype)
        return factor.multiply_right(matrix) if self.right else factor.multiply_left(matrix)


@dataclass(frozen=True)
class Multiple:
    """P = scale times another P.

    Args:
        inner: the other.
        scale: a number >= 0.
    """

    inner: Preconditioner
    scale: float

    def tensor(self, gradient: Float[Tensor, "*shape"], power: float) -> Float[Tensor, "*shape"]:
        """P^power applied to one gradient."""
        return gradient if power == 0 else self.inner.tensor(gradient, power) * self.scale**power

    def factor(self, factor: Factor, power: float) -> Factor:
        """P^power applied to the gradient of every example."""
        return factor if power == 0 else self.inner.factor(factor.times(self.scale**power), power)


def scaled(preconditioner: Preconditioner, scale: float) -> Preconditioner:
    """A preconditioner times a number, without a needless layer.

    Args:
        preconditioner: any.
        scale: a number >= 0.

    Returns:
        The same preconditioner if the scale is one.
    """
    if scale == 1:
        return preconditioner
    if isinstance(preconditioner, Diagonal):
        return Diagonal(preconditioner.diagonal * scale)
    if isinstance(preconditioner, RankOne):
        return RankOne(preconditioner.row * scale, preconditioner.column)
    if isinstance(preconditioner, OneSided):
        return OneSided(preconditioner.values * scale, preconditioner.vectors, preconditioner.right)
    return Multiple(preconditioner, scale)


def _power(values: Tensor, power: float) -> Tensor:
    if power == 0.5:
        return torch.sqrt(values)
    return values if power == 1 else values**power
