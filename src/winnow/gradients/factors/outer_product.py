"""Per-example gradients of a linear map, as the two factors that backpropagation hands over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.gradients.factors.base import Factor, Projection, Rows
from winnow.gradients.factors.dense import Formed

LONG = 128
"""On a CPU, examples of at least this many tokens are combined one matmul each, or one for neighbours of one weight.

Shorter ones, and all on other devices, are combined in one matmul of copies.
"""


@dataclass(frozen=True)
class OuterProduct(Formed):
    """G_i = diag(row) (sum_t left_i[t] right_i[t]^T) diag(column): the gradient of a linear map, never stored.

    Args:
        left: the side that indexes the parameter's rows (output gradients for ``nn.Linear``, inputs
            for HF's transposed ``Conv1D``).
        right: the side that indexes its columns.
        row: multipliers of the rows; ones if None.
        column: multipliers of the columns; ones if None.
    """

    left: Float[Tensor, "batch tokens rows"]
    right: Float[Tensor, "batch tokens columns"]
    row: Float[Tensor, " rows"] | None = None
    column: Float[Tensor, " columns"] | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter."""
        return torch.Size((self.left.shape[2], self.right.shape[2]))

    @property
    def dtype(self) -> torch.dtype:
        """Precision the factors are held in."""
        return self.left.dtype

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.left)

    def rows(self, rows: Rows) -> Float[Tensor, "batch rows columns"]:
        """Per-example gradients of some rows; one batched matmul."""
        block = self.left[:, :, rows].transpose(1, 2) @ self.right
        if self.row is not None:
            block *= self.row[rows, None]
        if self.column is not None:
            block *= self.column
        return block

    def combine(
        self, weight: Float[Tensor, " kept"], index: Int[Tensor, " kept"] | None = None
    ) -> Float[Tensor, "rows columns"]:
        """sum_i weight_i G_{index_i}, without a per-example gradient."""
        left, right = self.left, self.right
        if left.device.type == "cpu" and left.dtype in (torch.float32, torch.float64) and left.shape[1] >= LONG:
            # No copies of the factors. Half precision would be rounded at every addition.
            out = left.new_empty(self.shape)
            for number, (rows, share) in enumerate(_runs(weight.tolist(), None if index is None else index.tolist())):
                tokens, others = left[rows].flatten(0, 1), right[rows].flatten(0, 1)
                out.addmm_(tokens.T, others, alpha=share, beta=min(number, 1))
            return self._scale(out if len(weight) else out.zero_())
        if index is not None:
            left, right = left[index], right[index]
        # The matmul adds in float32 whatever the factors are; the weights must not be rounded to theirs before.
        scale = weight.to(torch.promote_types(left.dtype, torch.float32))[:, None, None]
        if left.shape[2] <= right.shape[2]:
            left = (left * scale).to(left.dtype)
        else:
            right = (right * scale).to(right.dtype)
        return self._scale(left.flatten(0, 1).T @ right.flatten(0, 1))

    def inner(self, direction: Float[Tensor, "rows columns"]) -> Float[Tensor, " batch"]:
        """<G_i, V> = sum_t left_i[t]^T V right_i[t]."""
        direction = self._scale(direction.to(self.dtype))
        if self.left.shape[2] >= self.right.shape[2]:
            product, other = self.left @ direction, self.right
        else:
            product, other = self.right @ direction.T, self.left
        return torch.linalg.vecdot(product.flatten(1), other.flatten(1))

    def examples(self, index: Rows) -> OuterProduct:
        """The gradients of some of the examples."""
        return OuterProduct(self.left[index], self.right[index], self.row, self.column)

    def to(self, dtype: torch.dtype) -> OuterProduct:
        """The same factors in another precision."""
        if dtype == self.dtype:
            return self
        row, column = (None if side is None else side.to(dtype) for side in (self.row, self.column))
        return OuterProduct(self.left.to(dtype), self.right.to(dtype), row, column)

    def times(self, scalar: float) -> OuterProduct:
        """Scalar G_i, with the tokens' factors as they are."""
        row = self.left.new_full(self.shape[:1], scalar) if self.row is None else scalar * self.row
        return OuterProduct(self.left, self.right, row, self.column)

    def scale_sides(self, row: Float[Tensor, " rows"], column: Float[Tensor, " columns"]) -> OuterProduct:
        """diag(row) G_i diag(column), with the tokens' factors as they are."""
        row = row if self.row is None else row * self.row
        return OuterProduct(self.left, self.right, row, column if self.column is None else column * self.column)

    def multiply_left(self, matrix: Float[Tensor, "rows rows"]) -> OuterProduct:
        """A G_i."""
        left, right = self.sides()
        return OuterProduct(left @ matrix, right)

    def multiply_right(self, matrix: Float[Tensor, "columns columns"]) -> OuterProduct:
        """G_i A."""
        left, right = self.sides()
        return OuterProduct(left, right @ matrix)

    def multiplying(self, right: bool) -> float:
        """A product of every token's own side."""
        return float(len(self) * self.length * self.shape[1 if right else 0] ** 2)

    @property
    def length(self) -> int:
        """Tokens T."""
        return self.left.shape[1]

    @property
    def forming(self) -> float:
        """B T d p."""
        return float(len(self) * self.length * self.shape.numel())

    @property
    def paired(self) -> bool:
        """There is nothing else."""
        return True

    @property
    def factored(self) -> bool:
        """Both sides are folded before they are multiplied out."""
        return True

    def projected(self, projection: Projection) -> Float[Tensor, "batch kept_rows kept_columns"]:
        """R^T G_i Q, linear in tokens."""
        left = projection.fold_rows(self.left, self.row)
        return left.transpose(1, 2) @ projection.fold_columns(self.right, self.column)

    def elementwise_of(self, factor: Factor) -> bool:
        """Of gradients with the same tokens' factors."""
        return isinstance(factor, OuterProduct) and self.left is factor.left and self.right is factor.right

    def sides(self) -> tuple[Float[Tensor, "batch tokens rows"], Float[Tensor, "batch tokens columns"]]:
        """Factors with the multipliers in them.

        Returns:
            left_i[t] o row and right_i[t] o column.
        """
        left = self.left if self.row is None else self.left * self.row
        return left, self.right if self.column is None else self.right * self.column

    def _scale(self, matrix: Tensor) -> Tensor:
        if self.row is not None:
            matrix = matrix * self.row[:, None]
        return matrix if self.column is None else matrix * self.column


def _runs(shares: list[float], index: list[int] | None) -> Iterator[tuple[slice, float]]:
    """Examples that are neighbours and have the same weight, as slices."""
    chosen = range(len(shares)) if index is None else index
    start = 0
    for end in range(1, len(shares) + 1):
        if end == len(shares) or shares[end] != shares[start] or chosen[end] != chosen[end - 1] + 1:
            yield slice(chosen[start], chosen[end - 1] + 1), shares[start]
            start = end
