"""Mixtures of experts: tokens of several examples are routed together, and gradients are still those of one example."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.families import build, double, ragged
from tests.reference import relative, slow_matrix, warmed_up
from winnow.gradients.factors.routed import Routed
from winnow.gradients.layers import experts
from winnow.scorer import Scorer
from winnow.signals import Needs, Signals

POOL, TARGET = ragged([7, 5, 9]), ragged([6, 4], seed=1)
ALL = Needs(losses=True, alignment=1, gram=1)


def same(got: Signals, expected: Signals, tolerance: float) -> None:
    for name in ("losses", "gram", "alignment"):
        assert relative(getattr(got, name), getattr(expected, name)) < tolerance, name


def test_routed_gradients_are_those_of_each_example() -> None:
    """Two slots a token, an expert that nobody reaches, one that only one example does, and a slot out of range."""
    left, right = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(3, 8, 6, dtype=torch.float64)
    expert = torch.tensor([[0, 1, 1, 0, 0, 4, 1, 0], [0, 0, 0, 0, 3, 0, 0, 1], [1, 0, 0, 1, 1, 1, 1, 1]])
    factor = Routed(left, right, expert, 4)
    expected = torch.zeros(3, 4, 5, 6, dtype=torch.float64)
    for example in range(3):
        for slot, number in enumerate(expert[example].tolist()):
            if number < 4:
                expected[example, number] += left[example, slot // 2].outer(right[example, slot])
    assert factor.support().tolist() == [0, 1, 3]
    for rows in (slice(None), slice(1, 4), torch.tensor([0, 3])):
        assert relative(factor.rows(rows), expected[:, rows]) < 1e-12
    weight, index, direction = torch.tensor([0.3, 1.7]), torch.tensor([2, 0]), torch.randn(4, 5, 6)
    shares = weight.double()[:, None, None, None]
    assert relative(factor.combine(weight, index), (shares * expected[index]).sum(0)) < 1e-12
    assert relative(factor.inner(direction.double()), (expected * direction).flatten(1).sum(1)) < 1e-12


@pytest.mark.parametrize("closed", [True, False], ids=["closed_form", "one_at_a_time"])
def test_experts_with_and_without_a_closed_form(closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generic rule, one example at a time, gives the same; so does a router whose auxiliary loss is on."""
    with double():
        model = build("mixtral")
        optimizer = warmed_up(model)
        plain = Scorer(model, optimizer)(POOL, TARGET, ALL)
        model.config.output_router_logits, model.config.router_aux_loss_coef = True, 100.0  # type: ignore[union-attr]
        monkeypatch.setattr(experts, "is_candidate", lambda module: closed and hasattr(module, "gate_up_proj"))
        same(Scorer(model, optimizer)(POOL, TARGET, ALL), plain, 1e-12)


def test_a_closed_form_that_does_not_hold_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with double():
        model = build("mixtral")
        optimizer = warmed_up(model)
        plain = Scorer(model, optimizer)(POOL, TARGET, ALL)
        for layer in model.model.layers:  # type: ignore[union-attr,operator]
            kind = type(layer.mlp.experts)
            odd: Any = type(
                "Odd", (kind,), {"forward": lambda self, x, i, a, kind=kind: kind.forward(self, x, i, a**2)}
            )
            layer.mlp.experts.__class__ = odd
        got = Scorer(model, optimizer)(POOL, TARGET, ALL)
        names = list(Scorer(model, optimizer).parameters)
        g = slow_matrix(model, POOL, names)
        raw = Scorer(model, torch.optim.SGD(model.parameters(), lr=1.0))(POOL, TARGET, ALL)
    assert relative(raw.gram, g @ g.T) < 1e-9  # type: ignore[arg-type]
    assert relative(got.gram, plain.gram) > 1e-3, "another model"  # type: ignore[arg-type]


def test_grouped_matmuls_score_as_the_loop_over_experts() -> None:
    model: Any = build("qwen2_moe").float()
    optimizer = warmed_up(model)
    loop = Scorer(model, optimizer)(POOL, TARGET, ALL)
    model.set_experts_implementation("grouped_mm")
    same(Scorer(model, optimizer)(POOL, TARGET, ALL), loop, 1e-4)


def test_experts_with_biases_and_another_layout() -> None:
    """GPT-OSS: transposed, interleaved and biased, attention with sinks; the generic rule covers all of it."""
    with double():
        torch.manual_seed(0)
        config = transformers.GptOssConfig(
            vocab_size=23, hidden_size=8, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=4, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=32,
            pad_token_id=0, sliding_window=8, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        )  # fmt: skip
        config._attn_implementation, config._experts_implementation = "eager", "eager"
        model = transformers.AutoModelForCausalLM.from_config(config).double()
        for parameter in model.parameters():
            parameter.data = 0.2 * torch.randn_like(parameter)
        scorer = Scorer(model, torch.optim.SGD(model.parameters(), lr=1.0), layers="router|experts|proj")
        g: Tensor = slow_matrix(model, POOL, list(scorer.parameters))
        assert relative(scorer(POOL, TARGET, ALL).gram, g @ g.T) < 1e-9  # type: ignore[arg-type]
