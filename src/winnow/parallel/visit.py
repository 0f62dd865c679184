"""One pool whose rows several processes run: losses known to all, gradients kept until all have theirs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from winnow.geometry.base import Preconditioner
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import Dense
from winnow.gradients.factors.precision import accumulation_dtype
from winnow.lm.batch import TargetBatch, concatenate
from winnow.lm.layout import Batch
from winnow.lm.shards import here, in_rows, rows_here
from winnow.parallel.held import reached
from winnow.parallel.part import part_of, target_part
from winnow.parallel.ranks import Ranks
from winnow.scorer.held import HeldFactors
from winnow.scorer.scope import Scope
from winnow.scorer.target import task_key
from winnow.signals import Needs


class PartVisit:
    """A process's rows of a pool, and its examples of the target behind them.

    Args:
        scope: the model and what goes with it.
        pool: all candidates.
        target: all target examples; None takes the stored target gradient.
        needs: what to sum.
        ranks: the processes.
        held: takes the factors of this process's candidates, for a one-pass update.
    """

    def __init__(
        self,
        scope: Scope,
        pool: Batch,
        target: TargetBatch | None,
        needs: Needs,
        ranks: Ranks,
        held: HeldFactors | None = None,
    ) -> None:
        self.scope, self.target, self.needs, self.ranks, self.held = scope, target, needs, ranks, held
        self.total = len(pool["labels"])
        self.size = ranks.share(self.total)
        self.batch = part_of(pool, ranks)
        self.own = None if target is None else target_part(target, ranks)
        if self.own is not None:
            self.batch = concatenate(self.batch, self.own.tokens)
        self.losses = torch.empty(0)
        """Of all candidates, once they are known."""
        self.share = torch.empty(0)
        """Of this process's candidates in the pool's mean gradient."""
        self.arrived: dict[str, Factor] = {}
        self.precision: torch.dtype | None = None
        """Of the gradients as they arrived."""

    def counts(self, losses: Float[Tensor, " part"]) -> Bool[Tensor, " part"]:
        """Whose gradients count, once all processes' losses are known.

        Args:
            losses: of this process's candidates and target examples.

        Returns:
            Those of finite loss; of the target examples, those with a share.

        Raises:
            TargetNotFinite: the target's loss is not finite, in any process.
        """
        self.losses = self.ranks.gather(losses[: self.size], self.total)
        valid = losses.isfinite()
        if self.target is not None and self.own is not None:
            of_target = self.ranks.gather(losses[self.size :], len(self.target.share))
            self.scope.check_target(of_target, self.target.share)
            valid[self.size :] &= self.own.share > 0
        count = self.losses.isfinite().sum().clamp_min(1)
        self.share = valid[: self.size].double() / count
        return valid

    def take(self, name: str, factor: Factor) -> None:
        """Keep a parameter's gradients until the backward is through.

        Args:
            name: the parameter.
            factor: gradients of this process's candidates and target examples.
        """
        if self.held is not None:
            self.held.add(name, factor.examples(slice(0, self.size)))
        if name in self.scope.parameters:
            self.arrived[name] = factor
            self.precision = self.precision or factor.dtype

    def reached(self) -> list[str]:
        """Parameters that the loss of some process reached, in one order everywhere.

        Returns:
            Their names.
        """
        return reached(self.arrived, self.scope.parameters, self.ranks)

    def gradients(self, name: str) -> Factor:
        """A parameter's gradients, see :func:`gradients_of`; they are not kept any longer.

        Args:
            name: the parameter.

        Returns:
            Of candidates and target examples.
        """
        return gradients_of(self.arrived.pop(name, None), self.scope.parameters[name], len(self.batch["labels"]))

    def preconditioner(self, name: str, candidates: Factor, ready: Mapping[str, Preconditioner]) -> Preconditioner:
        """P of a parameter.

        Args:
            name: the parameter.
            candidates: gradients of this process's candidates.
            ready: those that are known already.

        Returns:
            P of the whole parameter, the same everywhere; of a parameter in rows, P of those that are here.
        """
        found = ready.get(name)
        if found is not None:
            return found
        return self.scope.geometry.preconditioner(
            self.scope.parameters[name], name, lambda: self._summed(name, candidates, self.share)
        )

    def tau(self, name: str, factor: Factor) -> Float[Tensor, "*shape"] | None:
        """The target's gradient of a parameter, summed over the processes; None where no target is needed.

        Args:
            name: the parameter.
            factor: gradients of this process's candidates and target examples.

        Returns:
            As :meth:`winnow.scorer.scope.Scope.tau`, the same everywhere; of a parameter in rows, those that are here.
        """
        if not self.needs.target:
            return None
        scope, like = self.scope, self._like(name, factor)
        if self.own is None:
            return scope.tau(name, self.needs, like, lambda: scope.target.read(name))
        share = self.own.share
        return scope.tau(name, self.needs, like, lambda: scope.target.stage(name, self._target(name, factor, share)))

    def by_task(self, name: str, factor: Factor) -> list[Tensor]:
        """A parameter's gradient on every target task, where that is asked for.

        Args:
            name: the parameter.
            factor: gradients of this process's candidates and target examples.

        Returns:
            One for each task, as :meth:`tau` has them.
        """
        found = []
        for number in range(self.scope.target.tasks if self.needs.per_task else 0):
            if self.target is None or self.own is None:
                tau = self.scope.target.read(task_key(name, number))
            else:
                whole = torch.where(self.target.task == number, self.target.share, 0).sum()
                share = torch.where(self.own.task == number, self.own.share, 0)
                share = share / whole.clamp_min(torch.finfo(share.dtype).tiny)
                tau = self.scope.target.stage(task_key(name, number), self._target(name, factor, share))
            like = self._like(name, factor)
            zeros = torch.zeros(like.shape, dtype=like.dtype, device=self.scope.parameters[name].device)
            found.append(zeros if tau is None else tau)
        return found

    def first_row(self, name: str) -> int:
        """Where P and tau of a parameter begin.

        Args:
            name: the parameter.

        Returns:
            Of a parameter in rows, the first that is here; otherwise 0.
        """
        parameter = self.scope.parameters[name]
        return rows_here(parameter).start if in_rows(parameter) else 0

    def _target(self, name: str, factor: Factor, share: Tensor) -> Tensor:
        return self._summed(name, factor.examples(slice(self.size, len(factor))), share)

    def _summed(self, name: str, factor: Factor, share: Tensor) -> Tensor:
        """A weighted sum of all processes' gradients; of a parameter in rows, those that are here."""
        combined = factor.combine(share)
        return self.ranks.sum_rows(combined) if in_rows(self.scope.parameters[name]) else self.ranks.sum(combined)

    def _like(self, name: str, factor: Factor) -> Factor:
        """Of the shape and precision in which P and tau of a parameter are."""
        parameter = self.scope.parameters[name]
        if not in_rows(parameter):
            return factor
        local = here(parameter.detach())
        return Dense(torch.zeros(0, *local.shape, dtype=factor.dtype, device=local.device))


def gradients_of(arrived: Factor | None, parameter: Float[Tensor, "*shape"], count: int) -> Factor:
    """A parameter's gradients in the precision of sums, zeros where this process's loss did not reach it.

    Args:
        arrived: as they came.
        parameter: whose they are.
        count: of the examples.

    Returns:
        One for each example.
    """
    if arrived is not None:
        return arrived.to(accumulation_dtype(arrived.dtype))
    dtype = accumulation_dtype(parameter.dtype)
    return Dense(torch.zeros(count, *parameter.shape, dtype=dtype, device=parameter.device))
