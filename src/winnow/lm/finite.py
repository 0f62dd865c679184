"""Numbers that are not finite: found at once, with a likely cause in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from winnow.lm.shards import here

HALF = "float16 holds nothing above 65,504; use float32 or bfloat16 (model.dtype, trainer.precision)"
RATE = "the learning rate is likely too high (optimizer.lr), or gradients are not clipped (clip_norm)"


class NotFinite(RuntimeError):
    """A run that holds a number from which it cannot recover; its last checkpoint is from before."""


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor with an entry that is not finite.

    Args:
        tensors: pairs of name and tensor.

    Returns:
        The name; None if all are finite.
    """
    held = [(name, here(tensor.detach())) for name, tensor in tensors if tensor.is_floating_point()]
    named = [(name, tensor) for name, tensor in held if tensor.numel()]
    if not named:
        return None
    # Norms read every number once and wait for a GPU once; one that overflows is looked at again.
    norm = nn.utils.get_total_norm([tensor for _, tensor in named], error_if_nonfinite=False)
    if bool(norm.isfinite()):
        return None
    return next((name for name, tensor in named if not bool(tensor.isfinite().all())), None)


def likely_cause(parameters: Mapping[str, Tensor], rate: float | None = None) -> str:
    """Why numbers stopped being finite, in words, as far as the parameters show.

    Args:
        parameters: the model's, by name.
        rate: the learning rate, if there is one.

    Returns:
        A clause for a message, with the keys to change.
    """
    broken = not_finite(parameters.items())
    if any(tensor.dtype == torch.float16 for tensor in parameters.values()):
        return HALF
    at_rate = "" if rate is None else f" at a learning rate of {rate:g}"
    if broken is not None:
        return f"parameter {broken} is not finite{at_rate}: {RATE}, or the checkpoint it comes from is damaged"
    return f"all parameters are finite{at_rate}: {RATE}, or the data hold what the model was never meant to read"


def check_state(model: nn.Module, optimizer: Any, step: int) -> None:
    """Stop at an optimizer's state that is not finite: where a second moment is infinite, nothing moves any more.

    Args:
        model: has the parameters' names.
        optimizer: with its state.
        step: pools seen.

    Raises:
        NotFinite: there is one.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    held = [
        (f"{key} of {names.get(parameter, 'a parameter')}", value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    ]
    broken = not_finite(held)
    if broken is not None:
        raise NotFinite(f"pool {step}: the optimizer's state is not finite ({broken}): {RATE}")


def check_rates(groups: Iterable[Mapping[str, object]], step: int | None = None) -> None:
    """Refuse learning rates that are not finite.

    Args:
        groups: an optimizer's param groups.
        step: the pool, for the message; None before the first one.

    Raises:
        NotFinite: a rate is NaN or infinite.
    """
    for group in groups:
        rate = float(group["lr"])  # type: ignore[arg-type]  # a number or a tensor of one
        if not math.isfinite(rate):
            where = "" if step is None else f"pool {step}: "
            raise NotFinite(f"{where}the learning rate is {rate}: set optimizer.lr, and look at the scheduler")
