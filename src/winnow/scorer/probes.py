"""Each kind of pass on a tiny batch, as it is made in earnest, so that its operations can be counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from winnow.gradients.autograd import gradients_of
from winnow.gradients.backward import backward_through
from winnow.lm.forward import Forward
from winnow.lm.losses import example_losses
from winnow.lm.passes import CAPTURED, CURVED, FORWARD, SUMMED, TRAINED
from winnow.lm.shards import in_rows
from winnow.scorer.curvature import product, twice

INPUTS = "inputs"
"""The kind of an update's backward without its weight gradients."""


def probe(forward: Forward, parameters: Mapping[str, nn.Parameter], kind: str) -> Callable[[dict[str, Tensor]], Any]:
    """What makes a pass.

    Args:
        forward: the model.
        parameters: those that are scored, by name.
        kind: of a pass, or ``INPUTS``.

    Returns:
        A function of a batch.
    """
    model = forward.model
    apart = Forward(model, forward.reduction)  # what is tried is no pass of the model's

    def alone(batch: dict[str, Tensor]) -> None:
        with torch.no_grad():
            example_losses(model, batch)

    def captured(batch: dict[str, Tensor]) -> None:
        backward_through(apart, parameters, batch, lambda *_: None)

    def inputs(batch: dict[str, Tensor]) -> None:
        # Per-example gradients of all that is trained take a backward to the same inputs and no weight gradient.
        trained = {name: held for name, held in model.named_parameters() if held.requires_grad}
        backward_through(apart, trained, batch, lambda *_: None)

    def update(batch: dict[str, Tensor]) -> None:
        trained = [held for held in model.parameters() if held.requires_grad]
        if any(map(in_rows, trained)):  # a gathered parameter takes the place of any stand-in
            with torch.enable_grad():
                gradients_of(example_losses(model, batch).sum(), trained)
            return
        with _stand_ins(model) as others, torch.enable_grad():
            torch.autograd.grad(example_losses(model, batch).sum(), list(others.values()), allow_unused=True)

    def summed(batch: dict[str, Tensor]) -> None:
        with _stand_ins(model) as others, twice():
            held = [others[id(one)] for one in parameters.values()]
            torch.autograd.grad(example_losses(model, batch).sum(), held, allow_unused=True)

    def curved(batch: dict[str, Tensor]) -> None:
        with _stand_ins(model) as others, twice():
            product(example_losses(model, batch).sum(), [others[id(one)] for one in parameters.values()])

    return {FORWARD: alone, CAPTURED: captured, INPUTS: inputs, TRAINED: update, SUMMED: summed, CURVED: curved}[kind]


@contextmanager
def _stand_ins(model: nn.Module) -> Iterator[dict[int, nn.Parameter]]:
    """Other parameters on the same numbers, by id: what listens to a parameter is not to hear of this gradient."""
    held = {
        (module, name): parameter
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.requires_grad
    }
    others = {id(one): nn.Parameter(one.detach()) for one in held.values()}
    try:
        for (module, name), one in held.items():
            module._parameters[name] = others[id(one)]
        yield others
    finally:
        for (module, name), one in held.items():
            module._parameters[name] = one
