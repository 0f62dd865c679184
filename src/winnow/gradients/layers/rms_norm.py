"""Root-mean-square norms: a closed form in place of calling the module again for every example.

Every model family has an RMSNorm class of its own. Their weights differ (w, or 1 + w), and the gradient
of the weight does not: sum_t D_i[t] o x_hat_i[t]. So the closed form goes by the name of the class, and is
used only if it agrees with the generic rule on a sample. Where the output y = (w + offset) o x_hat is at hand,
x_hat is y / (w + offset), so the input is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import Dense
from winnow.gradients.layers.call import Call, LayerRule
from winnow.gradients.layers.checked import Checked, close
from winnow.gradients.layers.generic import generic

BLOCK = 2**18
"""Block size: products with the output are summed this many numbers at a time, to stay in cache."""
_checked = Checked()
_offsets: WeakKeyDictionary[nn.Module, dict[torch.dtype, float | None]] = WeakKeyDictionary()
"""By module, since a class may take the offset as an option of each."""


def is_candidate(module: nn.Module) -> bool:
    """Whether a module looks like a root-mean-square norm over its last dimension.

    Args:
        module: any module.

    Returns:
        True if its class says so and its one parameter is a vector called ``weight``.
    """
    return type(module).__name__.endswith("RMSNorm") and [
        (name, held.ndim) for name, held in module.named_parameters()
    ] == [("weight", 1)]


def asks_output(module: nn.Module) -> bool:
    """Whether a module's output is wanted beside its input: of norms on a CPU, where that takes less time.

    Args:
        module: any module.

    Returns:
        False on other devices, where looking at the weights would be waiting for them.
    """
    return is_candidate(module) and next(module.parameters()).device.type == "cpu"


def weight_gradient(
    module: nn.Module,
    x: Float[Tensor, "batch *middle width"],
    grad: Float[Tensor, "batch *middle width"],
    y: Float[Tensor, "batch *middle width"] | None = None,
) -> Float[Tensor, "batch width"]:
    """sum_t D_i[t] o x_i[t] / sqrt(mean(x_i[t]^2) + eps).

    Args:
        module: the norm, for its eps and weights; one that :func:`agrees` said yes to.
        x: its input.
        grad: gradient of its output.
        y: its output, if known.

    Returns:
        One gradient per example, in the precision of ``grad``.
    """
    gain = None if y is None or not x.dtype == grad.dtype == y.dtype else _gain(module, y.dtype)
    if y is not None and gain is not None:
        grad, y = (tensor.reshape(len(tensor), -1, tensor.shape[-1]) for tensor in (grad, y))
        few = max(1, BLOCK * y.shape[1] // max(1, y.numel()))
        total = grad[:, :few] * y[:, :few]
        for left, right in zip(grad.split(few, 1)[1:], y.split(few, 1)[1:], strict=True):
            total[:, : left.shape[1]].addcmul_(left, right)
        return total.sum(1).div_(gain)
    wide = torch.promote_types(torch.promote_types(x.dtype, grad.dtype), torch.float32)
    x, wide_grad = x.to(wide), grad.to(wide)
    inverse = torch.linalg.vector_norm(x, dim=-1).square_().div_(x.shape[-1]).add_(_eps(module, x.dtype)).rsqrt_()
    product = (wide_grad * x).reshape(len(x), -1, x.shape[-1])
    return (inverse.reshape(len(x), 1, -1) @ product).squeeze(1).to(grad.dtype)


def agrees(module: nn.Module, dtype: torch.dtype, by_calling: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether the closed form gives what the module's own gradient gives; asked once per class and precision.

    Args:
        module: a candidate.
        dtype: precision of its input.
        by_calling: gives the gradient of ``weight`` from input and output gradient by calling the module.

    Returns:
        False as well where the module cannot be called with one tensor.
    """
    key = (type(module), type(module).forward, _eps(module, dtype), dtype)
    return _checked.holds(
        key,
        lambda: [by_calling(*_sample(module, dtype))],
        lambda: [weight_gradient(module, *_sample(module, dtype))],
    )


def _gain(module: nn.Module, dtype: torch.dtype) -> Tensor | None:
    """The weights plus offset; None where dividing by it would lose digits."""
    if dtype not in (torch.float32, torch.float64):
        return None
    offsets = _offsets.setdefault(module, {})
    if dtype not in offsets:
        offsets[dtype] = _offset(module, dtype)
    offset = offsets[dtype]
    if offset is None:
        return None
    weight: Any = module.weight
    gain: Tensor = weight.detach() + offset
    limits = torch.finfo(dtype)
    return gain if float(gain.abs().min()) > limits.tiny / limits.eps else None


def _offset(module: nn.Module, dtype: torch.dtype) -> float | None:
    """What the module adds to its weights, by the gradient that its output would give on the sample."""
    x, grad = _sample(module, dtype)
    weight: Any = module.weight
    with torch.no_grad():
        expected, total = weight_gradient(module, x, grad), (grad * module(x)).sum(1)
        return next((offset for offset in (0.0, 1.0) if close(total / (weight + offset), expected)), None)


def _sample(module: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs of several lengths, the last so short that eps counts, and gradients of their outputs."""
    generator = torch.Generator().manual_seed(0)
    weight: Any = module.weight
    x = torch.randn(3, 2, weight.shape[0], generator=generator) * torch.tensor([1.0, 0.1, 1e-3])[:, None, None]
    grad = torch.randn(3, 2, weight.shape[0], generator=generator)
    return x.to(weight.device, dtype), grad.to(weight.device, dtype)


def _eps(module: nn.Module, dtype: torch.dtype) -> float:
    found = [getattr(module, name, None) for name in ("variance_epsilon", "eps", "epsilon")]
    return next((float(value) for value in found if isinstance(value, float | int)), torch.finfo(dtype).eps)


def rms_norm(module: nn.Module, call: Call, names: Iterable[str]) -> dict[str, Factor]:
    """A root-mean-square norm: the closed form where it holds for this class, else the generic rule.

    Args:
        module: the norm.
        call: its input and output gradient.
        names: ``weight``.

    Returns:
        The gradient of ``weight``.
    """

    def by_calling(x: Tensor, grad: Tensor) -> Tensor:
        return generic(module, Call((x,), {}, (grad,), frozenset(), frozenset({0})), ["weight"])["weight"].rows(
            slice(None)
        )

    plain = len(call.args) + len(call.kwargs) == 1 and call.input.shape == call.grad.shape
    if plain and agrees(module, call.input.dtype, by_calling):
        return {name: Dense(weight_gradient(module, call.input, call.grad, call.output)) for name in names}
    return generic(module, call, names)


RMS_NORM = LayerRule(is_candidate, rms_norm, asks_output)
