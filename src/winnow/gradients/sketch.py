"""Seeded two-sided count sketches of per-example gradients."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.gradients.factors import Factor, Rows, Scatter, Sum
from winnow.gradients.outer_product import OuterProduct

BLOCK = 2**19
"""On a CPU a side is folded this many numbers at a time: products are still in the cache when they are added."""

WORTH_IT = 2**18
"""On a CPU a side of at least as many numbers is folded by a convolution, whose call costs more."""

MKLDNN = torch.backends.mkldnn.is_available()
"""Others' depthwise convolution is slow."""


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
    """

    def __init__(
        self, name: str, shape: torch.Size, dim: int, seed: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        # torch's CPU generator takes 32 bits of a seed.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))

        def side(length: int) -> Fold | None:
            if length <= dim:
                return None
            whole = (buckets for buckets in range(dim, dim + dim // 4 + 1) if length % buckets == 0)
            bits = torch.randint(0, 2, (length,), generator=generator, dtype=torch.int8)
            return Fold((2 * bits.to(dtype) - 1).to(device), next(whole, dim))

        self.rows, self.columns = side(shape[0]), side(shape[1])

    def factor(self, factor: Factor, chunk_elements: int) -> Float[Tensor, "batch numbers"]:
        """Sketches of every example's gradient.

        Args:
            factor: the gradients.
            chunk_elements: gradients that are not outer products or scatters are formed at most this
                many numbers at a time.

        Returns:
            One flat sketch per example.
        """
        return self._project(factor, chunk_elements).flatten(1)

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
        return _apply(self.columns, tensor, scale)

    def _project(self, factor: Factor, chunk_elements: int) -> Tensor:
        if isinstance(factor, OuterProduct):
            left = _apply(self.rows, factor.left, factor.row)
            return left.transpose(1, 2) @ self.fold_columns(factor.right, factor.column)
        if isinstance(factor, Scatter) and self.rows is not None:
            values = self.fold_columns(factor.values) * self.rows.signs.to(factor.dtype)[factor.tokens][:, :, None]
            bucket = (factor.tokens % self.rows.buckets)[:, :, None].expand_as(values)
            return values.new_zeros(len(factor), self.rows.buckets, values.shape[2]).scatter_add_(1, bucket, values)
        if isinstance(factor, Sum):
            return torch.stack([self._project(part, chunk_elements) for part in factor.parts]).sum(0)
        pieces = chunks(factor, chunk_elements)
        found = [self._fold_rows(self.fold_columns(factor.rows(rows)), rows) for rows in pieces]
        return torch.cat(found, 1) if self.rows is None else torch.stack(found).sum(0)

    def _fold_rows(self, block: Float[Tensor, "batch some columns"], rows: Rows) -> Float[Tensor, "batch kept columns"]:
        """R^T restricted to some rows, times a block of them."""
        if self.rows is None:
            return block
        signed = block * self.rows.signs.to(block.dtype)[rows][:, None]
        bucket = torch.arange(len(self.rows.signs), device=block.device)[rows] % self.rows.buckets
        return block.new_zeros(len(block), self.rows.buckets, block.shape[2]).index_add_(1, bucket, signed)


@dataclass(frozen=True)
class Fold:
    """Count sketch of a dimension: entry i, times its sign, is added to bucket i mod ``buckets``.

    Args:
        signs: +1 or -1.
        buckets: how many there are, no more than entries.
    """

    signs: Float[Tensor, " side"]
    buckets: int

    def __call__(
        self, tensor: Float[Tensor, "*middle side"], scale: Float[Tensor, " side"] | None = None
    ) -> Float[Tensor, "*middle numbers"]:
        """Fold the last dimension.

        Args:
            tensor: any.
            scale: multipliers of the last dimension; ones if None.

        Returns:
            A tensor whose last dimension is the buckets.
        """
        if self._convolves(tensor):
            return self._convolved(tensor, scale)
        signs = self.signs.to(tensor.dtype)
        return self._added(tensor, signs if scale is None else signs * scale)

    def first(self, matrix: Float[Tensor, "side columns"]) -> Float[Tensor, "numbers columns"]:
        """Fold the first dimension.

        Args:
            matrix: any.

        Returns:
            A matrix of as many rows as there are buckets.
        """
        whole = len(matrix) // self.buckets * self.buckets
        signed = matrix * self.signs.to(matrix.dtype)[:, None]
        out = signed[:whole].unflatten(0, (-1, self.buckets)).sum(0)
        out[: len(matrix) - whole] += signed[whole:]
        return out

    def _convolves(self, tensor: Tensor) -> bool:
        return (
            tensor.numel() >= WORTH_IT
            and tensor.is_cpu
            and tensor.dtype == torch.float32
            and tensor.shape[-1] % self.buckets == 0
            and tensor.is_contiguous()
            and MKLDNN
        )

    @cached_property
    def _kernels(self) -> Tensor:
        return self.signs.float().view(-1, self.buckets).T.contiguous()

    def _convolved(self, tensor: Tensor, scale: Tensor | None) -> Tensor:
        """Each bucket a channel, the entries that share it neighbouring pixels: one pass over memory, with no copy."""
        # All tokens of an example are one line of pixels: a call of the kernel for each token costs more.
        line, side, kernels = tensor.shape[-2:].numel(), tensor.shape[-1], self._kernels
        pixels = tensor.as_strided(
            (tensor.numel() // line, self.buckets, 1, line // self.buckets), (line, 1, line, self.buckets)
        )
        if scale is not None:
            kernels = kernels * scale.reshape(-1, self.buckets).T
        folded = torch.conv2d(pixels, kernels[:, None, None], stride=(1, side // self.buckets), groups=self.buckets)
        return folded.permute(0, 2, 3, 1).reshape(*tensor.shape[:-1], self.buckets)

    def _added(self, tensor: Tensor, signs: Tensor) -> Tensor:
        whole = tensor.shape[-1] // self.buckets * self.buckets
        out = tensor.new_empty(*tensor.shape[:-1], self.buckets)
        step = len(tensor) if tensor.device.type != "cpu" else max(1, BLOCK * len(tensor) // max(1, tensor.numel()))
        for block, folded in zip(tensor.split(step), out.split(step), strict=True):
            torch.sum((block[..., :whole] * signs[:whole]).unflatten(-1, (-1, self.buckets)), -2, out=folded)
        if whole < tensor.shape[-1]:
            out[..., : tensor.shape[-1] - whole] += tensor[..., whole:] * signs[whole:]
        return out


def _apply(side: Fold | None, tensor: Tensor, scale: Tensor | None) -> Tensor:
    if side is not None:
        return side(tensor, scale)
    return tensor if scale is None else tensor * scale


def chunks(factor: Factor, elements: int, every_row: bool = True) -> list[Rows]:
    """Rows of a parameter in pieces of which all examples' gradients are no more than some numbers.

    Args:
        factor: the gradients.
        elements: the most numbers of a piece; a single row may have more.
        every_row: False leaves out the rows that no example touches.

    Returns:
        The pieces, in order.
    """
    rows = None if every_row else factor.support()
    total = (factor.shape[0] if factor.shape else 1) if rows is None else len(rows)
    step = max(1, elements // (len(factor) * max(1, factor.shape[1:].numel())))
    starts = range(0, total, step)
    return [slice(start, start + step) if rows is None else rows[start : start + step] for start in starts]


def has_factors(factor: Factor) -> bool:
    """Whether a sketch of the gradients costs less than forming them.

    Args:
        factor: the gradients.

    Returns:
        True for outer products, and sums of those and scatters.
    """
    if isinstance(factor, Sum):
        return all(isinstance(part, OuterProduct | Scatter) for part in factor.parts)
    return isinstance(factor, OuterProduct)
