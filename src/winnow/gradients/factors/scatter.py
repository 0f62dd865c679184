"""An embedding's gradients: output gradients scattered to the rows of a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.gradients.factors.base import Projection, Rows
from winnow.gradients.factors.dense import Formed


@dataclass(frozen=True)
class Scatter(Formed):
    """G_i[token] = sum of values_i[t] over the positions t that hold the token: an embedding's gradient.

    Args:
        tokens: row of the table used at each position.
        values: output gradients, zero where the position gives no gradient (``padding_idx``).
        size: number of rows of the table.
    """

    tokens: Int[Tensor, "batch tokens"]
    values: Float[Tensor, "batch tokens width"]
    size: int

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter."""
        return torch.Size((self.size, self.values.shape[2]))

    @property
    def dtype(self) -> torch.dtype:
        """Precision the gradients are held in."""
        return self.values.dtype

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.tokens)

    def support(self) -> Int[Tensor, " rows"]:
        """The distinct tokens of the batch."""
        return self.tokens.unique()

    def rows(self, rows: Rows) -> Float[Tensor, "batch rows width"]:
        """Per-example gradients of some rows of the table."""
        if isinstance(rows, slice):
            rows = torch.arange(self.size, device=self.tokens.device)[rows]
        place = torch.full((self.size,), len(rows), device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        index = place[self.tokens]
        flat = (index + len(rows) * torch.arange(len(self), device=rows.device)[:, None]).flatten()
        values, wanted = self.values.flatten(0, 1), (index < len(rows)).flatten()
        if not bool(wanted.all()):
            flat, values = flat[wanted], values[wanted]
        out = values.new_zeros(len(self) * len(rows), values.shape[1])
        return out.index_add_(0, flat, values).view(len(self), len(rows), self.values.shape[2])

    def combine(
        self, weight: Float[Tensor, " kept"], index: Int[Tensor, " kept"] | None = None
    ) -> Float[Tensor, "size width"]:
        """sum_i weight_i G_{index_i} by one scatter."""
        kept = self if index is None else self.examples(index)
        # A frequent token is added to many times over: half precision would lose the later ones.
        wide = torch.promote_types(self.dtype, torch.float32)
        values = kept.values * weight.to(wide)[:, None, None]
        out = values.new_zeros(self.shape)
        return out.index_add_(0, kept.tokens.flatten(), values.flatten(0, 1)).to(self.dtype)

    def inner(self, direction: Float[Tensor, "size width"]) -> Float[Tensor, " batch"]:
        """<G_i, V> by gathering the rows of V."""
        gathered = direction.to(self.dtype)[self.tokens]
        return torch.linalg.vecdot(gathered.flatten(1), self.values.flatten(1))

    def scaled(self, scale: Float[Tensor, "size width"]) -> Scatter:
        """Scale o G_i; the scale of a token's row goes to each of its positions."""
        return Scatter(self.tokens, self.values * scale[self.tokens], self.size)

    def examples(self, index: Rows) -> Scatter:
        """The gradients of some of the examples."""
        return Scatter(self.tokens[index], self.values[index], self.size)

    def to(self, dtype: torch.dtype) -> Scatter:
        """The same gradients in another precision."""
        return Scatter(self.tokens, self.values.to(dtype), self.size)

    def times(self, scalar: float) -> Scatter:
        """Scalar G_i."""
        return Scatter(self.tokens, self.values * scalar, self.size)

    def scale_sides(self, row: Float[Tensor, " rows"], column: Float[Tensor, " columns"]) -> Scatter:
        """diag(row) G_i diag(column)."""
        return Scatter(self.tokens, self.values * row[self.tokens][:, :, None] * column, self.size)

    def multiply_right(self, matrix: Float[Tensor, "columns columns"]) -> Scatter:
        """G_i A."""
        return Scatter(self.tokens, self.values @ matrix, self.size)

    def multiplying(self, right: bool) -> float:
        """From the right, a product of every token's output gradient."""
        return float(self.values.numel() * self.shape[1]) if right else super().multiplying(right)

    def projected(self, projection: Projection) -> Float[Tensor, "batch kept_rows kept_columns"]:
        """R^T G_i Q by one scatter to the buckets."""
        if projection.rows is None:
            return projection.formed(self)
        signs, buckets = projection.rows.signs, projection.rows.buckets
        values = projection.fold_columns(self.values) * signs.to(self.dtype)[self.tokens][:, :, None]
        bucket = (self.tokens % buckets)[:, :, None].expand_as(values)
        return values.new_zeros(len(self), buckets, values.shape[2]).scatter_add_(1, bucket, values)

    def folded_columns(self, fold: Callable[[Tensor], Tensor]) -> Scatter:
        """The rows that are touched stay as they are: they are few."""
        return Scatter(self.tokens, fold(self.values), self.size)
