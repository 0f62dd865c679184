"""Gradients of batches that go through the model a few examples at a time, for pools larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.gradients.backward import backward_through
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.precision import accumulation_dtype
from winnow.lm.batch import pieces
from winnow.lm.layout import Batch
from winnow.lm.packing import Packing


def weighted_sum(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batch: Batch,
    size: int,
    reduction: str,
    weight: Float[Tensor, " batch"] | None = None,
    packing: Callable[[Batch], Packing | None] = lambda batch: None,
) -> tuple[Float[Tensor, " batch"], dict[str, Tensor]]:
    """sum_i weight_i g_i over the examples of finite loss, without a graph of more than a few.

    Args:
        model: the model.
        parameters: the parameters wanted, by name.
        batch: the examples.
        size: examples at a time.
        reduction: ``mean`` | ``sum`` over an example's response tokens.
        weight: of each example, >= 0; those of weight zero are not looked at. One each if omitted.
        packing: lays a batch in rows, or leaves it padded.

    Returns:
        The losses, and the sum by name; a parameter that no loss reached is missing.
    """
    total: dict[str, Tensor] = {}
    found: list[Tensor] = []
    weight = torch.ones(len(batch["labels"]), device=batch["labels"].device) if weight is None else weight
    for rows, few in pieces(batch, size):
        share = weight[rows]

        def prepare(losses: Tensor, share: Tensor = share) -> Tensor:
            return losses.isfinite() & (share > 0)

        def add(name: str, factor: Factor, share: Tensor = share) -> None:
            part = factor.to(accumulation_dtype(factor.dtype)).combine(share)
            total[name] = total[name] + part if name in total else part

        found.append(backward_through(model, parameters, few, reduction, add, prepare, packing(few)))
    return torch.cat(found), total
