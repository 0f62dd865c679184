"""Per-example gradients of a pool, and of a target beside it, turned into K, b and what else is asked for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from winnow.gradients.backward import backward_through
from winnow.lm.batch import TargetBatch
from winnow.lm.layout import Batch
from winnow.products.cost import Work
from winnow.products.sums import Sums
from winnow.scorer.curvature import pool_curvature
from winnow.scorer.held import HeldFactors
from winnow.scorer.pieces import score_in_pieces
from winnow.scorer.scope import Scope
from winnow.scorer.target import TargetNotFinite
from winnow.scorer.visit import Visit
from winnow.signals import Needs, Signals


class PoolPass:
    """Runs pools and targets through a model, all at once or in pieces, and sums their products.

    Args:
        scope: the model and what goes with it.
        micro_batch: examples that go through the model at a time; None for all.

    Raises:
        ValueError: ``micro_batch`` is out of range, or the mode takes products that pieces cannot.
    """

    def __init__(self, scope: Scope, micro_batch: int | None = None) -> None:
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"pool_micro_batch must be >= 1 or null (scoring.pool_micro_batch), got {micro_batch}")
        if micro_batch is not None and scope.mode.mode == "ghost":
            raise ValueError(
                f"scoring.pool_micro_batch={micro_batch} holds no factors of the whole pool, which scoring.mode=ghost "
                f"needs; set scoring.mode to exact, sketch or auto, or scoring.pool_micro_batch=null"
            )
        self.scope, self.micro_batch = scope, micro_batch
        self.work = Work(scope.mode.sketch_dim)
        """Cost of the last pool."""

    def check(self, needs: Needs) -> None:
        """Refuse needs that the way products are taken cannot meet.

        Args:
            needs: what a selector asks for.

        Raises:
            ValueError: they exclude each other.
        """
        asked = {
            "a target gradient per task (Needs.per_task, as baseline=less or record_tasks=true)": needs.per_task,
            "the curvature of the target loss (Needs.curvature, as selector.order=second of data_shapley)": (
                needs.curvature
            ),
        }
        apart = " and ".join(what for what, wanted in asked.items() if wanted)
        if apart and self.micro_batch is not None:
            raise ValueError(
                f"the selector asks for {apart}, which takes the whole pool and target at once, and "
                f"scoring.pool_micro_batch={self.micro_batch}; set scoring.pool_micro_batch=null"
            )
        if apart and self.scope.mode.mode == "sketch":
            raise ValueError(
                f"the selector asks for {apart}, which is exact and would stand beside approximate products of "
                f"scoring.mode=sketch; set scoring.mode to exact, ghost or auto"
            )
        if needs.sketch is not None and self.scope.mode.mode == "sketch":
            raise ValueError(
                f"the selector has sketches of its own (selector.sketch={needs.sketch}), and scoring.mode=sketch would "
                f"sketch once more; set scoring.mode to exact, ghost or auto"
            )

    def curvature(self, pool: Batch, present: Bool[Tensor, " pool"], target: TargetBatch | None) -> dict[str, Tensor]:
        """H sum_j g_j by parameter, see :func:`winnow.scorer.curvature.pool_curvature`.

        Args:
            pool: the candidates.
            present: which of them have a response token.
            target: target examples.

        Returns:
            What :meth:`__call__` takes as ``hvp``.

        Raises:
            ValueError: there is no target batch.
        """
        if target is None:
            raise ValueError("the curvature of the target loss is computed at every call: give it a target batch")
        return self._curvature(pool, present, target)

    def _curvature(self, pool: Batch, present: Tensor, target: TargetBatch) -> dict[str, Tensor]:
        return pool_curvature(self.scope.forward, self.scope.parameters, pool, present, target)

    def __call__(
        self,
        pool: Batch,
        target: TargetBatch | None,
        needs: Needs,
        *,
        hvp: Mapping[str, Tensor] | None = None,
        held: HeldFactors | None = None,
    ) -> tuple[Float[Tensor, " pool"], Sums]:
        """Score a pool.

        Args:
            pool: the candidates.
            target: target examples; None takes the stored target gradient.
            needs: what to sum.
            hvp: H sum_j g_j by parameter, for ``needs.curvature``.
            held: takes the candidates' factors of all its parameters, for a one-pass update.

        Returns:
            Losses of the candidates, and the sums.

        Raises:
            TargetNotFinite: the target's loss or gradient is not finite.
        """
        self.work = Work(self.scope.mode.sketch_dim)
        if self.micro_batch is not None:
            return score_in_pieces(self.scope, pool, target, needs, self.micro_batch, self.work)
        if target is not None and needs.per_task:
            self.scope.target.tasks = int(target.task.max()) + 1
        visit = Visit(self.scope, pool, target, needs, self.work, hvp, held)
        wanted = self.scope.parameters if held is None else held.parameters
        # Sketches are many small operations, which go faster one after another, and cost no memory where the update
        # holds the factors anyway. Gradients that are formed take no less time then, and the peak is higher.
        hold = held is not None and self.scope.mode.mode == "sketch"
        losses = backward_through(self.scope.forward, wanted, visit.batch, visit.add, counts=visit.counts, hold=hold)
        losses = losses[: visit.size]
        sums = visit.taken(losses.dtype).finish()
        valid, b = losses.isfinite(), sums.alignment if target is not None else None
        if b is not None and bool(valid.any()) and not bool(b[valid].isfinite().any()):
            raise TargetNotFinite("the target gradient is not finite")
        return losses, sums


def signals_of(
    needs: Needs,
    losses: Float[Tensor, " pool"],
    tokens: Int[Tensor, " pool"],
    valid: Bool[Tensor, " pool"],
    sums: Sums,
) -> Signals:
    """What was summed, as a selector gets it.

    Args:
        needs: what was asked for.
        losses: of the candidates.
        tokens: response tokens of each.
        valid: which may be chosen.
        sums: K, b and norms.

    Returns:
        The signals, zero in rows (and columns of K) of candidates that are not valid.
    """

    def of(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.where(valid, values, 0)

    gram, squares = sums.gram, sums.task_squares
    return Signals(
        valid=valid,
        tokens=tokens,
        losses=losses if needs.losses else None,
        alignment=of(sums.alignment),
        gram=None if gram is None else torch.where(valid[:, None] & valid, gram, 0),
        norms=of(sums.norms),
        target_norm=sums.target_square.clamp_min(0).sqrt()
        if needs.target_norm and sums.target_square is not None
        else None,
        curvature=of(sums.curvature),
        task_alignment=of(sums.task_alignment),
        task_norms=None if squares is None else squares.sqrt(),
    )
