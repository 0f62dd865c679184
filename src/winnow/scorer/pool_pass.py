"""Per-example gradients of a pool, and of a target beside it, turned into K, b and what else is asked for."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from winnow.geometry import Geometry
from winnow.gradients.backward import backward_through
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.precision import accumulation_dtype
from winnow.gradients.weighted_sum import weighted_sum
from winnow.lm.batch import concatenate, pieces
from winnow.lm.layout import Batch
from winnow.lm.losses import example_losses
from winnow.lm.packing import Packing, check, needs_one_row, pack
from winnow.products.cost import Work
from winnow.products.mode import STORED_NUMBERS, Method
from winnow.products.products import Products
from winnow.products.tau import Target
from winnow.scorer.held import KeptFactors
from winnow.scorer.pieces import preconditioners
from winnow.scorer.target import TargetGradient
from winnow.signals import Needs

log = logging.getLogger(__name__)

TASK = "@"
"""Stands between a parameter's name and a task's number where gradients are kept by task."""


class TargetNotFinite(RuntimeError):
    """The target batch has no usable gradient at this step and none is stored to reuse."""


class PoolPass:
    """Runs pools and targets through a model, all at once or in pieces, and sums their products.

    Args:
        model: a causal language model.
        parameters: those that take part, by name.
        geometry: gives P and the momentum of each.
        target: holds target gradients over the calls.
        method: how products are taken.
        reduction: ``mean`` | ``sum`` over an example's response tokens.
        micro_batch: examples that go through the model at a time; None for all.
        pack: lay the examples end to end in rows where that saves padding.

    Raises:
        ValueError: ``micro_batch`` is out of range, or ``method`` takes products that pieces cannot.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        geometry: Geometry,
        target: TargetGradient,
        method: Method,
        reduction: str = "mean",
        micro_batch: int | None = None,
        pack: bool = False,
    ) -> None:
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"pool_micro_batch must be >= 1 or null (scoring.pool_micro_batch), got {micro_batch}")
        if micro_batch is not None and method.mode == "ghost":
            raise ValueError(
                f"scoring.pool_micro_batch={micro_batch} holds no factors of the whole pool, which scoring.mode=ghost "
                f"needs; set scoring.mode to exact, sketch or auto, or scoring.pool_micro_batch=null"
            )
        self.model, self.parameters, self.geometry = model, parameters, geometry
        self.target, self.method, self.reduction, self.micro_batch = target, method, reduction, micro_batch
        self.pack, self._unchecked = pack, pack
        self.padded_tokens = self.packed_tokens = 0
        """Cells of the batches so far with padding, and as they were laid in rows; none without ``pack``."""
        self.target_loss: Tensor | None = None
        """Weighted mean loss of the last target batch, detached; None if the last call ran none."""
        self.work = Work(method.sketch_dim)
        """What the last pool that was scored at once took."""
        self.tasks = 0
        """Number of target tasks of the last target gradient that was taken by task."""

    def check(self, needs: Needs) -> None:
        """Refuse needs that the way products are taken cannot meet.

        Args:
            needs: what a selector asks for.

        Raises:
            ValueError: they exclude each other.
        """
        apart = (
            "a target gradient per task (Needs.per_task, as baseline=less or record_tasks=true)"
            if needs.per_task
            else None
        )
        if needs.curvature:
            apart = "the curvature of the target loss (Needs.curvature, as selector.order=second of data_shapley)"
        if apart is not None and self.micro_batch is not None:
            raise ValueError(
                f"the selector asks for {apart}, which takes the whole pool and target at once, and "
                f"scoring.pool_micro_batch={self.micro_batch}; set scoring.pool_micro_batch=null"
            )
        if apart is not None and self.method.mode == "sketch":
            raise ValueError(
                f"the selector asks for {apart}, which is exact and would stand beside approximate products of "
                f"scoring.mode=sketch; set scoring.mode to exact, ghost or auto"
            )
        if needs.sketch is not None and self.method.mode == "sketch":
            raise ValueError(
                f"the selector has sketches of its own (selector.sketch={needs.sketch}), and scoring.mode=sketch would "
                f"sketch once more; set scoring.mode to exact, ghost or auto"
            )

    def __call__(
        self,
        pool: Batch,
        target: Batch | None,
        weight: Float[Tensor, " target"] | None,
        needs: Needs,
        *,
        task: Int[Tensor, " target"] | None = None,
        bend: Mapping[str, Tensor] | None = None,
        kept: KeptFactors | None = None,
    ) -> tuple[Float[Tensor, " pool"], Products]:
        """Score a pool.

        Args:
            pool: the candidates.
            target: target examples; None takes the stored target gradient.
            weight: share of each target example.
            needs: what to sum.
            task: number of each target example's task, for ``needs.per_task``.
            bend: H sum_j g_j by parameter, for ``needs.curvature``.
            kept: takes the candidates' factors of all its parameters, for a one-pass update.

        Returns:
            Losses of the candidates, and the sums.

        Raises:
            TargetNotFinite: the target's loss or gradient is not finite.
        """
        if self.micro_batch is not None:
            return self._in_pieces(pool, target, weight, needs, self.micro_batch)
        if task is not None:
            self.tasks = int(task.max()) + 1
        self.work = Work(self.method.sketch_dim)
        size, device = len(pool["labels"]), pool["labels"].device
        batch = pool if target is None else concatenate(pool, target)
        total = len(batch["input_ids"])
        products: Products | None = None
        share = torch.empty(0)
        # In one go: between layers, the code and data of so many small operations are out of the cache.
        ready = self.geometry.ready(self.parameters)

        def add(name: str, factor: Factor) -> None:
            nonlocal products
            candidates = factor.examples(slice(0, size))
            if kept is not None:
                kept.add(name, candidates)
            if name not in self.parameters:
                return
            if products is None:
                products = Products(needs, size, factor.dtype, device, self.method, tasks=self.tasks)
            wide = accumulation_dtype(factor.dtype)
            candidates = candidates.to(wide)
            preconditioner = ready.get(name) or self.geometry.preconditioner(
                self.parameters[name], name, lambda: candidates.combine(share)
            )
            tau = None

            def examples() -> Factor:
                return factor.examples(slice(size, total)).to(wide)

            if needs.target and weight is None:
                tau = Target(lambda: self._tau(name, needs, candidates, lambda: self.target.read(name)))
            elif needs.target:
                assert weight is not None
                tau = Target(
                    lambda: self._tau(
                        name, needs, candidates, lambda: self.target.stage(name, examples().combine(weight))
                    ),
                    *(() if self.target.keep or needs.momentum else (examples, weight, factor.to(wide))),
                )
                if self.target.keep:
                    tau.tensor()  # it has to outlive the step, whoever asks for it now
            tasks = self._task_gradients(name, examples, weight, task, candidates) if needs.per_task else []
            formed = None if kept is None else functools.partial(kept.add, name)
            bent = None if bend is None else bend.get(name)
            kind = products.add(name, candidates, preconditioner, tau, tasks=tasks, bend=bent, on_formed=formed)
            self.work.note(kind, candidates, total - size)

        def prepare(losses: Tensor) -> Tensor:
            nonlocal share
            valid = losses.isfinite()
            if weight is not None:
                self._check_target(losses[size:], weight)
                valid[size:] &= weight > 0
            share = valid[:size].double() / valid[:size].sum().clamp_min(1)
            return valid

        wanted = self.parameters if kept is None else kept.parameters
        # Sketches are many small operations, which go faster one after another, and cost no memory where the update
        # holds the factors anyway. Gradients that are formed take no less time then, and the peak is higher.
        hold = kept is not None and self.method.mode == "sketch"
        losses = backward_through(self.model, wanted, batch, self.reduction, add, prepare, self.packing(batch), hold)
        losses = losses[:size]
        if products is None:
            products = Products(needs, size, losses.dtype, device, self.method, tasks=self.tasks)
        products.finish()
        valid, b = losses.isfinite(), products.alignment if weight is not None else None
        if b is not None and bool(valid.any()) and not bool(b[valid].isfinite().any()):
            raise TargetNotFinite("the target gradient is not finite")
        return losses, products

    def packing(self, batch: Batch) -> Packing | None:
        """Lay a batch in rows, if that is asked for and saves anything; the first time, compare the losses.

        Args:
            batch: the examples.

        Returns:
            The rows; None to leave the batch padded.

        Raises:
            PackingError: the model does not keep packed examples apart.
        """
        if not self.pack:
            return None
        rows, padded = pack(batch, needs_one_row(self.model)), batch["input_ids"].numel()
        if rows.input_ids.numel() >= padded:
            self.padded_tokens += padded
            self.packed_tokens += padded
            return None
        if self._unchecked:
            with torch.no_grad():
                alone = example_losses(self.model, batch, self.reduction)
                check(self.model, alone, rows.losses(self.model, self.reduction))
            self._unchecked = False
            log.info("scoring.pack: rows of %d tokens in place of %d padded", rows.input_ids.numel(), padded)
        self.padded_tokens += padded
        self.packed_tokens += rows.input_ids.numel()
        return rows

    def _tau(
        self, name: str, needs: Needs, like: Factor, gradient: Callable[[], Tensor | None]
    ) -> Float[Tensor, "*shape"]:
        parameter, tau = self.parameters[name], gradient()
        momentum = self.geometry.momentum(parameter, name) if needs.momentum else None
        tau = torch.zeros(like.shape, dtype=like.dtype, device=parameter.device) if tau is None else tau
        return tau if momentum is None else tau - momentum.to(tau.dtype)

    def _in_pieces(
        self, pool: Batch, target: Batch | None, weight: Float[Tensor, " target"] | None, needs: Needs, few: int
    ) -> tuple[Float[Tensor, " pool"], Products]:
        """The same as a pool at once, a piece of it at a time."""
        size, device = len(pool["labels"]), pool["labels"].device
        taus: dict[str, Tensor] | None = None
        if target is not None and weight is not None:
            losses, total = weighted_sum(self.model, self.parameters, target, few, self.reduction, weight, self.packing)
            self._check_target(losses, weight)
            if not all(bool(gradient.isfinite().all()) for gradient in total.values()):
                raise TargetNotFinite("the target gradient is not finite")
            taus = {name: self.target.stage(name, gradient) for name, gradient in total.items()}

        def means(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
            losses, total = weighted_sum(self.model, parameters, pool, few, self.reduction, packing=self.packing)
            return {name: gradient / losses.isfinite().sum() for name, gradient in total.items()}

        geometry = preconditioners(self.geometry, self.parameters, means)
        products: Products | None = None
        found: list[Tensor] = []
        for rows, piece in pieces(pool, few):

            def add(name: str, factor: Factor, rows: slice = rows) -> None:
                nonlocal products
                if products is None:
                    products = Products(needs, size, factor.dtype, device, self.method, self._store(size))
                candidates, tau = factor.to(accumulation_dtype(factor.dtype)), None
                if needs.target:
                    tau = Target(
                        lambda: self._tau(
                            name, needs, candidates, lambda: self.target.read(name) if taus is None else taus.get(name)
                        )
                    )
                products.add(name, candidates, geometry[name], tau, rows)

            found.append(
                backward_through(self.model, self.parameters, piece, self.reduction, add, packing=self.packing(piece))
            )
        losses = torch.cat(found)
        if products is None:
            products = Products(needs, size, losses.dtype, device, self.method)
        products.finish()
        return losses, products

    def _store(self, size: int) -> str:
        if self.method.mode == "auto":
            numbers = size * sum(parameter.numel() for parameter in self.parameters.values())
            return "gradients" if numbers <= STORED_NUMBERS else "sketches"
        return "sketches" if self.method.mode == "sketch" else "gradients"

    def _task_gradients(
        self, name: str, examples: Callable[[], Factor], weight: Tensor | None, task: Tensor | None, like: Factor
    ) -> list[Tensor]:
        """A parameter's gradient on every target task, each the mean of its examples by their weights."""
        found = []
        for number in range(self.tasks):
            key = f"{name}{TASK}{number}"
            if weight is None or task is None:
                tau = self.target.read(key)
            else:
                own = torch.where(task == number, weight, 0)
                own = own / own.sum().clamp_min(torch.finfo(own.dtype).tiny)
                tau = self.target.stage(key, examples().combine(own))
            zeros = torch.zeros(like.shape, dtype=like.dtype, device=self.parameters[name].device)
            found.append(zeros if tau is None else tau)
        return found

    def _check_target(self, losses: Float[Tensor, " target"], weight: Float[Tensor, " target"]) -> None:
        loss = torch.where(weight > 0, losses * weight, 0).sum()
        self.target_loss = loss
        if not bool(loss.isfinite()):
            raise TargetNotFinite(f"the loss of the target batch is {float(loss)}")
