"""From what a module saw and the gradient of its output to per-example gradients of its parameters.

Every rule gets tensors whose first dimension is the example. ``nn.Linear``, HF ``Conv1D``,
``nn.Embedding``, ``nn.LayerNorm``, root-mean-square norms and fused experts have closed forms; any other
module that owns parameters goes through a vmapped vector-Jacobian product of that module alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from winnow.gradients import experts as fused
from winnow.gradients.factors import Dense, Factor, Scatter
from winnow.gradients.outer_product import OuterProduct
from winnow.gradients.rms_norm import agrees, is_candidate, weight_gradient


@dataclass(frozen=True)
class Call:
    """One call of a module, split by example.

    Args:
        args: positional arguments; tensors that belong to examples have them in their first dimension.
        kwargs: keyword arguments, likewise.
        grads: gradient of the loss with respect to the output, or to each floating-point tensor of it.
        flat: names of the arguments (position or key) that the module saw as [batch * tokens, ...].
        batched: names of the arguments that belong to examples.
        output: the output, if :func:`winnow.gradients.rms_norm.asks_output` of the module.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    grads: tuple[Tensor, ...]
    flat: frozenset[int | str]
    batched: frozenset[int | str]
    output: Tensor | None = None

    @property
    def grad(self) -> Float[Tensor, " batch *out"]:
        """Gradient of the first output, the only one of modules with a closed form."""
        return self.grads[0]

    @property
    def input(self) -> Tensor:
        """The first argument, by position or by key."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    def shortened(self, examples: int, tokens: int) -> Call:
        """The same call for the first examples and tokens, where every argument is positional and by token.

        Args:
            examples: how many to keep.
            tokens: how many of each.

        Returns:
            The smaller call.
        """
        args = tuple(value[:examples, :tokens] for value in self.args)
        return replace(self, args=args, grads=tuple(grad[:examples, :tokens] for grad in self.grads))


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
    if fused.is_candidate(module):
        return experts
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
        return generic(module, Call((x,), {}, (grad,), frozenset(), frozenset({0})), ["weight"])["weight"].rows(
            slice(None)
        )

    plain = len(call.args) + len(call.kwargs) == 1 and call.input.shape == call.grad.shape
    if plain and agrees(module, call.input.dtype, by_calling):
        return {name: Dense(weight_gradient(module, call.input, call.grad, call.output)) for name in names}
    return generic(module, call, names)


def experts(module: nn.Module, call: Call, names: Iterable[str]) -> dict[str, Factor]:
    """Fused experts: outer products of routed tokens where that holds for this class, else the generic rule.

    Args:
        module: the experts of a layer.
        call: its tokens, their experts and weights, and output gradient.
        names: which of ``gate_up_proj`` and ``down_proj`` are wanted.

    Returns:
        Gradients by local parameter name.
    """
    if fused.fits(call) and fused.agrees(module, call, generic):
        return fused.gradients(module, call, names)
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

    def run(params: dict[str, Tensor], *row: Tensor) -> tuple[Tensor, ...]:
        # A flattened input has no dimension for the example; any other gets one of size one.
        arguments = {key: x if key in call.flat else x[None] for key, x in zip(keys, row, strict=True)}
        args = [arguments.get(position, value) for position, value in enumerate(call.args)]
        kwargs = {key: arguments.get(key, value) for key, value in call.kwargs.items()}
        return differentiable(torch.func.functional_call(module, params, tuple(args), kwargs))

    def one(given: tuple[Tensor, ...], *row: Tensor) -> dict[str, Tensor]:
        output, pullback = torch.func.vjp(lambda params: run(params, *row), parameters)[:2]
        return pullback(_like(given, output))[0]

    # Fused experts look at which token goes where: vmap fails, or falls back to a loop with a warning an operation.
    routed = hasattr(module, "num_experts") and any(value.ndim > 2 for value in parameters.values())
    grads = None
    if len(call.grad) > 1 and not routed:
        with contextlib.suppress(RuntimeError):
            grads = torch.func.vmap(one)(call.grads, *tensors)
    if grads is None:
        rows = [
            _loop(run, parameters, tuple(grad[at] for grad in call.grads), [tensor[at] for tensor in tensors])
            for at in range(len(call.grad))
        ]
        grads = {name: torch.stack([row[name] for row in rows]) for name in names}
    return {name: Dense(grad) for name, grad in grads.items()}


def differentiable(output: Any) -> tuple[Tensor, ...]:
    """The tensors of a module's output that may have a gradient.

    Args:
        output: a tensor, or a tuple or list with tensors in it.

    Returns:
        Those of floating point, in order.
    """
    parts = (output,) if isinstance(output, Tensor) else output
    return tuple(part for part in parts if isinstance(part, Tensor) and part.is_floating_point())


def _like(grads: Iterable[Tensor], outputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return tuple(grad.reshape(out.shape).to(out.dtype) for grad, out in zip(grads, outputs, strict=True))


def _loop(
    run: Callable[..., tuple[Tensor, ...]],
    parameters: dict[str, Tensor],
    given: tuple[Tensor, ...],
    row: Iterable[Tensor],
) -> dict[str, Tensor]:
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        output = run(leaves, *row)
        pairs = [(out, grad) for out, grad in zip(output, _like(given, output), strict=True) if out.requires_grad]
        grads = torch.autograd.grad(
            [out for out, _ in pairs], list(leaves.values()), [grad for _, grad in pairs], materialize_grads=True
        )
    return dict(zip(leaves, grads, strict=True))
