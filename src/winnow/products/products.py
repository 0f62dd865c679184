"""K, b and norms, accumulated parameter by parameter while the gradients stream past."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from winnow.gradients.factors.precision import accumulation_dtype
from winnow.products.cost import Work
from winnow.products.counted import Counted
from winnow.products.formed import Formed
from winnow.products.mode import Mode
from winnow.products.parcel import Parcel
from winnow.products.sketched import Sketched
from winnow.products.stored import Stored
from winnow.products.sums import Sums
from winnow.products.way import Way
from winnow.signals import Needs


class Products:
    """Adds up the products of one pool; with ``needs.sketch`` they are inner products of CountSketches.

    Args:
        needs: the powers p (``gram``), a (``alignment``), q (``norms``), and what else is to be summed.
        size: number of candidates B.
        dtype: precision of the gradients; sums are kept in float32 at least.
        device: where the sums live.
        mode: how products are taken.
        store: ``gradients`` or ``sketches`` of candidates that arrive in pieces are kept until
            ``finish``, so that K has the products across pieces; None where all arrive at once.
        tasks: number of target tasks, for ``needs.per_task``.
        work: counts what is done; None where nobody asks.
    """

    def __init__(
        self,
        needs: Needs,
        size: int,
        dtype: torch.dtype,
        device: torch.device,
        mode: Mode,
        store: str | None = None,
        tasks: int = 0,
        work: Work | None = None,
    ) -> None:
        self.sums = Sums(needs, size, dtype, device, tasks)
        self.way: Way
        if needs.sketch is not None:
            self.way = Counted(self.sums, mode, work)
        elif store is not None:
            self.way = Stored(self.sums, mode, store == "sketches", work)
        else:
            self.way = (Sketched if mode.mode == "sketch" else Formed)(self.sums, mode, work)

    def add(self, parcel: Parcel) -> None:
        """Add one parameter's contribution.

        Args:
            parcel: the contribution.
        """
        factor = parcel.factor = parcel.factor.to(accumulation_dtype(parcel.factor.dtype))
        sums = self.sums
        if sums.task_alignment is not None and sums.task_squares is not None:
            assert sums.needs.alignment is not None
            for number, tau in enumerate(parcel.by_task):
                direction = parcel.preconditioner.tensor(tau, float(sums.needs.alignment))
                sums.task_alignment[number, parcel.rows] += factor.inner(direction)
                sums.task_squares[number] += tau.square().sum()
        if sums.curvature is not None and parcel.hvp is not None:
            sums.curvature[parcel.rows] += factor.inner(parcel.hvp)
        if self.way.work is not None:
            self.way.work.beside(factor, parcel.targets, len(parcel.by_task), parcel.hvp is not None)
        self.way.add(parcel)

    def join(self, rows: slice, received: Callable[[Tensor], Iterable[Tensor]]) -> None:
        """Complete what was stored of some candidates in one go, by what others have stored of theirs.

        Args:
            rows: these candidates.
            received: from what is stored of these to what there is of all, or one part of it after another.
        """
        self.way.join(rows, received)

    def finish(self) -> Sums:
        """Take K and b from what was summed or stored on the way.

        Returns:
            The sums, whole.
        """
        self.way.finish()
        return self.sums
