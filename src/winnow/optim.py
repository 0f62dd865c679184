"""Muon for the matrices and AdamW for everything else, as one optimizer."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.gradients.factors.precision import accumulation_dtype


class MuonWithAdamW(torch.optim.Optimizer):
    """``torch.optim.Muon`` and ``torch.optim.AdamW`` over one list of param groups.

    One schedule, one checkpoint, one ``step``: each group has a ``rule``, ``muon`` or ``adamw``, and the
    options of that rule. Muon is for the matrices of hidden layers; embeddings, output layers, norms
    and biases go to AdamW.

    Args:
        named_parameters: names and parameters, as ``model.named_parameters()`` gives them.
        lr: learning rate of Muon.
        momentum: of Muon.
        nesterov: of Muon.
        weight_decay: of Muon.
        adjust_lr_fn: how Muon's rate depends on the shape: ``original`` | ``match_rms_adamw``; None is ``original``.
        ns_steps: Newton-Schulz steps.
        adamw: regex of names that go to AdamW though they are matrices.
        adamw_lr: learning rate of AdamW.
        adamw_betas: of AdamW.
        adamw_eps: of AdamW.
        adamw_weight_decay: of AdamW.

    Raises:
        ValueError: parameters come without names, or there is none; or there are no Newton-Schulz steps.
    """

    def __init__(
        self,
        named_parameters: Iterable[Any],
        lr: float = 2e-2,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        adjust_lr_fn: str | None = None,
        ns_steps: int = 5,
        adamw: str = r"embed|wte|wpe|lm_head|embed_out",
        adamw_lr: float = 1e-3,
        adamw_betas: Sequence[float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        adamw_weight_decay: float = 0.0,
    ) -> None:
        named = list(named_parameters)
        if not named or not all(isinstance(item, tuple) for item in named):
            raise ValueError("MuonWithAdamW sorts parameters by name: give it model.named_parameters()")
        if isinstance(ns_steps, bool) or not isinstance(ns_steps, int) or ns_steps < 1:
            raise ValueError(f"optimizer.ns_steps must be a whole number >= 1, got {ns_steps!r}")
        matrices = [held for name, held in named if held.ndim == 2 and not re.search(adamw, name)]
        chosen = {id(held) for held in matrices}
        others = [held for _, held in named if id(held) not in chosen]
        groups: list[dict[str, Any]] = []
        if matrices:
            muon = torch.optim.Muon(
                matrices,
                lr=lr,
                momentum=momentum,
                nesterov=nesterov,
                weight_decay=weight_decay,
                adjust_lr_fn=adjust_lr_fn,
                ns_steps=ns_steps,
            )
            groups += [{**group, "rule": "muon"} for group in muon.param_groups]
        if others:
            adam = torch.optim.AdamW(
                others,
                lr=adamw_lr,
                betas=(adamw_betas[0], adamw_betas[1]),
                eps=adamw_eps,
                weight_decay=adamw_weight_decay,
            )
            groups += [{**group, "rule": "adamw"} for group in adam.param_groups]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both rules.

        Args:
            closure: recomputes the loss and its gradients.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for rule, kind in (("muon", torch.optim.Muon), ("adamw", torch.optim.AdamW)):
            groups = [group for group in self.param_groups if group["rule"] == rule]
            if groups and rule == "muon" and groups[0]["params"][0].device.type == "cpu":
                self._muon(groups)
            elif groups:
                # The rule's own optimizer, on our groups and our state, which it reads and writes in place.
                inner: Any = kind([parameter for group in groups for parameter in group["params"]])
                inner.param_groups, inner.state = groups, self.state
                inner.step()
        return loss

    def _muon(self, groups: list[dict[str, Any]]) -> None:
        """Torch's Muon with its iteration in the parameters' own precision: not every CPU multiplies in bfloat16."""
        for group in groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                buffer: Tensor = state["momentum_buffer"]
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                update = _newton_schulz(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                factor = shape_factor(group["adjust_lr_fn"], *parameter.shape)
                parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * factor)


def _newton_schulz(
    matrix: Float[Tensor, "rows columns"], coefficients: tuple[float, float, float], count: int, eps: float
) -> Float[Tensor, "rows columns"]:
    """X <- a X + b (X X^T) X + c (X X^T)^2 X, a number of times, from X over its norm (Jordan et al. 2024)."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(accumulation_dtype(matrix.dtype))
    x = x / x.norm().clamp_min(eps)
    for _ in range(count):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def shape_factor(kind: str | None, rows: int, columns: int) -> float:
    """What a matrix's learning rate is multiplied by, for its shape.

    Args:
        kind: ``original`` | ``match_rms_adamw``; None is ``original``.
        rows: of the matrix.
        columns: of the matrix.

    Returns:
        The factor, as torch.optim.Muon takes it.
    """
    if kind is None or kind == "original":
        return math.sqrt(max(1, rows / columns))
    if kind == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return 1.0


def wants_names(factory: Callable[..., Any]) -> bool:
    """Whether an optimizer's constructor takes (name, parameter) pairs.

    Args:
        factory: a class, or a partial or wrapper of one.

    Returns:
        True if its first argument is called ``named_parameters``.
    """
    try:
        arguments = list(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # some built-in callables have no signature
        return False
    return bool(arguments) and arguments[0] == "named_parameters"
