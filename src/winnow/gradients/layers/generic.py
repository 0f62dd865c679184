"""Any other module, by a vector-Jacobian product of that module alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import Dense
from winnow.gradients.layers.call import Call, LayerRule, Slot, differentiable


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
    parameters = {name: module.get_parameter(name).detach() for name in names}
    slots = {key: value for key, value in _slots(call) if key in call.batched}
    keys, tensors = list(slots), list(slots.values())

    def run(params: dict[str, Tensor], *row: Tensor) -> tuple[Tensor, ...]:
        # A flattened input has no dimension for the example; any other gets one of size one.
        arguments = {key: x if key in call.flat else x[None] for key, x in zip(keys, row, strict=True)}

        def given(key: int | str, value: Any) -> Any:
            if type(value) is tuple:
                return tuple(arguments.get((key, at), part) for at, part in enumerate(value))
            return arguments.get(key, value)

        args = [given(position, value) for position, value in enumerate(call.args)]
        kwargs = {key: given(key, value) for key, value in call.kwargs.items()}
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


def _slots(call: Call) -> Iterator[tuple[Slot, Any]]:
    """Arguments by slot, those in tuples too."""
    arguments: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    for key, value in arguments:
        if type(value) is tuple:
            yield from (((key, at), part) for at, part in enumerate(value))
        else:
            yield key, value


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


GENERIC = LayerRule(lambda module: True, generic)
