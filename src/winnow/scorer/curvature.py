"""A Hessian-vector product of the target loss: the second order of what a step on the pool does to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from winnow.lm.batch import TargetBatch
from winnow.lm.forward import Forward
from winnow.lm.layout import KEYS, Batch, weighed, weights_beside
from winnow.lm.passes import CURVED, SUMMED


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
    with twice():
        rows = _rows(pool, usable)
        losses = weighed(forward.losses(rows, SUMMED), rows)
        total = torch.autograd.grad(losses[losses.isfinite()].sum(), held, allow_unused=True)
        losses = forward.losses(_rows(target.tokens, weight > 0), CURVED)
        second = product((losses * weight[weight > 0].to(losses.dtype)).sum(), held, total)
    return {name: value.detach() for name, value in zip(parameters, second, strict=True) if value is not None}


@contextmanager
def twice() -> Iterator[None]:
    """Autograd that can go back twice: fused attention kernels have no second derivative."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def product(
    loss: Float[Tensor, ""], held: Sequence[nn.Parameter], vector: Sequence[Tensor | None] | None = None
) -> Sequence[Tensor | None]:
    """H v of a loss, by double backward.

    Args:
        loss: with its graph, made in :func:`twice`.
        held: the parameters of H.
        vector: v by parameter, None where it is zero; the loss's own gradient if omitted.

    Returns:
        H v by parameter, None where it is zero by construction.
    """
    first = torch.autograd.grad(loss, held, create_graph=True, allow_unused=True)
    vector = [None if one is None else one.detach() for one in first] if vector is None else vector
    pairs = zip(first, vector, strict=True)
    terms = [(mine * other).sum() for mine, other in pairs if mine is not None and other is not None]
    return torch.autograd.grad(torch.stack(terms).sum(), held, allow_unused=True)


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
