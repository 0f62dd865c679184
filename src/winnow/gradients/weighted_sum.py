"""The weighted sum of a batch's gradients, a few examples at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.gradients.backward import backward_through
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.precision import accumulation_dtype
from winnow.lm.batch import pieces
from winnow.lm.forward import Forward
from winnow.lm.layout import Batch


def weighted_sum(
    forward: Forward,
    parameters: Mapping[str, nn.Parameter],
    batch: Batch,
    size: int,
    weight: Float[Tensor, " batch"] | None = None,
    spend: Callable[[float], None] = lambda _: None,
) -> tuple[Float[Tensor, " batch"], dict[str, Tensor]]:
    """sum_i weight_i g_i over the examples of finite loss, without a graph of more than a few.

    Args:
        forward: the model.
        parameters: the parameters wanted, by name.
        batch: the examples.
        size: examples at a time.
        weight: of each example, >= 0; those of weight zero are not looked at. One each if omitted.
        spend: told the multiplications that adding gradients up takes.

    Returns:
        The losses, and the sum by name; a parameter that no loss reached is missing.
    """
    total: dict[str, Tensor] = {}
    found: list[Tensor] = []
    weight = torch.ones(len(batch["labels"]), device=batch["labels"].device) if weight is None else weight
    for rows, micro_batch in pieces(batch, size):
        share = weight[rows]

        def counts(losses: Tensor, share: Tensor = share) -> Tensor:
            return losses.isfinite() & (share > 0)

        def add(name: str, factor: Factor, share: Tensor = share) -> None:
            spend(factor.combining)
            part = factor.to(accumulation_dtype(factor.dtype)).combine(share)
            total[name] = total[name] + part if name in total else part

        found.append(backward_through(forward, parameters, micro_batch, add, counts=counts))
    return torch.cat(found), total
