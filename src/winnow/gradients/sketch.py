"""Seeded two-sided random projections of per-example gradients."""

from __future__ import annotations

import zlib

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.gradients.factors import Factor, OuterProduct, Rows, Scatter, Sum


class Sketch:
    """S(G) = R^T G Q for the gradients of one matrix: linear, and <S(G), S(H)> is <G, H> on average.

    R and Q have independent random signs over the root of ``dim``, which an outer product or a scatter
    meets before it is multiplied out: linear in tokens, and G is never formed. A side no longer than
    ``dim`` is not projected. The relative error of an inner product falls as 1 / sqrt(dim).

    Args:
        name: the parameter; with ``seed`` it decides the signs.
        shape: rows and columns.
        dim: length that each side is projected to.
        seed: of the signs.
        device: where the signs live.
        dtype: precision of the sketches.
    """

    def __init__(
        self, name: str, shape: torch.Size, dim: int, seed: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        # torch's CPU generator takes 32 bits of a seed.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))

        def signs(side: int) -> Tensor | None:
            if side <= dim:
                return None
            bits = torch.randint(0, 2, (side, dim), generator=generator, dtype=torch.int8)
            return ((2 * bits.to(dtype) - 1) / dim**0.5).to(device)

        self.rows, self.columns = signs(shape[0]), signs(shape[1])
        self.shape = shape

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
        if self.columns is not None:
            gradient = gradient @ self.columns.to(gradient.dtype)
        if self.rows is not None:
            gradient = self.rows.to(gradient.dtype).T @ gradient
        return gradient.flatten()

    def _project(self, factor: Factor, chunk_elements: int) -> Tensor:
        if isinstance(factor, OuterProduct):
            return self._side(factor.left, self.rows).transpose(1, 2) @ self._side(factor.right, self.columns)
        if isinstance(factor, Scatter) and self.rows is not None:
            left = self.rows.to(factor.dtype)[factor.tokens]
            return left.transpose(1, 2) @ self._side(factor.values, self.columns)
        if isinstance(factor, Sum):
            return torch.stack([self._project(part, chunk_elements) for part in factor.parts]).sum(0)
        total: Tensor | None = None
        for rows in chunks(factor, chunk_elements):
            block = self._side(factor.rows(rows), self.columns)
            if self.rows is None:
                total = block if total is None else torch.cat([total, block], 1)
            else:
                part = self.rows.to(block.dtype)[rows].T @ block
                total = part if total is None else total + part
        assert total is not None
        return total

    @staticmethod
    def _side(tensor: Tensor, signs: Tensor | None) -> Tensor:
        return tensor if signs is None else tensor @ signs.to(tensor.dtype)


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
        True for outer products, and sums of which all parts are.
    """
    if isinstance(factor, Sum):
        return all(has_factors(part) for part in factor.parts)
    return isinstance(factor, OuterProduct)
