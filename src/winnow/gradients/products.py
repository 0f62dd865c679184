"""K, b and norms, accumulated parameter by parameter while the gradients stream past."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.geometry.base import Preconditioner, accumulation_dtype
from winnow.gradients.factors import Factor, Rows
from winnow.gradients.sketch import CountSketch
from winnow.signals import Needs


class Products:
    """Sums over parameters of K_ij = <g_i, P^p g_j>, b_i = <g_i, P^a tau> and ||P^(q/2) g_i||^2.

    With ``needs.sketch`` K and b are inner products of sketches, once :meth:`finish` is called.

    Args:
        needs: the powers p (``gram``), a (``alignment``), q (``norms``), and what else is to be summed.
        size: number of candidates B.
        dtype: precision of the gradients; sums are kept in float32 at least.
        device: where the sums live.
        chunk_elements: per-example gradients are formed at most this many numbers at a time.
        tasks: number of target tasks, for ``needs.per_task``.

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
        tasks: int = 0,
    ) -> None:
        if chunk_elements < 1:
            raise ValueError(f"chunk_elements must be >= 1 (scoring.chunk_elements), got {chunk_elements}")
        self.needs, self.chunk_elements = needs, chunk_elements
        zeros = torch.zeros(size, dtype=accumulation_dtype(dtype), device=device)
        self.alignment = None if needs.alignment is None else zeros.clone()
        self.gram = None if needs.gram is None else zeros[:, None].repeat(1, size)
        # The diagonal of K serves when it is of the same power.
        self.squares = None if needs.norms is None or needs.norms == needs.gram else zeros.clone()
        self.task_alignment = zeros.repeat(tasks, 1) if needs.per_task else None
        self.task_squares = zeros.new_zeros(tasks) if needs.per_task else None
        self.curvature = zeros.clone() if needs.curvature else None
        self.sketch = None if needs.sketch is None else CountSketch(needs.sketch, needs.sketch_seed)
        # One row more than the pool has: the target's.
        self.sketches = None if needs.sketch is None else zeros.new_zeros(size + 1, needs.sketch)

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
        *,
        name: str = "",
        tasks: Sequence[Float[Tensor, "*shape"]] = (),
        bend: Float[Tensor, "*shape"] | None = None,
    ) -> None:
        """Add one parameter's contribution.

        Args:
            factor: gradients of the pool's candidates.
            preconditioner: P of this parameter.
            target: tau of this parameter; needed for ``alignment``.
            name: the parameter; needed for ``sketch``.
            tasks: the tau of every target task; needed for ``per_task``.
            bend: H sum_j g_j of this parameter; ``curvature`` counts none where it is None.
        """
        needs = self.needs
        factor = factor.to(accumulation_dtype(factor.dtype))
        self._add_tasks(factor, preconditioner, tasks)
        if self.curvature is not None and bend is not None:
            self.curvature += factor.inner(bend)
        if self.sketches is not None:
            self._add_sketch(factor, preconditioner, target, name)
            return
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

    def finish(self) -> None:
        """Take K and b from the sketches, where those were asked for."""
        if self.sketches is None:
            return
        pool, target = self.sketches[:-1], self.sketches[-1]
        self.gram = pool @ pool.T
        if self.alignment is not None:
            self.alignment = pool @ target

    def _add_tasks(self, factor: Factor, preconditioner: Preconditioner, tasks: Sequence[Tensor]) -> None:
        if self.task_alignment is None or self.task_squares is None:
            return
        assert self.needs.alignment is not None
        for at, tau in enumerate(tasks):
            self.task_alignment[at] += factor.inner(preconditioner.tensor(tau, float(self.needs.alignment)))
            self.task_squares[at] += tau.square().sum()

    def _add_sketch(self, factor: Factor, preconditioner: Preconditioner, target: Tensor | None, name: str) -> None:
        assert self.sketches is not None and self.sketch is not None and self.needs.gram is not None
        scaled, direction = preconditioner.factor(factor, self.needs.gram / 2), None
        if self.needs.alignment is not None:
            assert target is not None
            direction = preconditioner.tensor(target, self.needs.alignment - self.needs.gram / 2).to(factor.dtype)
            direction = direction if direction.shape else direction[None]
        height = factor.shape[0] if factor.shape else 1
        width = max(1, factor.shape[1:].numel())
        for rows in self._chunks(scaled):
            line = torch.arange(height, device=self.sketches.device)[rows]
            place = (line[:, None] * width + torch.arange(width, device=line.device)).flatten()
            self.sketch.add(self.sketches[:-1], name, place, scaled.rows(rows).flatten(1))
        if direction is not None:  # of every coordinate: the target reaches rows that no candidate does
            flat = direction.flatten()
            for start in range(0, len(flat), self.chunk_elements):
                part = flat[start : start + self.chunk_elements]
                place = torch.arange(start, start + len(part), device=part.device)
                self.sketch.add(self.sketches[-1:], name, place, part[None])

    def _chunks(self, factor: Factor) -> Iterator[Rows]:
        rows = factor.support()
        total = (factor.shape[0] if factor.shape else 1) if rows is None else len(rows)
        width = len(factor) * max(1, factor.shape[1:].numel())
        step = max(1, self.chunk_elements // width)
        for start in range(0, total, step):
            yield (slice(start, start + step) if rows is None else rows[start : start + step])
