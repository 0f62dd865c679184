"""Products across pieces of a pool: gradients or their sketches are kept until all have come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import Tensor

from winnow.products.cost import Work
from winnow.products.mode import Mode
from winnow.products.parcel import Parcel
from winnow.products.sums import Sums
from winnow.products.way import Way


class Stored(Way):
    """K of candidates that arrive in pieces.

    Args:
        sums: what is added to.
        mode: how products are taken.
        sketches: keep sketches of matrices' gradients in place of the gradients.
        work: counts what was done; None where nobody asks.
    """

    def __init__(self, sums: Sums, mode: Mode, sketches: bool, work: Work | None = None) -> None:
        super().__init__(sums, mode, work)
        if sums.gram is not None:  # formed on arrival, multiplied at the end
            self.noted = replace(sums.needs, gram=None, norms=sums.needs.gram)
        self.sketches = sketches
        self._stored: dict[str, list[tuple[slice, Tensor]]] = defaultdict(list)

    def gram(self, parcel: Parcel) -> tuple[str, bool]:
        """Keep P^(p/2) g_i, or sketches of it, for ``finish``.

        Args:
            parcel: a parameter's contribution.

        Returns:
            ``formed``, and that b is not done.
        """
        if self.sums.gram is not None:
            scaled = parcel.preconditioner.factor(parcel.factor, self.half)
            if self.sketches and len(scaled.shape) == 2:
                kept = self.mode.sketch(parcel.name, scaled).factor(scaled)
            else:
                kept = scaled.rows(slice(None)).flatten(1)
            self._stored[parcel.name].append((parcel.rows, kept))
        return "formed", False

    def join(self, rows: slice, received: Callable[[Tensor], Iterable[Tensor]]) -> None:
        """Multiply what is kept of these candidates and of others.

        Args:
            rows: these candidates.
            received: from what is kept of these to what there is of all, or one part of it after another.
        """
        gram = self.sums.gram
        for name in list(self._stored):
            own = _side_by_side(self._stored.pop(name), rows)
            assert gram is not None
            for whole in received(own):
                if self.work is not None:
                    self.work.spend(float(whole.numel() * len(whole)))
                gram += whole @ whole.T

    def finish(self) -> None:
        """Multiply every piece by every other."""
        gram = self.sums.gram
        for name in list(self._stored):
            pieces = self._stored.pop(name)
            assert gram is not None
            for number, (rows, left) in enumerate(pieces):
                for others, right in pieces[number:]:
                    block = left @ right.T
                    if self.work is not None:
                        self.work.spend(float(left.numel() * len(right)))
                    gram[rows, others] += block
                    if others != rows:
                        gram[others, rows] += block.T


def _side_by_side(pieces: list[tuple[slice, Tensor]], rows: slice) -> Tensor:
    """Pieces in one tensor, zeros where none has come."""
    if len(pieces) == 1 and pieces[0][0] == rows:
        return pieces[0][1]
    whole = pieces[0][1].new_zeros(rows.stop - rows.start, pieces[0][1].shape[1])
    for piece, kept in pieces:
        whole[piece.start - rows.start : piece.stop - rows.start] = kept
    return whole
