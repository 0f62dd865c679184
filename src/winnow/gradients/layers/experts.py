"""Fused experts of Hugging Face's mixtures: both matrices' gradients as outer products of routed tokens.

In transformers 5 the experts of a layer are one module with ``gate_up_proj`` [experts, 2 inner, width] and
``down_proj`` [experts, width, inner], called with all tokens, the experts of each and their weights. The rule
computes the inner activations again, and is used only if it agrees with the module's own gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.routed import Routed
from winnow.gradients.layers.call import Call, LayerRule
from winnow.gradients.layers.checked import Checked
from winnow.gradients.layers.generic import generic

SAMPLE = 8
"""Tokens on which the rule is compared with the module's own gradient."""
_checked = Checked()


def is_candidate(module: nn.Module) -> bool:
    """Whether a module looks like gated experts without biases, in the layout of transformers 5.

    Args:
        module: any module.

    Returns:
        True if its two parameters have three dimensions each, of fitting sizes, and it says how it gates.
    """
    held: dict[str, Tensor] = dict(module.named_parameters())
    if set(held) != {"gate_up_proj", "down_proj"} or not callable(getattr(module, "_apply_gate", None)):
        return False
    up, down = held["gate_up_proj"], held["down_proj"]
    plain = not any(getattr(module, name, False) for name in ("is_transposed", "has_bias", "has_post_expert_norm"))
    return plain and up.ndim == down.ndim == 3 and up.shape[::2] == down.shape[:2] and up.shape[1] == 2 * down.shape[2]


def fits(call: Call) -> bool:
    """Whether a call is one of tokens, experts and weights.

    Args:
        call: a call of a candidate.

    Returns:
        True for three positional arguments of [batch, tokens, ...].
    """
    return len(call.args) == 3 and not call.kwargs and call.flat == {0, 1, 2}


def gradients(module: nn.Module, call: Call, names: Iterable[str]) -> dict[str, Factor]:
    """sum_t of d(gate_up)_t x_t^T, and of d(out)_t (a_t h_t)^T, by example and expert.

    Args:
        module: the experts.
        call: tokens x, experts of each, their weights a, and the output gradient.
        names: which of ``gate_up_proj`` and ``down_proj`` are wanted.

    Returns:
        Gradients by local parameter name.
    """
    gate: Any = module
    up_weight, down_weight = (held.detach() for held in (gate.gate_up_proj, gate.down_proj))
    tokens, chosen, share = call.args
    each, expert = chosen.shape[2], chosen.flatten(1)
    count, grad = len(up_weight), call.grad
    inner = grad.new_zeros(*expert.shape, down_weight.shape[2])
    outer = grad.new_zeros(*expert.shape, up_weight.shape[1])
    for number in range(count):
        example, slot = (expert == number).nonzero(as_tuple=True)
        if not len(example):
            continue
        with torch.enable_grad():
            pre = F.linear(tokens[example, slot // each], up_weight[number]).detach().requires_grad_()
            hidden = gate._apply_gate(pre)
        weight = share.flatten(1)[example, slot][:, None]
        back = F.linear(grad[example, slot // each], down_weight[number].T) * weight
        outer[example, slot] = torch.autograd.grad(hidden, pre, back.to(hidden.dtype))[0].to(grad.dtype)
        inner[example, slot] = (hidden.detach() * weight).to(grad.dtype)
    found: dict[str, Factor] = {
        "gate_up_proj": Routed(outer, tokens.to(grad.dtype), expert, count),
        "down_proj": Routed(grad, inner, expert, count),
    }
    return {name: found[name] for name in names}


def agrees(module: nn.Module, call: Call) -> bool:
    """Whether the rule gives what the module's own gradient gives, on a few tokens; asked once per class and precision.

    Args:
        module: a candidate.
        call: a call that fits.

    Returns:
        False as well where the module cannot be called for one example.
    """
    config: Any = getattr(module, "config", None)
    key = (type(module), call.grad.dtype, call.input.dtype, getattr(config, "_experts_implementation", None))

    def sampled(rule: Callable[..., dict[str, Factor]]) -> list[Tensor]:
        names = ("gate_up_proj", "down_proj")
        found = rule(module, call.shortened(1, SAMPLE), names)
        return [found[name].rows(slice(None)) for name in names]

    return _checked.holds(key, lambda: sampled(generic), lambda: sampled(gradients))


def experts(module: nn.Module, call: Call, names: Iterable[str]) -> dict[str, Factor]:
    """Fused experts: outer products of routed tokens where that holds for this class, else the generic rule.

    Args:
        module: the experts of a layer.
        call: its tokens, their experts and weights, and output gradient.
        names: which of ``gate_up_proj`` and ``down_proj`` are wanted.

    Returns:
        Gradients by local parameter name.
    """
    if fits(call) and agrees(module, call):
        return gradients(module, call, names)
    return generic(module, call, names)


EXPERTS = LayerRule(is_candidate, experts)
