"""A Hessian-vector product of the target loss: the second order of what a step on the pool does to it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from winnow.lm.batch import target_shares
from winnow.lm.layout import KEYS, Batch
from winnow.lm.losses import example_losses


def pool_curvature(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    pool: Batch,
    usable: Bool[Tensor, " pool"],
    target: Batch,
    weight: Float[Tensor, " target"],
    reduction: str = "mean",
) -> dict[str, Tensor]:
    """H v with H the Hessian of the weighted target loss and v = sum_j g_j over the pool, by double backward.

    Args:
        model: a causal language model, scored as it is (dropout off).
        parameters: those that take part; H and v are restricted to them.
        pool: the candidates.
        usable: which of them v sums over; the others are not run.
        target: target examples.
        weight: share of each in the target loss, summing to one; those of weight zero are not run.
        reduction: ``mean`` | ``sum`` over an example's response tokens.

    Returns:
        H v by parameter, in the parameters' own precision; parameters that the loss does not bend are missing.
    """
    held = list(parameters.values())
    # Fused attention kernels have no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        losses = example_losses(model, _rows(pool, usable), reduction)
        total = torch.autograd.grad(losses[losses.isfinite()].sum(), held, allow_unused=True)
        losses = example_losses(model, _rows(target, weight > 0), reduction)
        loss = (losses * weight[weight > 0].to(losses.dtype)).sum()
        first = torch.autograd.grad(loss, held, create_graph=True, allow_unused=True)
        pairs = zip(first, total, strict=True)
        terms = [(mine * other).sum() for mine, other in pairs if mine is not None and other is not None]
        second = torch.autograd.grad(torch.stack(terms).sum(), held, allow_unused=True)
    return {name: value.detach() for name, value in zip(parameters, second, strict=True) if value is not None}


def scored_curvature(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    pool: Batch,
    present: Bool[Tensor, " pool"],
    target: Batch | None,
    target_weight: Float[Tensor, " target"] | None,
    reduction: str = "mean",
) -> dict[str, Tensor]:
    """:func:`pool_curvature` over the candidates of finite loss.

    Args:
        model: a causal language model, scored as it is.
        parameters: those that take part.
        pool: the candidates.
        present: which of them have a response token.
        target: target examples.
        target_weight: share of each; equal ones if None.
        reduction: ``mean`` | ``sum`` over an example's response tokens.

    Returns:
        H v by parameter; empty where no candidate can be used.

    Raises:
        ValueError: there is no target batch.
    """
    if target is None:
        raise ValueError("the curvature of the target loss is computed at every call: give it a target batch")
    weight = target_shares(target, target_weight)
    with torch.no_grad():
        usable = present & example_losses(model, pool, reduction).isfinite()
    if not bool(usable.any()):
        return {}
    return pool_curvature(model, parameters, pool, usable, target, weight, reduction)


def _rows(batch: Batch, index: Tensor) -> dict[str, Tensor]:
    return {key: batch[key][index] for key in KEYS}
