"""Layer norms."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import Dense
from winnow.gradients.layers.call import Call, LayerRule


def layer_norm(module: nn.Module, call: Call, names: Iterable[str]) -> dict[str, Factor]:
    """``nn.LayerNorm``: sum_t D_i[t] o x_hat_i[t] for the weight, sum_t D_i[t] for the bias.

    Args:
        module: the norm.
        call: its input and output gradient.
        names: which of ``weight`` and ``bias`` are wanted.

    Returns:
        Gradients by local parameter name.
    """
    assert isinstance(module, nn.LayerNorm)
    middle = tuple(range(1, call.grad.ndim - len(module.normalized_shape)))

    def total(tensor: Tensor) -> Dense:
        return Dense(tensor.sum(middle) if middle else tensor)

    def weight() -> Dense:
        normal = F.layer_norm(call.input, module.normalized_shape, eps=module.eps)
        return total(call.grad * normal.to(call.grad.dtype))

    made: dict[str, Callable[[], Factor]] = {
        "weight": weight,
        "bias": lambda: total(call.grad),
    }
    return {name: made[name]() for name in names}


LAYER_NORM = LayerRule(lambda module: type(module).forward is nn.LayerNorm.forward, layer_norm)
