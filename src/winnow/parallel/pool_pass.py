"""K, b and what else is asked for of a pool whose rows several processes run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from jaxtyping import Float
from torch import Tensor

from winnow.geometry.base import Preconditioner
from winnow.gradients.backward import backward_through
from winnow.gradients.factors.dense import Dense
from winnow.lm.batch import TargetBatch
from winnow.lm.layout import Batch, response_tokens
from winnow.lm.shards import in_rows
from winnow.parallel.held import summed
from winnow.parallel.part import part_of, target_part
from winnow.parallel.pieces import PartInPieces
from winnow.parallel.ranks import Ranks
from winnow.parallel.shards import axis_of, cut, piece_of, shards, tau_of, whole_parcel
from winnow.parallel.totals import Totals
from winnow.parallel.visit import PartVisit
from winnow.products.cost import Work
from winnow.products.parcel import Parcel
from winnow.products.products import Products
from winnow.products.sums import Sums
from winnow.scorer.curvature import pool_curvature
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
        micro_batch: examples that a process puts through the model at a time; None for its whole part.
        ranks: the processes.
        blocks: compare no candidates of two processes; K between them is zero.

    Raises:
        ValueError: as of one process.
    """

    def __init__(self, scope: Scope, micro_batch: int | None, ranks: Ranks, blocks: bool = False) -> None:
        super().__init__(scope, micro_batch)
        self.ranks, self.blocks = ranks, blocks

    def check(self, needs: Needs) -> None:
        """Refuse needs that the way products are taken cannot meet.

        Args:
            needs: what a selector asks for.

        Raises:
            ValueError: they exclude each other.
        """
        super().check(needs)
        asked = "the selector asks for the curvature of the target loss (selector.order=second)"
        if needs.curvature and self.blocks:
            raise ValueError(
                f"{asked}, which is along the gradient of the whole pool, and parallel.pool=per_rank knows no whole "
                "pool: set selector.order=first, or leave parallel.pool=global"
            )
        if needs.curvature and self.scope.forward.together:
            raise ValueError(
                f"{asked}, which goes back through the model twice, and a model in shards lets go of its parameters "
                "after the first time: set selector.order=first, or leave parallel.base=whole"
            )

    def _curvature(self, pool: Batch, present: Tensor, target: TargetBatch) -> dict[str, Tensor]:
        scope, ranks = self.scope, self.ranks
        part = part_of(pool, ranks)
        total = partial(summed, parameters=scope.parameters, ranks=ranks)
        return pool_curvature(
            scope.forward, scope.parameters, part, response_tokens(part) > 0, target_part(target, ranks), total
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
            hvp: H sum_j g_j by parameter, for ``needs.curvature``; the same everywhere.
            held: takes the factors of this process's candidates, for a one-pass update.

        Returns:
            Losses of all candidates, and the sums over all; the same everywhere.

        Raises:
            TargetNotFinite: the target's loss or gradient is not finite.
        """
        self.work = Work(self.scope.mode.sketch_dim)
        if self.micro_batch is not None:
            part = PartInPieces(self.scope, needs, self.ranks, self.micro_batch, self.work)
            return part.score(pool, target, self.blocks)
        if target is not None and needs.per_task:
            self.scope.target.tasks = int(target.task.max()) + 1
        visit = PartVisit(self.scope, pool, target, needs, self.ranks, held)
        wanted = self.scope.parameters if held is None else held.parameters
        backward_through(self.scope.forward, wanted, visit.batch, visit.take, counts=visit.counts, hold=True)
        sums = self._products(visit, hvp or {})
        valid, b = visit.losses.isfinite(), sums.alignment if target is not None else None
        if b is not None and bool(valid.any()) and not bool(b[valid].isfinite().any()):
            raise TargetNotFinite("the target gradient is not finite")
        return visit.losses, sums

    def _products(self, visit: PartVisit, hvp: Mapping[str, Tensor]) -> Sums:
        """The sums over all parameters and processes."""
        needs, mode, totals = visit.needs, self.scope.mode, Totals(self.ranks, visit.total)
        apart = self.blocks or needs.gram is None or needs.sketch is not None or mode.mode == "sketch"
        rows, total = totals.rows, visit.size * self.ranks.size if apart else visit.total
        if self.blocks:
            rows, total = slice(0, visit.size), visit.size
        products: Products | None = None
        ready = self.scope.geometry.ready(self.scope.parameters)
        for factors in visit.batches():
            by_name = {name: visit.preconditioner(name, factor, ready) for name, factor in factors.items()}
            in_part = set[str]() if apart else self._in_part(needs, by_name)
            taus = visit.taus(factors, in_part)
            for name in list(factors):
                factor = factors.pop(name)
                if products is None:
                    store, tasks = "sketches" if mode.mode == "sketch" else None, self.scope.target.tasks
                    precision = visit.precision or factor.dtype
                    products = Products(needs, total, precision, visit.losses.device, mode, store, tasks, self.work)
                candidates, of_target = factor.examples(slice(0, visit.size)), taus[name]
                tau = tau_of(of_target[0]) if of_target else None
                parcel = Parcel(name, candidates, by_name[name], tau, targets=len(factor) - visit.size)
                parcel.by_task, parcel.hvp = of_target[1:], hvp.get(name)
                if apart:
                    products.add(whole_parcel(replace(parcel, rows=rows), self.scope.parameters[name], self.ranks))
                else:
                    self.work.multiplications += candidates.forming
                    self._send(products, parcel, total, name in in_part)
        if products is None:
            return Products(needs, visit.total, visit.losses.dtype, visit.losses.device, mode).finish()
        if self.blocks:
            return totals.blocks(products.finish())
        return totals.apart(products) if apart else totals.over_all(products.finish(), ["gram"])

    def _in_part(self, needs: Needs, by_name: Mapping[str, Preconditioner]) -> set[str]:
        """Parameters of whose target gradient a process needs its rows alone: it is not kept, and P mixes no rows."""
        if self.scope.target.keep or needs.momentum:
            return set()
        return {name for name, preconditioner in by_name.items() if axis_of(preconditioner) == 0}

    def _send(self, products: Products, parcel: Parcel, total: int, in_part: bool) -> None:
        """Send candidates' gradients to where the rows are, and add the rows that are here."""
        axis, elements = axis_of(parcel.preconditioner), self.scope.mode.chunk_elements
        here = self.ranks.rows(parcel.factor.shape[0] if parcel.factor.shape else 1).start
        first = here if in_rows(self.scope.parameters[parcel.name]) else 0
        for sent, values in shards(parcel.factor, self.ranks, total, elements, axis):
            piece = slice(sent.start - first, sent.stop - first)
            of_tau = slice(sent.start - here, sent.stop - here) if in_part else piece
            products.add(
                replace(
                    parcel,
                    factor=Dense(values),
                    preconditioner=cut(parcel.preconditioner, piece, axis),
                    tau=None if parcel.tau is None else tau_of(piece_of(parcel.tau.tensor(), of_tau, axis)),
                    by_task=[piece_of(one, of_tau, axis) for one in parcel.by_task],
                    hvp=None if parcel.hvp is None else piece_of(parcel.hvp, piece, axis),
                )
            )
