"""A pool that goes through the model a few examples at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from winnow.geometry.base import Geometry, Preconditioner
from winnow.gradients.factors.precision import accumulation_dtype


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
