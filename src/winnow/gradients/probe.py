"""A tap in the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Probe(torch.autograd.Function):
    """Identity that saves a module's inputs and, in backward, hands them over with the output gradient.

    Saving through ``save_for_backward`` lets non-reentrant gradient checkpointing drop and recompute
    the inputs as it does for any other operation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        receive: Callable[..., None],
        anchor: Tensor,
        count: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Pass the outputs on.

        Args:
            ctx: autograd's context.
            receive: called in backward with the saved inputs and the output gradients.
            anchor: a scalar that requires a gradient, so that there is a graph though no parameter does.
            count: how many of the tensors are outputs.
            *tensors: the module's outputs, then detached inputs to save.

        Returns:
            The outputs, unchanged.
        """
        ctx.receive = receive
        ctx.save_for_backward(*tensors[count:])
        return tensors[:count]  # autograd makes views of them, for less than view_as would here

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Hand over and pass the gradients on.

        Args:
            ctx: autograd's context.
            *grads: gradient of each output, zeros for one that the loss did not use.

        Returns:
            The same gradients for the outputs and nothing for the other arguments.
        """
        inputs = ctx.saved_tensors
        ctx.receive(inputs, grads)
        return (None, None, None, *grads, *([None] * len(inputs)))
