"""Autograd's own gradients, of parameters however they are held."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.lm.shards import in_rows


def gradients_of(loss: Float[Tensor, ""], parameters: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
    """Gradients of a loss; ``.grad`` is left as it was.

    Of parameters in rows they are FSDP2's, the mean over the processes, which all call this: autograd knows only what
    is gathered for a while.

    Args:
        loss: of a forward under ``enable_grad``.
        parameters: of the model.

    Returns:
        A gradient for each, or None where the loss does not depend on it.
    """
    if not any(map(in_rows, parameters)):
        return torch.autograd.grad(loss, parameters, allow_unused=True)
    before = [parameter.grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        return [parameter.grad for parameter in parameters]
    finally:
        for parameter, earlier in zip(parameters, before, strict=True):
            parameter.grad = earlier
