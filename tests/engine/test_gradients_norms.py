"""A root-mean-square norm takes the closed form where that is its gradient, and is called again where it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.reference import normal
from winnow.gradients import capture
from winnow.gradients.capture import Capture
from winnow.gradients.factors.dense import Dense
from winnow.gradients.layers import rms_norm, rule_for
from winnow.gradients.layers.call import Call
from winnow.gradients.layers.rms_norm import RMS_NORM


class MeanRMSNorm(nn.Module):
    """Called a root-mean-square norm, and it takes the mean off first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class TwoInputsRMSNorm(MeanRMSNorm):
    """A gate beside the input."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x * gate)


def one_by_one(module: nn.Module, grad: Tensor, *inputs: Tensor) -> Tensor:
    rows = []
    for row in zip(grad, *inputs, strict=True):
        output = module(*(x[None] for x in row[1:]))
        rows.append(torch.autograd.grad(output, module.weight, row[0][None].to(output.dtype))[0])
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("build", "dtype", "closed"),
    [
        (LlamaRMSNorm, torch.float32, True),
        (LlamaRMSNorm, torch.bfloat16, True),
        (LlamaRMSNorm, torch.float64, False),  # it works in float32 whatever it is given
        (GemmaRMSNorm, torch.float32, True),
        (nn.RMSNorm, torch.float32, True),
        (nn.RMSNorm, torch.float64, True),
        (MeanRMSNorm, torch.float32, False),
    ],
)
@pytest.mark.parametrize("heads", [(), (3,)], ids=["tokens", "heads"])
def test_gradients_of_the_weight(
    build: Callable[[int], nn.Module],
    dtype: torch.dtype,
    closed: bool,
    heads: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rms_norm._checked, "answers", {})
    module = build(16).to(dtype)
    nn.init.normal_(module.weight)  # type: ignore[arg-type]
    x, grad = normal(4, 5, *heads, 16).to(dtype), normal(4, 5, *heads, 16, seed=1).to(dtype)
    x[1] *= 1e-3  # eps counts
    call = Call((x,), {}, (grad,), frozenset(), frozenset({0}))
    rule_for(module).gradients(module, call, ["weight"])  # the first call of a class compares
    used: list[nn.Module] = []
    original = rms_norm.generic
    monkeypatch.setattr(rms_norm, "generic", lambda *args: used.append(args[0]) or original(*args))
    found = rule_for(module).gradients(module, call, ["weight"])["weight"].rows(slice(None))
    assert bool(used) != closed
    expected = one_by_one(module, grad, x)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_a_norm_of_two_inputs_is_called_again() -> None:
    module = TwoInputsRMSNorm(16)
    x, gate, grad = (normal(4, 5, 16, seed=seed).float() for seed in range(3))
    call = Call((x, gate), {}, (grad,), frozenset(), frozenset({0, 1}))
    found = rule_for(module).gradients(module, call, ["weight"])["weight"].rows(slice(None))
    torch.testing.assert_close(found, one_by_one(module, grad, x, gate), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("build", "dtype", "weight", "used"),
    [
        (LlamaRMSNorm, torch.float32, 0.5, True),
        (GemmaRMSNorm, torch.float32, 0.5, True),
        (nn.RMSNorm, torch.float64, -2.0, True),
        (LlamaRMSNorm, torch.float32, 0.0, False),  # the output says nothing of the input
        (LlamaRMSNorm, torch.float32, 1e-35, False),  # the output is short of digits
        (GemmaRMSNorm, torch.float32, -1.0, False),
        (LlamaRMSNorm, torch.bfloat16, 0.5, False),  # the output is rounded once more
    ],
)
def test_gradients_of_the_weight_from_the_output(
    build: Callable[[int], nn.Module],
    dtype: torch.dtype,
    weight: float,
    used: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is not to be looked at is NaN: the input where the output serves, and the output elsewhere."""
    monkeypatch.setattr(rms_norm._checked, "answers", {})
    monkeypatch.setattr(rms_norm, "BLOCK", 3 * 5 * 16)  # three tokens, and two
    module = build(16).to(dtype)
    x, grad = normal(4, 5, 16).to(dtype), normal(4, 5, 16, seed=1).to(dtype)
    call = Call((x,), {}, (grad,), frozenset(), frozenset({0}))
    rule_for(module).gradients(module, replace(call, output=module(x).detach()), ["weight"])  # the first call compares
    with torch.no_grad():
        module.weight.copy_(normal(16, seed=2))  # type: ignore[operator, union-attr]
        module.weight[3] = weight  # type: ignore[index, operator]
        y = module(x)
    blank = torch.full_like(x, torch.nan)
    seen = replace(call, args=(blank,), output=y) if used else replace(call, output=blank)
    found = rule_for(module).gradients(module, seen, ["weight"])["weight"].rows(slice(None))
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(found, one_by_one(module, grad, x), atol=tolerance, rtol=tolerance)


class OffsetRMSNorm(nn.Module):
    """Whether one is added to the weights is an option of the module, not of the class."""

    def __init__(self, width: int, offset: float) -> None:
        super().__init__()
        self.weight, self.offset, self.eps = nn.Parameter(normal(width, seed=3).float()), offset, 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return (self.offset + self.weight) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def test_the_offset_is_that_of_the_module() -> None:
    for offset in (0.0, 1.0, 2.0):
        module = OffsetRMSNorm(16, offset)
        x, grad = normal(4, 5, 16).float(), normal(4, 5, 16, seed=1).float()
        call = Call((x,), {}, (grad,), frozenset(), frozenset({0}), module(x).detach())
        found = rule_for(module).gradients(module, call, ["weight"])["weight"].rows(slice(None))
        torch.testing.assert_close(found, one_by_one(module, grad, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shape", "held"), [((2, 3, 8), True), ((2, 3, 4, 8), False)], ids=["tokens", "heads"])
def test_outputs_are_held_where_a_linear_map_would(
    shape: tuple[int, ...], held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, seen = LlamaRMSNorm(8), []

    def rule(module: nn.Module, call: Call, names: tuple[str, ...]) -> dict[str, Dense]:
        seen.append(call.output)
        return {"weight": Dense(torch.zeros(2, 8))}

    monkeypatch.setattr(capture, "rule_for", lambda module: replace(RMS_NORM, gradients=rule))
    with Capture(module, {"weight": module.weight}, 2, 3, lambda name, factor: None) as caught:
        y = module(normal(*shape).float())
        caught.backward(y.sum())
    assert len(seen) == 1 and (seen[0] is not None) == held
    assert not held or torch.equal(seen[0], y)


def test_outputs_are_asked_of_norms_on_a_cpu() -> None:
    assert rms_norm.asks_output(LlamaRMSNorm(4)) and not rms_norm.asks_output(LlamaRMSNorm(4).to("meta"))
    assert not rms_norm.asks_output(nn.Linear(4, 4))
