"""Pools larger than memory: scored a few examples at a time, the target's gradient first."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.geometry.base import Geometry, Preconditioner
from winnow.gradients.backward import backward_through
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.precision import accumulation_dtype
from winnow.gradients.weighted_sum import weighted_sum
from winnow.lm.batch import TargetBatch, pieces
from winnow.lm.layout import Batch
from winnow.lm.shards import here
from winnow.products.cost import Work
from winnow.products.metered import metered
from winnow.products.mode import STORED_NUMBERS
from winnow.products.parcel import Parcel, Tau
from winnow.products.products import Products
from winnow.products.sums import Sums
from winnow.scorer.scope import Scope
from winnow.scorer.target import TargetNotFinite
from winnow.signals import Needs


def score_in_pieces(
    scope: Scope, pool: Batch, target: TargetBatch | None, needs: Needs, micro_batch: int, work: Work
) -> tuple[Float[Tensor, " pool"], Sums]:
    """The same as a pool at once, a piece of it at a time.

    Args:
        scope: the model and what goes with it.
        pool: the candidates.
        target: target examples; None takes the stored target gradient.
        needs: what to sum.
        micro_batch: examples that go through the model at a time.
        work: counts what is done.

    Returns:
        Losses of the candidates, and the sums.

    Raises:
        TargetNotFinite: the target's loss or gradient is not finite.
    """
    taus = None if target is None else _staged(scope, target, micro_batch, work)

    def means(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        losses, total = weighted_sum(scope.forward, parameters, pool, micro_batch, spend=work.spend)
        return {name: gradient / losses.isfinite().sum() for name, gradient in total.items()}

    by_name = {
        name: metered(preconditioner, scope.parameters[name].numel(), work)
        for name, preconditioner in preconditioners(scope.geometry, scope.parameters, means).items()
    }
    size, device = len(pool["labels"]), pool["labels"].device
    products: Products | None = None
    found: list[Tensor] = []
    for rows, piece in pieces(pool, micro_batch):

        def add(name: str, factor: Factor, rows: slice = rows) -> None:
            nonlocal products
            if products is None:
                products = Products(needs, size, factor.dtype, device, scope.mode, stored_as(scope, size), work=work)
            candidates, tau = factor.to(accumulation_dtype(factor.dtype)), None
            if needs.target:
                tau = Tau(
                    lambda: scope.tau(
                        name, needs, candidates, lambda: scope.target.read(name) if taus is None else taus.get(name)
                    )
                )
            products.add(Parcel(name, candidates, by_name[name], tau, rows))

        found.append(backward_through(scope.forward, scope.parameters, piece, add))
    losses = torch.cat(found)
    if products is None:
        products = Products(needs, size, losses.dtype, device, scope.mode)
    return losses, products.finish()


def preconditioners(
    geometry: Geometry,
    parameters: Mapping[str, nn.Parameter],
    means: Callable[[Mapping[str, nn.Parameter]], dict[str, Tensor]],
) -> dict[str, Preconditioner]:
    """P of every parameter at once; before the optimizer has a state, from the whole pool's mean gradient.

    Args:
        geometry: the optimizer's geometry.
        parameters: the parameters, by name.
        means: the pool's mean gradients of some parameters; called only if the geometry asks for any.

    Returns:
        P by name.
    """
    asked: dict[str, nn.Parameter] = {}

    def build(name: str, mean: Callable[[], Tensor]) -> Preconditioner:
        return geometry.preconditioner(parameters[name], name, mean)

    def ask(name: str) -> Tensor:
        asked[name] = parameters[name]
        return torch.zeros_like(here(parameters[name].detach()), dtype=accumulation_dtype(parameters[name].dtype))

    found = {name: build(name, lambda name=name: ask(name)) for name in parameters}  # type: ignore[misc]
    if asked:
        mean = means(asked)
        found |= {name: build(name, lambda name=name: mean[name]) for name in asked if name in mean}  # type: ignore[misc]
    return found


def _staged(scope: Scope, target: TargetBatch, micro_batch: int, work: Work) -> dict[str, Tensor]:
    """The target's gradient by parameter, as it is to be used now."""
    losses, total = weighted_sum(scope.forward, scope.parameters, target.tokens, micro_batch, target.share, work.spend)
    scope.check_target(losses, target.share)
    if not all(bool(gradient.isfinite().all()) for gradient in total.values()):
        raise TargetNotFinite("the target gradient is not finite")
    return {name: scope.target.stage(name, gradient) for name, gradient in total.items()}


def stored_as(scope: Scope, size: int) -> str:
    """What is kept of candidates that arrive in pieces, so that K has the products across pieces.

    Args:
        scope: the model and what goes with it.
        size: candidates of the pool.

    Returns:
        ``gradients`` or ``sketches``.
    """
    if scope.mode.mode == "auto":
        numbers = size * sum(parameter.numel() for parameter in scope.parameters.values())
        return "gradients" if numbers <= STORED_NUMBERS else "sketches"
    return "sketches" if scope.mode.mode == "sketch" else "gradients"
