"""Products of one CountSketch of the whole gradient, for selectors with sketches of their own (Opus)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from winnow.products.cost import Work
from winnow.products.count_sketch import CountSketch
from winnow.products.gram import chunks
from winnow.products.mode import Mode
from winnow.products.parcel import Parcel
from winnow.products.sums import Sums
from winnow.products.way import Way
from winnow.signals import Needs


class Counted(Way):
    """K and b are inner products of CountSketches of P^(p/2) g_i and P^(a-p/2) tau.

    Args:
        sums: what is added to; ``needs.sketch`` and ``needs.gram`` are given.
        mode: how gradients are formed.
        work: counts what was done; None where nobody asks.
    """

    def __init__(self, sums: Sums, mode: Mode, work: Work | None = None) -> None:
        super().__init__(sums, mode, work)
        needs, gram = sums.needs, sums.gram
        assert needs.sketch is not None and gram is not None
        self._count = CountSketch(needs.sketch, needs.sketch_seed)
        # One row more than the pool has: the target's.
        self._sketches = gram.new_zeros(len(gram) + 1, needs.sketch)
        self._targets: set[str] = set()

    def add(self, parcel: Parcel) -> None:
        """Add to the sketches; norms are not taken.

        Args:
            parcel: a parameter's contribution.
        """
        kind, _ = self.gram(parcel)
        if self.work is not None:
            self.work.note(kind, parcel.factor, parcel.targets, Needs(norms=0))

    def gram(self, parcel: Parcel) -> tuple[str, bool]:
        """Add a parameter's coordinates to the sketches of candidates and target.

        Args:
            parcel: a parameter's contribution.

        Returns:
            ``formed``, and that b is done.
        """
        factor, device = parcel.factor, self._sketches.device
        scaled, own = parcel.preconditioner.factor(factor, self.half), self._sketches[:-1][parcel.rows]
        height = factor.shape[0] if factor.shape else 1
        width = max(1, factor.shape[1:].numel())
        for piece in chunks(scaled, self.mode.chunk_elements, every_row=False):
            line = torch.arange(height, device=device)[piece]
            place = (line[:, None] * width + torch.arange(width, device=device)).flatten()
            self._count.add(own, parcel.name, place, scaled.rows(piece).flatten(1))
        if self.sums.needs.alignment is not None and parcel.name not in self._targets:
            self._targets.add(parcel.name)  # once, however many pieces the candidates arrive in
            self._add_target(parcel, self.sums.needs.alignment - self.half)
        return "formed", True

    def join(self, rows: slice, received: Callable[[Tensor], Iterable[Tensor]]) -> None:
        """Take others' sketches beside these; all have the target's.

        Args:
            rows: these candidates.
            received: from rows of these candidates to those of all.
        """
        for whole in received(self._sketches[:-1][rows]):
            self._sketches[:-1] = whole

    def finish(self) -> None:
        """K and b of the sketches."""
        sums, pool, target = self.sums, self._sketches[:-1], self._sketches[-1]
        sums.gram = pool @ pool.T
        sums.alignment = None if sums.alignment is None else pool @ target
        sums.target_square = None if sums.alignment is None else target @ target

    def _add_target(self, parcel: Parcel, power: float) -> None:
        # Of every coordinate: the target reaches rows that no candidate does.
        flat = self.direction(parcel, power).to(parcel.factor.dtype).flatten()
        for start in range(0, len(flat), self.mode.chunk_elements):
            part = flat[start : start + self.mode.chunk_elements]
            place = torch.arange(start, start + len(part), device=flat.device)
            self._count.add(self._sketches[-1:], parcel.name, place, part[None])
