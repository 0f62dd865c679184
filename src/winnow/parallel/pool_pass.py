"""K, b and what else is asked for of a pool whose rows several processes run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.gradients.backward import backward_through
from winnow.gradients.factors.dense import Dense
from winnow.lm.batch import TargetBatch
from winnow.lm.layout import Batch
from winnow.parallel.ranks import Ranks
from winnow.parallel.shards import axis_of, cut, piece_of, shards, spread
from winnow.parallel.visit import PartVisit
from winnow.products.cost import Work
from winnow.products.parcel import Parcel, Tau
from winnow.products.products import Products
from winnow.products.sums import Sums
from winnow.scorer.held import HeldFactors
from winnow.scorer.pool_pass import PoolPass
from winnow.scorer.scope import Scope
from winnow.scorer.target import TargetNotFinite
from winnow.signals import Needs


class ParallelPass(PoolPass):
    """Runs this process's rows of every pool, and sums products over all processes.

    Where K is taken of whole gradients, those of all candidates meet at the process that holds the rows of the
    parameter. Where it is taken of sketches, or not at all, every process keeps its own candidates. So it does with
    ``blocks``, and K is then of its own alone.

    Args:
        scope: the model and what goes with it.
        micro_batch: has to be None.
        ranks: the processes.
        blocks: compare no candidates of two processes; K between them is zero.

    Raises:
        ValueError: ``micro_batch`` is given.
    """

    def __init__(self, scope: Scope, micro_batch: int | None, ranks: Ranks, blocks: bool = False) -> None:
        super().__init__(scope, micro_batch)
        if micro_batch is not None:
            raise ValueError(
                f"scoring.pool_micro_batch={micro_batch} scores a pool in pieces, and {ranks.size} processes share it "
                "already: set scoring.pool_micro_batch=null, and use more processes where a share is too large"
            )
        self.ranks, self.blocks = ranks, blocks

    def check(self, needs: Needs) -> None:
        """Refuse needs that the way products are taken cannot meet.

        Args:
            needs: what a selector asks for.

        Raises:
            ValueError: they exclude each other.
        """
        super().check(needs)
        if needs.curvature:
            raise ValueError(
                "the selector asks for the curvature of the target loss (selector.order=second), which takes the whole "
                f"pool in one process, and there are {self.ranks.size}: set selector.order=first, or trainer.devices=1"
            )

    def __call__(
        self,
        pool: Batch,
        target: TargetBatch | None,
        needs: Needs,
        *,
        hvp: Mapping[str, Tensor] | None = None,
        held: HeldFactors | None = None,
    ) -> tuple[Float[Tensor, " pool"], Sums]:
        """Score a pool; every process calls this with the same arguments.

        Args:
            pool: all candidates.
            target: all target examples; None takes the stored target gradient.
            needs: what to sum.
            hvp: has to be None.
            held: takes the factors of this process's candidates, for a one-pass update.

        Returns:
            Losses of all candidates, and the sums over all; the same everywhere.

        Raises:
            TargetNotFinite: the target's loss or gradient is not finite.
        """
        self.work = Work(self.scope.mode.sketch_dim)
        if target is not None and needs.per_task:
            self.scope.target.tasks = int(target.task.max()) + 1
        visit = PartVisit(self.scope, pool, target, needs, self.ranks, held)
        wanted = self.scope.parameters if held is None else held.parameters
        backward_through(self.scope.forward, wanted, visit.batch, visit.take, counts=visit.counts, hold=True)
        sums = self._products(visit)
        valid, b = visit.losses.isfinite(), sums.alignment if target is not None else None
        if b is not None and bool(valid.any()) and not bool(b[valid].isfinite().any()):
            raise TargetNotFinite("the target gradient is not finite")
        return visit.losses, sums

    def _products(self, visit: PartVisit) -> Sums:
        """The sums over all parameters and processes."""
        needs, ranks, mode = visit.needs, self.ranks, self.scope.mode
        apart = self.blocks or needs.gram is None or needs.sketch is not None or mode.mode == "sketch"
        first, total = visit.size * ranks.rank, visit.size * ranks.size if apart else visit.total
        if self.blocks:
            first, total = 0, visit.size
        rows = slice(first, first + visit.size)
        products: Products | None = None
        ready = self.scope.geometry.ready(self.scope.parameters)
        for name in visit.reached():
            factor = visit.gradients(name)
            candidates = factor.examples(slice(0, visit.size))
            preconditioner = visit.preconditioner(name, candidates, ready)
            tau = visit.tau(name, factor)
            by_task = visit.by_task(name, factor)
            if products is None:
                store, tasks = "sketches" if mode.mode == "sketch" else None, self.scope.target.tasks
                precision = visit.precision or factor.dtype
                products = Products(needs, total, precision, visit.losses.device, mode, store, tasks, self.work)
            parcel = Parcel(name, candidates, preconditioner, _held(tau), targets=len(factor) - visit.size)
            parcel.by_task = by_task
            if apart:
                products.add(_whole(replace(parcel, rows=rows), visit))
            else:
                self.work.multiplications += candidates.forming
                self._send(products, parcel, total, visit.first_row(name))
        if products is None:
            return Products(needs, visit.total, visit.losses.dtype, visit.losses.device, mode).finish()
        if self.blocks:
            return self._blocks(products.finish(), visit)
        return self._apart(products, visit.total) if apart else self._over_all(products.finish(), ["gram"])

    def _send(self, products: Products, parcel: Parcel, total: int, first: int) -> None:
        """Send candidates' gradients to where the rows are, and add the rows that are here."""
        axis, elements = axis_of(parcel.preconditioner), self.scope.mode.chunk_elements
        for sent, values in shards(parcel.factor, self.ranks, total, elements, axis):
            piece = slice(sent.start - first, sent.stop - first)
            products.add(
                replace(
                    parcel,
                    factor=Dense(values),
                    preconditioner=cut(parcel.preconditioner, piece, axis),
                    tau=None if parcel.tau is None else _held(piece_of(parcel.tau.tensor(), piece, axis)),
                    by_task=[piece_of(one, piece, axis) for one in parcel.by_task],
                )
            )

    def _apart(self, products: Products, total: int) -> Sums:
        """Sums of candidates that every process had by itself, whose sketches the others get."""
        sums, ranks = products.sums, self.ranks
        if ranks.rank and sums.task_squares is not None:
            sums.task_squares.zero_()  # every process has taken them whole
        self._over_all(sums)
        products.join(lambda own: ranks.gather(own, len(own) * ranks.size))
        return products.finish().first(total)

    def _blocks(self, sums: Sums, visit: PartVisit) -> Sums:
        """Sums of candidates that every process had by itself, one after the other; K has a block for each process."""
        size, ranks = visit.size, self.ranks

        def joined(own: Tensor) -> Tensor:
            return ranks.gather(own, size * ranks.size)

        sums.alignment = None if sums.alignment is None else joined(sums.alignment)
        sums.squares = None if sums.squares is None else joined(sums.squares)
        sums.task_alignment = None if sums.task_alignment is None else joined(sums.task_alignment.T).T
        sums.gram = None if sums.gram is None else torch.block_diag(*joined(sums.gram).split(size))
        for name in ("target_square", "task_squares"):  # every process has them whole: the first one's bits for all
            value = getattr(sums, name)
            setattr(sums, name, None if value is None else ranks.gather(value[None], ranks.size)[0])
        return sums.first(visit.total)

    def _over_all(self, sums: Sums, more: Sequence[str] = ()) -> Sums:
        """Sum over the processes what each has summed of its rows."""
        names = ["alignment", "squares", "target_square", "task_alignment", "task_squares", *more]
        taken = {name: value for name in names if (value := getattr(sums, name)) is not None}
        for name, value in zip(taken, self.ranks.sums(list(taken.values())), strict=True):
            setattr(sums, name, value)
        return sums


def _whole(parcel: Parcel, visit: PartVisit) -> Parcel:
    """What is compared where all rows of the parameter are needed."""
    joined = partial(visit.joined, parcel.name)
    return replace(
        parcel,
        preconditioner=spread(parcel.preconditioner, joined),
        tau=None if parcel.tau is None else _held(joined(parcel.tau.tensor())),
        by_task=[joined(one) for one in parcel.by_task],
    )


def _held(tau: Tensor | None) -> Tau | None:
    return None if tau is None else Tau(lambda: tau)
