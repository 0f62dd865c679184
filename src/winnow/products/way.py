"""What all ways of taking products share: b from directions, norms, and the bound on b."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from winnow.products.cost import Work
from winnow.products.gram import chunks
from winnow.products.mode import Mode
from winnow.products.parcel import Parcel
from winnow.products.sums import Sums


class Way(ABC):
    """One way of adding parameters' contributions to the sums.

    Args:
        sums: what is added to.
        mode: how products are taken.
        work: counts what was done; None where nobody asks.
    """

    def __init__(self, sums: Sums, mode: Mode, work: Work | None = None) -> None:
        self.sums, self.mode, self.work = sums, mode, work
        self.half = (sums.needs.gram or 0) / 2
        """p/2, the power of P that K's gradients carry."""
        self.noted = sums.needs
        """What is taken of a parcel when it arrives."""

    @abstractmethod
    def gram(self, parcel: Parcel) -> tuple[str, bool]:
        """Add to K, and to b where that comes with it.

        Args:
            parcel: a parameter's contribution.

        Returns:
            How it was done, ``formed`` | ``token products`` | ``sketched``, and whether b is done.
        """

    def add(self, parcel: Parcel) -> None:
        """Add one parameter's contribution.

        Args:
            parcel: the contribution, in the precision of the sums.
        """
        arrived = parcel.factor
        kind, aligned = self.gram(parcel)
        if not aligned and self.sums.alignment is not None:
            self._align(parcel)
        if self.sums.squares is not None:
            self._norms(parcel)
        if self.work is not None:
            self.work.note(kind, arrived, parcel.targets, self.noted, aligned)

    def join(self, rows: slice, received: Callable[[Tensor], Iterable[Tensor]]) -> None:
        """Complete what was stored of some candidates by what others have stored of theirs; nothing is by default.

        Args:
            rows: these candidates.
            received: from what is stored of these to what there is of all, or one part of it after another.
        """
        return

    def finish(self) -> None:
        """Take K and b from what was stored on the way."""
        return

    @property
    def shares(self) -> bool:
        """Whether <P^(p/2) g, P^(a-p/2) tau> is b: the gradients formed for K then serve b as well."""
        return self.sums.needs.alignment is not None and self.sums.needs.alignment >= self.half

    def direction(self, parcel: Parcel, power: float) -> Tensor:
        """P^power tau.

        Args:
            parcel: a parameter's contribution.
            power: of P.

        Returns:
            A tensor of the parameter's shape.
        """
        return parcel.preconditioner.tensor(parcel.target(), power)

    def _align(self, parcel: Parcel) -> None:
        assert self.sums.alignment is not None and self.sums.needs.alignment is not None
        direction = self.direction(parcel, float(self.sums.needs.alignment))
        self.sums.alignment[parcel.rows] += parcel.factor.inner(direction)
        if not parcel.rows.start:  # once, however many pieces there are
            self._bound(parcel.target(), direction)

    def _bound(self, tau: Tensor, direction: Tensor) -> None:
        """Add <tau, P^(2a-p) tau>, if tau and P^a tau give it, to the square that bounds b."""
        needs, sums = self.sums.needs, self.sums
        if sums.target_square is None:
            return
        assert needs.alignment is not None and sums.power is not None
        power = 2 * needs.alignment - sums.power
        sides = {0: (tau, tau), needs.alignment: (tau, direction), 2 * needs.alignment: (direction,) * 2}
        found = sides.get(power)
        sums.target_square += torch.nan if found is None else found[0].flatten() @ found[1].flatten()

    def _norms(self, parcel: Parcel) -> None:
        assert self.sums.squares is not None and self.sums.needs.norms is not None
        scaled = parcel.preconditioner.factor(parcel.factor, self.sums.needs.norms / 2)
        if self.mode.mode == "sketch" and scaled.factored:
            found = self.mode.sketch(parcel.name, parcel.factor).factor(scaled)
            self.sums.squares[parcel.rows] += torch.linalg.vecdot(found, found)
            return
        for piece in chunks(scaled, self.mode.chunk_elements, every_row=False):
            block = scaled.rows(piece).flatten(1)
            self.sums.squares[parcel.rows] += torch.linalg.vecdot(block, block)
