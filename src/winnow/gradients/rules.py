"""From what a module saw and the gradient of its output to per-example gradients of its parameters.

Every rule gets tensors whose first dimension is the example. ``nn.Linear``, HF ``Conv1D``,
``nn.Embedding``, ``nn.LayerNorm`` and root-mean-square norms have closed forms; any other module that
owns parameters goes through a vmapped vector-Jacobian product of that module alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from winnow.gradients.factors import Dense, Factor, Scatter
from winnow.gradients.outer_product import OuterProduct
from winnow.gradients.rms_norm import agrees, is_candidate, weight_gradient


@dataclass(frozen=True)
class Call:
    """One call of a module, split by example.

    Args:
        args: positional arguments; tensors that belong to examples have them in their first dimension.
        kwargs: keyword arguments, likewise.
        grad: gradient of the loss with respect to the output.
        flat: names of the arguments (position or key) that the module saw as [batch * tokens, ...].
        batched: names of the arguments that belong to examples.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    grad: Float[Tensor, " batch *out"]
    flat: frozenset[int | str]
    batched: frozenset[int | str]

    @property
    def input(self) -> Tensor:
        """The first argument, by position or by key."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))


Rule = Callable[[nn.Module, Call, Iterable[str]], dict[str, Factor]]


def rule_for(module: nn.Module) -> Rule:
    """The rule for a module; a subclass with a forward of its own falls to the generic one.

    Args:
        module: a module that owns parameters.

    Returns:
        A function of module, call and the names wanted.
    """
    forward = type(module).forward
    if forward is nn.Linear.forward:
        return linear
    if forward is nn.Embedding.forward:
        return embedding
    if forward is nn.LayerNorm.forward:
        return layer_norm
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return conv1d
    return rms_norm if is_candidate(module) else generic


def _bias(grad: Float[Tensor, "batch *middle width"]) -> Dense:
    return Dense(grad.reshape(len(grad), -1, grad.shape[-1]).sum(1))


def _tokens(
    tensor: Float[Tensor, "batch *middle width"],
) -> Float[Tensor, "batch tokens width"]:
    return tensor.reshape(len(tensor), -1, tensor.shape[-1])


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
        "weight": lambda: OuterProduct(_tokens(call.grad), _tokens(call.input).to(call.grad.dtype)),
        "bias": lambda: _bias(call.grad),
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
        "weight": lambda: OuterProduct(_tokens(call.input).to(call.grad.dtype), _tokens(call.grad)),
        "bias": lambda: _bias(call.grad),
    }
    return {name: made[name]() for name in names}


def embedding(module: nn.Module, call: Call, names: Iterable[str]) -> dict[str, Factor]:
    """``nn.Embedding``: output gradients scattered to their tokens; ``padding_idx`` gets none.

    Args:
        module: the table.
        call: token ids and output gradient.
        names: ``weight``.

    Returns:
        The gradient of ``weight``.
    """
    assert isinstance(module, nn.Embedding)
    tokens, values = call.input.flatten(1), _tokens(call.grad)
    if module.padding_idx is not None:
        values = values.masked_fill((tokens == module.padding_idx)[:, :, None], 0)
    return {name: Scatter(tokens, values, module.num_embeddings) for name in names}


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
        return generic(module, Call((x,), {}, grad, frozenset(), frozenset({0})), ["weight"])["weight"].rows(
            slice(None)
        )

    plain = len(call.args) + len(call.kwargs) == 1 and call.input.shape == call.grad.shape
    if plain and agrees(module, call.input.dtype, by_calling):
        return {name: Dense(weight_gradient(module, call.input, call.grad)) for name in names}
    return generic(module, call, names)


def generic(module: nn.Module, call: Call, names: Iterable[str]) -> dict[str, Factor]:
    """Any other module: a vector-Jacobian product of the module per example, vmapped.

    Modules that vmap cannot batch (custom autograd functions, data-dependent control flow) are
    differentiated one example at a time, which is exact too.

    Args:
        module: the module; its forward must treat examples independently.
        call: its arguments and output gradient.
        names: the parameters wanted.

    Returns:
        Gradients by local parameter name.
    """
    parameters = {name: getattr(module, name).detach() for name in names}
    keys = [key for key in (*range(len(call.args)), *call.kwargs) if key in call.batched]
    tensors = [call.args[key] if isinstance(key, int) else call.kwargs[key] for key in keys]

    def run(params: dict[str, Tensor], *row: Tensor) -> Tensor:
        # A flattened input has no dimension for the example; any other gets one of size one.
        arguments = {key: x if key in call.flat else x[None] for key, x in zip(keys, row, strict=True)}
        args = [arguments.get(position, value) for position, value in enumerate(call.args)]
        kwargs = {key: arguments.get(key, value) for key, value in call.kwargs.items()}
        return torch.func.functional_call(module, params, tuple(args), kwargs)

    def one(grad: Tensor, *row: Tensor) -> dict[str, Tensor]:
        output, pullback = torch.func.vjp(lambda params: run(params, *row), parameters)[:2]
        return pullback(grad.reshape(output.shape).to(output.dtype))[0]

    try:
        grads = torch.func.vmap(one)(call.grad, *tensors)
    except RuntimeError:
        rows = [_loop(run, parameters, grad, row) for grad, *row in zip(call.grad, *tensors, strict=True)]
        grads = {name: torch.stack([row[name] for row in rows]) for name in names}
    return {name: Dense(grad) for name, grad in grads.items()}


def _loop(
    run: Callable[..., Tensor],
    parameters: dict[str, Tensor],
    grad: Tensor,
    row: Iterable[Tensor],
) -> dict[str, Tensor]:
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        output = run(leaves, *row)
        grads = torch.autograd.grad(output, list(leaves.values()), grad.reshape(output.shape).to(output.dtype))
    return dict(zip(leaves, grads, strict=True))
