"""Seeded two-sided count sketches of per-example gradients."""

from __future__ import annotations

import zlib

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.gradients.factors.base import Factor, Rows
from winnow.products.fold import Fold, folded
from winnow.products.gram import chunks


class Sketch:
    """S(G) = R^T G Q for the gradients of one matrix: linear, and <S(G), S(H)> is <G, H> on average.

    R and Q are count sketches (Charikar et al. 2002) with buckets in turn: row or column i goes to bucket
    i mod n with a random sign. n is the first number from ``dim`` to 5/4 ``dim`` that divides the side, and
    ``dim`` if none does. An outer product is folded before it is multiplied out: linear in tokens, G is never
    formed, and a fold is no multiplication by a matrix. A side no longer than ``dim`` stays as it is. The
    relative error of an inner product falls as 1 / sqrt(dim), as it does for dense random signs.

    Args:
        name: the parameter; with ``seed`` it decides the signs.
        shape: rows and columns.
        dim: the least number of buckets of a side.
        seed: of the signs.
        device: where the signs live.
        dtype: precision of the sketches.
        chunk_elements: gradients without factors are formed at most this many numbers at a time.
    """

    def __init__(
        self,
        name: str,
        shape: torch.Size,
        dim: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        chunk_elements: int = 2**23,
    ) -> None:
        self.chunk_elements = chunk_elements
        # torch's CPU generator takes 32 bits of a seed.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))

        def side(length: int) -> Fold | None:
            if length <= dim:
                return None
            whole = (buckets for buckets in range(dim, dim + dim // 4 + 1) if length % buckets == 0)
            bits = torch.randint(0, 2, (length,), generator=generator, dtype=torch.int8)
            return Fold((2 * bits.to(dtype) - 1).to(device), next(whole, dim))

        self.rows: Fold | None = side(shape[0])
        self.columns: Fold | None = side(shape[1])

    def factor(self, factor: Factor) -> Float[Tensor, "batch numbers"]:
        """Sketches of every example's gradient.

        Args:
            factor: the gradients.

        Returns:
            One flat sketch per example.
        """
        return factor.projected(self).flatten(1)

    def tensor(self, gradient: Float[Tensor, "rows columns"]) -> Float[Tensor, " numbers"]:
        """The sketch of one gradient.

        Args:
            gradient: a matrix.

        Returns:
            Its flat sketch.
        """
        return self.fold_columns(gradient if self.rows is None else self.rows.first(gradient)).flatten()

    def fold_columns(
        self, tensor: Float[Tensor, "*middle columns"], scale: Float[Tensor, " columns"] | None = None
    ) -> Float[Tensor, "*middle numbers"]:
        """G diag(scale) Q.

        Args:
            tensor: with the columns of the parameter in its last dimension.
            scale: multipliers of the columns; ones if None.

        Returns:
            The folded tensor.
        """
        return folded(self.columns, tensor, scale)

    def fold_rows(
        self, tensor: Float[Tensor, "*middle rows"], scale: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*middle numbers"]:
        """R^T diag(scale) of a tensor with the rows of the parameter in its last dimension.

        Args:
            tensor: with the rows in its last dimension.
            scale: multipliers of the rows; ones if None.

        Returns:
            The folded tensor.
        """
        return folded(self.rows, tensor, scale)

    def formed(self, factor: Factor) -> Float[Tensor, "batch kept_rows kept_columns"]:
        """The sketch of gradients that are formed, some rows at a time.

        Args:
            factor: gradients without a better way.

        Returns:
            Sketches that are still matrices.
        """
        pieces = chunks(factor, self.chunk_elements)
        found = [self._fold_block(self.fold_columns(factor.rows(rows)), rows) for rows in pieces]
        return torch.cat(found, 1) if self.rows is None else torch.stack(found).sum(0)

    def _fold_block(
        self, block: Float[Tensor, "batch some columns"], rows: Rows
    ) -> Float[Tensor, "batch kept columns"]:
        """R^T restricted to some rows, times a block of them."""
        if self.rows is None:
            return block
        signed = block * self.rows.signs.to(block.dtype)[rows][:, None]
        bucket = torch.arange(len(self.rows.signs), device=block.device)[rows] % self.rows.buckets
        return block.new_zeros(len(block), self.rows.buckets, block.shape[2]).index_add_(1, bucket, signed)
