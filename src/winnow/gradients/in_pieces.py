"""Gradients of batches that go through the model a few examples at a time, for pools larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.geometry.base import Geometry, Preconditioner, accumulation_dtype
from winnow.gradients.backward import backward_through
from winnow.gradients.factors import Factor
from winnow.layout import KEYS, right_padded
from winnow.losses import Batch
from winnow.packing import Packing


def pieces(batch: Batch, size: int | None) -> Iterator[tuple[slice, Batch]]:
    """A batch a few rows at a time, each piece right-padded to its longest.

    Args:
        batch: the examples, padded wherever.
        size: rows at a time; None for the whole batch as it is.

    Yields:
        Which rows, and the smaller batch.
    """
    total = len(batch["labels"])
    if size is None:
        yield slice(0, total), batch
        return
    batch = right_padded(batch)
    for start in range(0, total, size):
        rows = slice(start, min(start + size, total))
        length = max(1, int(batch["attention_mask"][rows].sum(1).max()))
        yield rows, {key: batch[key][rows, :length] for key in KEYS}


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
        return torch.zeros_like(parameters[name], dtype=accumulation_dtype(parameters[name].dtype))

    found = {name: build(name, lambda name=name: ask(name)) for name in parameters}  # type: ignore[misc]
    if asked:
        mean = means(asked)
        found |= {name: build(name, lambda name=name: mean[name]) for name in asked if name in mean}  # type: ignore[misc]
    return found
