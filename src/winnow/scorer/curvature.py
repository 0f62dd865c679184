"""A Hessian-vector product of the target loss: the second order of what a step on the pool does to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from winnow.lm.batch import TargetBatch
from winnow.lm.forward import Forward
from winnow.lm.layout import KEYS, Batch, weighed, weights_beside
from winnow.lm.passes import CURVED, SUMMED

Total = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Sums by parameter over all processes that have a part of the pool or the target."""


def pool_curvature(
    forward: Forward,
    parameters: Mapping[str, nn.Parameter],
    pool: Batch,
    present: Bool[Tensor, " pool"],
    target: TargetBatch,
    total: Total = dict,
) -> dict[str, Tensor]:
    """H v with H the Hessian of the weighted target loss and v = sum_j g_j over the pool, by double backward.

    Args:
        forward: the model, scored as it is (dropout off).
        parameters: those that take part; H and v are restricted to them.
        pool: the candidates.
        present: which of them have a response token; v sums over those of finite loss.
        target: target examples; those without a share are not run.
        total: from the sums of this pool and this target to those of all, where there are others.

    Returns:
        H v by parameter, in the parameters' own precision; parameters with H v = 0 by construction are absent.
    """
    held, weight = list(parameters.values()), target.share
    first: Sequence[Tensor | None] = [None] * len(held)
    second = first
    with torch.no_grad():
        usable = present & forward.losses(pool).isfinite()
    with twice():
        if bool(usable.any()):
            rows = _rows(pool, usable)
            losses = weighed(forward.losses(rows, SUMMED), rows)
            first = torch.autograd.grad(losses[losses.isfinite()].sum(), held, allow_unused=True)
        vector = total(_named(parameters, first))
        if vector and bool((weight > 0).any()):
            losses = forward.losses(_rows(target.tokens, weight > 0), CURVED)
            loss = (losses * weight[weight > 0].to(losses.dtype)).sum()
            second = product(loss, held, [vector.get(name) for name in parameters])
    return total(_named(parameters, second)) if vector else {}


def _named(parameters: Mapping[str, nn.Parameter], values: Sequence[Tensor | None]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in zip(parameters, values, strict=True) if value is not None}


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
    if not terms:
        return [None] * len(held)
    return torch.autograd.grad(torch.stack(terms).sum(), held, allow_unused=True)


def _rows(batch: Batch, index: Tensor) -> dict[str, Tensor]:
    return {key: batch[key][index] for key in KEYS} | weights_beside(batch, index)
