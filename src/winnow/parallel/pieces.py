"""Pools larger than the memory of all processes together: each runs its rows a few at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.gradients.backward import backward_through
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import Dense
from winnow.gradients.weighted_sum import weighted_sum
from winnow.lm.batch import TargetBatch, pieces
from winnow.lm.layout import Batch
from winnow.lm.shards import here
from winnow.parallel.held import reached, summed
from winnow.parallel.part import part_of, target_part
from winnow.parallel.ranks import Ranks
from winnow.parallel.shards import whole_parcel
from winnow.parallel.totals import Totals
from winnow.parallel.visit import gradients_of
from winnow.products.cost import Work
from winnow.products.parcel import Parcel, Tau
from winnow.products.products import Products
from winnow.products.sums import Sums
from winnow.scorer.pieces import preconditioners, stored_as
from winnow.scorer.scope import Scope
from winnow.scorer.target import TargetNotFinite
from winnow.signals import Needs


class PartInPieces:
    """A process's rows of a pool, and its examples of the target, a few at a time.

    Args:
        scope: the model and what goes with it.
        needs: what to sum.
        ranks: the processes.
        micro_batch: examples that go through the model at a time.
        work: counts what is done.
    """

    def __init__(self, scope: Scope, needs: Needs, ranks: Ranks, micro_batch: int, work: Work) -> None:
        self.scope, self.needs, self.ranks, self.micro_batch, self.work = scope, needs, ranks, micro_batch, work

    def score(
        self, pool: Batch, target: TargetBatch | None, blocks: bool = False
    ) -> tuple[Float[Tensor, " pool"], Sums]:
        """The same as a pool at once; every process calls this with the same arguments.

        Args:
            pool: all candidates.
            target: all target examples; None takes the stored target gradient.
            blocks: compare no candidates of two processes.

        Returns:
            Losses of all candidates, and the sums over all; the same everywhere.

        Raises:
            TargetNotFinite: the target's loss or gradient is not finite.
        """
        scope, totals = self.scope, Totals(self.ranks, len(pool["labels"]))
        taus = None if target is None else self._staged(target)
        own = part_of(pool, self.ranks)
        by_name = preconditioners(scope.geometry, scope.parameters, lambda wanted: self._means(wanted, own))
        store, size = stored_as(scope, totals.total), totals.size if blocks else totals.size * self.ranks.size
        first, products, found = 0 if blocks else totals.rows.start, None, list[Tensor]()
        for rows, piece in pieces(own, self.micro_batch):
            arrived: dict[str, Factor] = {}
            found.append(backward_through(scope.forward, scope.parameters, piece, arrived.__setitem__, hold=True))
            for name in reached(arrived, scope.parameters, self.ranks):
                factor = arrived.pop(name, None)
                candidates = gradients_of(factor, scope.parameters[name], rows.stop - rows.start)
                if products is None:
                    precision = candidates.dtype if factor is None else factor.dtype
                    device = found[0].device
                    products = Products(self.needs, size, precision, device, scope.mode, store, work=self.work)
                place = slice(first + rows.start, first + rows.stop)
                parcel = Parcel(name, candidates, by_name[name], self._tau(name, candidates, taus), place)
                products.add(whole_parcel(parcel, scope.parameters[name], self.ranks))
        losses = self.ranks.gather(torch.cat(found), totals.total)
        if products is None:
            return losses, Products(self.needs, totals.total, losses.dtype, losses.device, scope.mode).finish()
        if blocks:
            return losses, totals.blocks(products.finish())
        if store == "gradients" and self.needs.gram is not None and self.needs.sketch is None:
            return losses, totals.crossed(products, scope.mode.chunk_elements)
        return losses, totals.apart(products)

    def _staged(self, target: TargetBatch) -> dict[str, Tensor]:
        """The target's gradient by parameter, as it is to be used now."""
        scope, own = self.scope, target_part(target, self.ranks)
        losses, sums = weighted_sum(
            scope.forward, scope.parameters, own.tokens, self.micro_batch, own.share, self.work.spend
        )
        scope.check_target(self.ranks.gather(losses, len(target.share)), target.share)
        total = summed(sums, scope.parameters, self.ranks)
        if self.ranks.anywhere(not all(bool(gradient.isfinite().all()) for gradient in total.values())):
            raise TargetNotFinite("the target gradient is not finite")
        return {name: scope.target.stage(name, gradient) for name, gradient in total.items()}

    def _means(self, parameters: Mapping[str, nn.Parameter], own: Batch) -> dict[str, Tensor]:
        """The whole pool's mean gradients."""
        losses, sums = weighted_sum(self.scope.forward, parameters, own, self.micro_batch, spend=self.work.spend)
        (count,) = self.ranks.totals([float(losses.isfinite().sum())])
        return {name: total / max(1.0, count) for name, total in summed(sums, parameters, self.ranks).items()}

    def _tau(self, name: str, candidates: Factor, taus: Mapping[str, Tensor] | None) -> Tau | None:
        if not self.needs.target:
            return None
        scope, held = self.scope, here(self.scope.parameters[name].detach())
        like = Dense(torch.zeros(0, *held.shape, dtype=candidates.dtype, device=held.device))
        found = scope.tau(name, self.needs, like, lambda: scope.target.read(name) if taus is None else taus.get(name))
        return Tau(lambda: found)
