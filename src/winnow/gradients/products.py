"""K, b and norms, accumulated parameter by parameter while the gradients stream past."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.geometry.base import Preconditioner, accumulation_dtype
from winnow.gradients.factors import Factor, Rows
from winnow.signals import Needs


class Products:
    """Sums over parameters of K_ij = <g_i, P^p g_j>, b_i = <g_i, P^a tau> and ||P^(q/2) g_i||^2.

    Args:
        needs: the powers p (``gram``), a (``alignment``), q (``norms``).
        size: number of candidates B.
        dtype: precision of the gradients; sums are kept in float32 at least.
        device: where the sums live.
        chunk_elements: per-example gradients are formed at most this many numbers at a time.

    Raises:
        ValueError: ``chunk_elements`` is not positive.
    """

    def __init__(
        self,
        needs: Needs,
        size: int,
        dtype: torch.dtype,
        device: torch.device,
        chunk_elements: int,
    ) -> None:
        if chunk_elements < 1:
            raise ValueError(f"chunk_elements must be >= 1 (scoring.chunk_elements), got {chunk_elements}")
        self.needs, self.chunk_elements = needs, chunk_elements
        zeros = torch.zeros(size, dtype=accumulation_dtype(dtype), device=device)
        self.alignment = None if needs.alignment is None else zeros.clone()
        self.gram = None if needs.gram is None else zeros[:, None].repeat(1, size)
        # The diagonal of K serves when it is of the same power.
        self.squares = None if needs.norms is None or needs.norms == needs.gram else zeros.clone()

    @property
    def norms(self) -> Float[Tensor, " pool"] | None:
        """||P^(q/2) g_i||."""
        if self.needs.norms is None:
            return None
        squares = self.squares if self.squares is not None else torch.diagonal(self.gram)  # type: ignore[arg-type]
        return squares.clamp_min(0).sqrt()

    def add(
        self,
        factor: Factor,
        preconditioner: Preconditioner,
        target: Float[Tensor, "*shape"] | None = None,
    ) -> None:
        """Add one parameter's contribution.

        Args:
            factor: gradients of the pool's candidates.
            preconditioner: P of this parameter.
            target: tau of this parameter; needed for ``alignment``.
        """
        needs = self.needs
        factor = factor.to(accumulation_dtype(factor.dtype))
        aligned = self.alignment is None
        if self.gram is not None:
            assert needs.gram is not None
            direction = None
            if self.alignment is not None and needs.alignment is not None and needs.alignment >= needs.gram / 2:
                # <P^(p/2) g, P^(a-p/2) tau>: the gradients formed for K serve b as well.
                assert target is not None
                direction = preconditioner.tensor(target, needs.alignment - needs.gram / 2)
                direction = direction.to(factor.dtype) if direction.shape else direction[None].to(factor.dtype)
                aligned = True
            scaled = preconditioner.factor(factor, needs.gram / 2)
            for rows in self._chunks(scaled):
                block = scaled.rows(rows).flatten(1)
                self.gram.addmm_(block, block.T)
                if direction is not None:
                    assert self.alignment is not None
                    self.alignment.addmv_(block, direction[rows].flatten())
        if not aligned:
            assert self.alignment is not None and needs.alignment is not None and target is not None
            self.alignment += factor.inner(preconditioner.tensor(target, float(needs.alignment)))
        if self.squares is not None:
            assert needs.norms is not None
            scaled = preconditioner.factor(factor, needs.norms / 2)
            for rows in self._chunks(scaled):
                block = scaled.rows(rows).flatten(1)
                self.squares += torch.linalg.vecdot(block, block)

    def _chunks(self, factor: Factor) -> Iterator[Rows]:
        rows = factor.support()
        total = (factor.shape[0] if factor.shape else 1) if rows is None else len(rows)
        width = len(factor) * max(1, factor.shape[1:].numel())
        step = max(1, self.chunk_elements // width)
        for start in range(0, total, step):
            yield (slice(start, start + step) if rows is None else rows[start : start + step])
