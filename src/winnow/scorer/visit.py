"""One pool on its way through the model: gradients come parameter by parameter and leave as products."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from winnow.geometry.base import Preconditioner
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.precision import accumulation_dtype
from winnow.lm.batch import TargetBatch, concatenate
from winnow.lm.layout import Batch
from winnow.products.cost import Work
from winnow.products.metered import metered
from winnow.products.parcel import Parcel, Tau
from winnow.products.products import Products
from winnow.scorer.held import HeldFactors
from winnow.scorer.scope import Scope
from winnow.scorer.target import task_key
from winnow.signals import Needs


class Visit:
    """A pool, and the target batch behind it, scored in one forward and backward.

    Args:
        scope: the model and what goes with it.
        pool: the candidates.
        target: None takes the stored target gradient.
        needs: what to sum.
        work: counts what is done.
        hvp: H sum_j g_j by parameter, for ``needs.curvature``.
        held: takes the candidates' factors of all its parameters, for a one-pass update.
    """

    def __init__(
        self,
        scope: Scope,
        pool: Batch,
        target: TargetBatch | None,
        needs: Needs,
        work: Work,
        hvp: Mapping[str, Tensor] | None = None,
        held: HeldFactors | None = None,
    ) -> None:
        self.scope, self.target = scope, target
        self.size, self.device = len(pool["labels"]), pool["labels"].device
        self.batch = pool if target is None else concatenate(pool, target.tokens)
        self.total = len(self.batch["labels"])
        self.needs, self.work, self.hvp, self.held = needs, work, hvp, held
        self.products: Products | None = None
        """There from the first gradient on, which tells their precision."""
        self.share = torch.empty(0)
        """One over the number of candidates of finite loss, for each of those."""
        self.ready = scope.geometry.ready(scope.parameters)

    def counts(self, losses: Float[Tensor, " total"]) -> Bool[Tensor, " total"]:
        """Whose gradients count, once the losses are known.

        Args:
            losses: of candidates and target examples.

        Returns:
            Those of finite loss; of the target examples, those with a share.

        Raises:
            TargetNotFinite: the target's loss is not finite.
        """
        valid = losses.isfinite()
        if self.target is not None:
            self.scope.check_target(losses[self.size :], self.target.share)
            valid[self.size :] &= self.target.share > 0
        candidates = valid[: self.size]
        self.share = candidates.double() / candidates.sum().clamp_min(1)
        return valid

    def add(self, name: str, factor: Factor) -> None:
        """Take a parameter's gradients.

        Args:
            name: the parameter.
            factor: gradients of candidates and target examples.
        """
        candidates = factor.examples(slice(0, self.size))
        if self.held is not None:
            self.held.add(name, candidates)
        if name not in self.scope.parameters:
            return
        candidates = candidates.to(accumulation_dtype(factor.dtype))
        preconditioner = self.ready.get(name) or self._preconditioner(name, candidates)
        tau = self._tau(name, candidates, factor) if self.needs.target else None
        self.taken(factor.dtype).add(
            Parcel(
                name,
                candidates,
                preconditioner,
                tau,
                targets=self.total - self.size,
                by_task=self._by_task(name, candidates, factor) if self.needs.per_task else (),
                hvp=None if self.hvp is None else self.hvp.get(name),
                on_formed=None if self.held is None else functools.partial(self.held.add, name),
            )
        )

    def taken(self, dtype: torch.dtype) -> Products:
        """The products so far.

        Args:
            dtype: precision of the gradients; of the losses, where there were none.

        Returns:
            The same at every call.
        """
        if self.products is None:
            tasks, mode, device = self.scope.target.tasks, self.scope.mode, self.device
            self.products = Products(self.needs, self.size, dtype, device, mode, tasks=tasks, work=self.work)
        return self.products

    def _preconditioner(self, name: str, candidates: Factor) -> Preconditioner:
        parameter = self.scope.parameters[name]

        def mean() -> Tensor:
            self.work.spend(candidates.combining)
            return candidates.combine(self.share)

        return metered(self.scope.geometry.preconditioner(parameter, name, mean), parameter.numel(), self.work)

    def _examples(self, factor: Factor) -> Factor:
        return factor.examples(slice(self.size, self.total)).to(accumulation_dtype(factor.dtype))

    def _tau(self, name: str, candidates: Factor, factor: Factor) -> Tau:
        scope, needs, target = self.scope, self.needs, self.target
        if target is None:
            return Tau(lambda: scope.tau(name, needs, candidates, lambda: scope.target.read(name)))

        def make() -> Tensor:
            return scope.tau(
                name, needs, candidates, lambda: scope.target.stage(name, self._examples(factor).combine(target.share))
            )

        if scope.target.keep:
            tau = Tau(make)
            tau.tensor()  # it has to outlive the step, whoever asks for it now
            return tau
        if needs.momentum:
            return Tau(make)
        return Tau(make, lambda: self._examples(factor), target.share, factor.to(accumulation_dtype(factor.dtype)))

    def _by_task(self, name: str, like: Factor, factor: Factor) -> list[Tensor]:
        """A parameter's gradient on every target task, each the mean of its examples by their weights."""
        found = []
        for number in range(self.scope.target.tasks):
            if self.target is None:
                tau = self.scope.target.read(task_key(name, number))
            else:
                own = torch.where(self.target.task == number, self.target.share, 0)
                own = own / own.sum().clamp_min(torch.finfo(own.dtype).tiny)
                tau = self.scope.target.stage(task_key(name, number), self._examples(factor).combine(own))
            zeros = torch.zeros(like.shape, dtype=like.dtype, device=self.scope.parameters[name].device)
            found.append(zeros if tau is None else tau)
        return found
