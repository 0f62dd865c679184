"""A Hessian-vector product of the target loss: the second order of what a step on the pool does to it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from winnow.lm.batch import TargetBatch
from winnow.lm.forward import Forward
from winnow.lm.layout import KEYS, Batch, weighed, weights_beside


def pool_curvature(
    forward: Forward,
    parameters: Mapping[str, nn.Parameter],
    pool: Batch,
    usable: Bool[Tensor, " pool"],
    target: TargetBatch,
) -> dict[str, Tensor]:
    """H v with H the Hessian of the weighted target loss and v = sum_j g_j over the pool, by double backward.

    Args:
        forward: the model, scored as it is (dropout off).
        parameters: those that take part; H and v are restricted to them.
        pool: the candidates.
        usable: which of them v sums over; the others are not run.
        target: target examples; those without a share are not run.

    Returns:
        H v by parameter, in the parameters' own precision; parameters with H v = 0 by construction are absent.
    """
    held, weight = list(parameters.values()), target.share
    # Fused attention kernels have no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        rows = _rows(pool, usable)
        losses = weighed(forward.losses(rows), rows)
        total = torch.autograd.grad(losses[losses.isfinite()].sum(), held, allow_unused=True)
        losses = forward.losses(_rows(target.tokens, weight > 0))
        loss = (losses * weight[weight > 0].to(losses.dtype)).sum()
        first = torch.autograd.grad(loss, held, create_graph=True, allow_unused=True)
        pairs = zip(first, total, strict=True)
        terms = [(mine * other).sum() for mine, other in pairs if mine is not None and other is not None]
        forward.passes.extend([forward.passes[-1]] * 2)  # the second derivative goes back through both of them
        second = torch.autograd.grad(torch.stack(terms).sum(), held, allow_unused=True)
    return {name: value.detach() for name, value in zip(parameters, second, strict=True) if value is not None}


def scored_curvature(
    forward: Forward,
    parameters: Mapping[str, nn.Parameter],
    pool: Batch,
    present: Bool[Tensor, " pool"],
    target: TargetBatch | None,
) -> dict[str, Tensor]:
    """:func:`pool_curvature` over the candidates of finite loss.

    Args:
        forward: the model, scored as it is.
        parameters: those that take part.
        pool: the candidates.
        present: which of them have a response token.
        target: target examples.

    Returns:
        H v by parameter; empty where no candidate can be used.

    Raises:
        ValueError: there is no target batch.
    """
    if target is None:
        raise ValueError("the curvature of the target loss is computed at every call: give it a target batch")
    with torch.no_grad():
        usable = present & forward.losses(pool).isfinite()
    return pool_curvature(forward, parameters, pool, usable, target) if bool(usable.any()) else {}


def _rows(batch: Batch, index: Tensor) -> dict[str, Tensor]:
    return {key: batch[key][index] for key in KEYS} | weights_beside(batch, index)
