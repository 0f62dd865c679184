"""One pool whose rows several processes run: losses known to all, gradients kept until all have theirs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from winnow.geometry.base import Preconditioner
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import Dense
from winnow.gradients.factors.precision import accumulation_dtype
from winnow.lm.batch import TargetBatch, concatenate
from winnow.lm.layout import Batch
from winnow.lm.shards import here, in_rows
from winnow.parallel.held import BUCKET, reached
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

    def batches(self) -> Iterator[dict[str, Factor]]:
        """Gradients of parameters that the loss of some process reached, in one order everywhere.

        Yields:
            As many parameters as are to be summed in one go, with gradients of candidates and target examples, which
            are not kept any longer.
        """
        found, numbers = dict[str, Factor](), 0
        for name in reached(self.arrived, self.scope.parameters, self.ranks):
            parameter = self.scope.parameters[name]
            found[name] = gradients_of(self.arrived.pop(name, None), parameter, len(self.batch["labels"]))
            numbers += parameter.numel()
            if numbers >= BUCKET:
                yield found
                found, numbers = {}, 0
        if found:
            yield found

    def preconditioner(self, name: str, factor: Factor, ready: Mapping[str, Preconditioner]) -> Preconditioner:
        """P of a parameter.

        Args:
            name: the parameter.
            factor: gradients of this process's candidates and target examples.
            ready: those that are known already.

        Returns:
            P of the whole parameter, the same everywhere; of a parameter in rows, P of those that are here.
        """
        found = ready.get(name)
        if found is not None:
            return found
        parameter, candidates = self.scope.parameters[name], factor.examples(slice(0, self.size))

        def mean() -> Tensor:
            own = candidates.combine(self.share)
            return self.ranks.sum_rows(own) if in_rows(parameter) else self.ranks.sum(own)

        return self.scope.geometry.preconditioner(parameter, name, mean)

    def taus(self, factors: Mapping[str, Factor], in_part: Collection[str] = ()) -> dict[str, list[Tensor]]:
        """The target's gradients of some parameters, summed over the processes.

        Args:
            factors: gradients of this process's candidates and target examples.
            in_part: of these the rows are enough that are this process's.

        Returns:
            For each parameter, as :meth:`winnow.scorer.scope.Scope.tau` has it, the whole target's gradient and then
            that of every task, where they are asked for; none where no target is needed. Of a parameter in rows,
            those that are here.
        """
        if not self.needs.target:
            return {name: [] for name in factors}
        sums = self._sums(factors, in_part)
        return {name: self._staged(name, factor, sums.get(name, ())) for name, factor in factors.items()}

    def _sums(self, factors: Mapping[str, Factor], in_part: Collection[str]) -> dict[str, list[Tensor]]:
        """Sums over the processes of their target examples' gradients, by the shares of the whole and of each task."""
        if self.own is None:
            return {}
        shares = self._shares(self.own)
        combined: dict[tuple[torch.dtype, bool], dict[str, list[Tensor]]] = defaultdict(dict)
        for name, factor in factors.items():
            examples = factor.examples(slice(self.size, len(factor)))
            cut = name in in_part or in_rows(self.scope.parameters[name])
            own = [examples.combine(share) for share in shares]
            combined[factor.dtype, cut][name] = [one if one.ndim or not cut else one[None] for one in own]
        found: dict[str, list[Tensor]] = {}
        for (_, cut), named in combined.items():
            flat = [one for own in named.values() for one in own]
            sums = iter(self.ranks.sums_rows(flat) if cut else self.ranks.sums(flat))
            found |= {name: [next(sums) for _ in own] for name, own in named.items()}
        return found

    def _shares(self, own: TargetBatch) -> list[Tensor]:
        """This process's shares in the whole target, and in every task where they are asked for."""
        assert self.target is not None
        shares = [own.share]
        for number in range(self.scope.target.tasks if self.needs.per_task else 0):
            whole = torch.where(self.target.task == number, self.target.share, 0).sum()
            share = torch.where(own.task == number, own.share, 0)
            shares.append(share / whole.clamp_min(torch.finfo(share.dtype).tiny))
        return shares

    def _staged(self, name: str, factor: Factor, sums: Sequence[Tensor]) -> list[Tensor]:
        """Target gradients as they are to be used now: new ones, or those that are stored."""
        scope, like = self.scope, self._like(name, factor)
        keys = [name]
        keys += [task_key(name, number) for number in range(scope.target.tasks if self.needs.per_task else 0)]
        of = (
            [scope.target.stage(*one) for one in zip(keys, sums, strict=True)] if sums else map(scope.target.read, keys)
        )
        whole, *by_task = of
        zeros = torch.zeros(like.shape, dtype=like.dtype, device=scope.parameters[name].device)
        return [scope.tau(name, self.needs, like, lambda: whole), *(zeros if one is None else one for one in by_task)]

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
