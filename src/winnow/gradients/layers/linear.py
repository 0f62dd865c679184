"""Linear maps: torch's Linear and Hugging Face's transposed Conv1D."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.outer_product import OuterProduct
from winnow.gradients.layers.call import Call, LayerRule, by_token, summed_over_tokens


def linear(module: nn.Module, call: Call, names: Iterable[str]) -> dict[str, Factor]:
    """``nn.Linear``: G_i = D_i^T X_i, and sum_t D_i[t] for the bias.

    Args:
        module: the linear layer.
        call: its input X and output gradient D.
        names: which of ``weight`` and ``bias`` are wanted.

    Returns:
        Gradients by local parameter name.
    """
    made: dict[str, Callable[[], Factor]] = {
        "weight": lambda: OuterProduct(by_token(call.grad), by_token(call.input).to(call.grad.dtype)),
        "bias": lambda: summed_over_tokens(call.grad),
    }
    return {name: made[name]() for name in names}


def conv1d(module: nn.Module, call: Call, names: Iterable[str]) -> dict[str, Factor]:
    """Hugging Face's ``Conv1D``, a linear map with its weight transposed: G_i = X_i^T D_i.

    Args:
        module: the layer.
        call: its input X and output gradient D.
        names: which of ``weight`` and ``bias`` are wanted.

    Returns:
        Gradients by local parameter name.
    """
    made: dict[str, Callable[[], Factor]] = {
        "weight": lambda: OuterProduct(by_token(call.input).to(call.grad.dtype), by_token(call.grad)),
        "bias": lambda: summed_over_tokens(call.grad),
    }
    return {name: made[name]() for name in names}


LINEAR = LayerRule(lambda module: type(module).forward is nn.Linear.forward, linear)
CONV1D = LayerRule(lambda module: type(module).__name__ == "Conv1D" and hasattr(module, "nf"), conv1d)
