"""The gradient assembled from the factors of scoring is autograd's gradient of (1/k) sum_i w_i l_i."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.families import FAMILIES, build, double, ragged, rows
from tests.reference import relative, warmed_up
from winnow.gradients.capture import CaptureError
from winnow.gradients.verify import GradientMismatch
from winnow.lm.losses import example_losses
from winnow.scorer import Scorer
from winnow.selection import Selection
from winnow.signals import Needs

NEEDS = Needs(alignment=1, gram=1)
WEIGHT = torch.tensor([0.4, 1.6])
SELECTION = Selection(torch.tensor([0, 2]), WEIGHT)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with double():
        yield


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    config: Any = model.config
    for key, value in config.to_dict().items():
        if ("drop" in key or "pdrop" in key) and isinstance(value, float):
            setattr(config, key, 0.0)
    return model.eval()  # functional dropout was read from the config when the modules were made


def two_pass(model: nn.Module, pool: dict[str, Tensor], selection: Selection) -> dict[str, Tensor]:
    model.zero_grad()
    losses = example_losses(model, rows(pool, selection.index))
    (losses @ selection.weight.to(losses.dtype) / len(selection)).backward()
    found = {name: held.grad for name, held in model.named_parameters() if held.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_equals_two_passes(family: str, lora: bool) -> None:
    """For every trainable parameter, those outside the geometry and the tied embedding included."""
    model = without_dropout(build(family, lora))
    optimizer = warmed_up(model)
    pool, target = ragged([7, 5, 6], [2, 5, 3]), ragged([9, 4], seed=1)
    expected = two_pass(model, pool, SELECTION)
    assert set(expected) == {name for name, held in model.named_parameters() if held.requires_grad}
    scorer = Scorer(model, optimizer, layers="layers.1|h.1", update="one_pass")
    assert len(scorer.parameters) < len(expected)
    signals = scorer(pool, target, NEEDS)
    assert signals.valid[SELECTION.index].all()
    got = scorer.weighted_gradients(SELECTION)
    assert set(got) == set(expected)
    for name, gradient in expected.items():
        if float(gradient.norm()) < 1e-12:  # a key's bias: softmax does not see it
            assert float(got[name].norm()) < 1e-12
        else:
            assert relative(got[name], gradient) < 1e-9, name
    alone = Scorer(model, optimizer, layers="layers.1|h.1")(pool, target, NEEDS)
    assert torch.equal(alone.gram, signals.gram)  # type: ignore[arg-type]
    assert torch.equal(alone.alignment, signals.alignment)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["exact", "ghost", "auto", "sketch"])
def test_products_do_not_depend_on_whether_factors_are_held(mode: str) -> None:
    """Sketches are taken while the backward runs without an update, and after it with one."""
    model, options = without_dropout(build("llama")), {"mode": mode, "sketch_dim": 4}
    pool, target, optimizer = ragged([7, 5, 6]), ragged([9, 4], seed=1), warmed_up(model)
    alone = Scorer(model, optimizer, **options)(pool, target, NEEDS)
    held = Scorer(model, optimizer, update="one_pass", **options)(pool, target, NEEDS)
    assert torch.equal(alone.gram, held.gram)  # type: ignore[arg-type]
    assert torch.equal(alone.alignment, held.alignment)  # type: ignore[arg-type]


def test_assigning_writes_adds_and_lets_go() -> None:
    model = without_dropout(build("llama"))
    scorer = Scorer(model, warmed_up(model), update="one_pass")
    pool, target = ragged([7, 5, 6]), ragged([9, 4], seed=1)
    expected = two_pass(model, pool, SELECTION)
    for accumulate, factor in ((False, 1), (True, 2), (False, 1)):
        scorer(pool, target, NEEDS)
        assert scorer.holds_update
        scorer.assign_update(SELECTION, accumulate)
        assert not scorer.holds_update
        for name, held in model.named_parameters():
            assert held.grad is not None and relative(held.grad, factor * expected[name]) < 1e-9
    with pytest.raises(RuntimeError, match="holds_update"):
        scorer.assign_update(SELECTION)
    scorer(pool, target, NEEDS)
    scorer.assign_update(Selection(torch.tensor([], dtype=torch.long), torch.tensor([])))
    assert all(held.grad is None for held in model.parameters()), "nothing kept, nothing to step on"
    scorer(pool, None, Needs(losses=True))
    assert not scorer.holds_update, "a forward-only call has no factors"


def test_a_nan_candidate_does_not_reach_the_update() -> None:
    model = without_dropout(build("llama"))
    scorer = Scorer(model, warmed_up(model), update="one_pass")
    pool, target = ragged([7, 5, 6]), ragged([9, 4], seed=1)
    pool["input_ids"][1, 2] = 1
    model.get_input_embeddings().weight.data[1] = torch.nan  # type: ignore[operator]
    assert scorer(pool, target, NEEDS).valid.tolist() == [True, False, True]
    expected = two_pass(model, pool, SELECTION)
    for name, gradient in scorer.weighted_gradients(SELECTION).items():
        assert relative(gradient, expected[name]) < 1e-9


def test_dropout_takes_a_second_pass_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = build("gpt2")
    pool, target = ragged([7, 5, 6]), ragged([9, 4], seed=1)
    scorer = Scorer(model, warmed_up(model), update="auto")
    with caplog.at_level(logging.WARNING, logger="winnow.scorer"):
        for _ in range(3):
            scorer(pool, target, NEEDS)
            assert not scorer.holds_update
    assert len(caplog.records) == 1 and "dropout" in caplog.text and "scoring.update" in caplog.text
    with pytest.raises(ValueError, match=r"scoring\.update=one_pass.*dropout"):
        Scorer(model, warmed_up(model), update="one_pass")(pool, target, NEEDS)
    with pytest.raises(ValueError, match=r"scoring\.update"):
        Scorer(model, warmed_up(model), update="fast")


class Routed(nn.Module):
    """A linear map over every other token, as an expert gets them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expert = nn.Linear(width, width, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        return (
            torch
            .zeros_like(tokens)
            .index_copy(0, torch.arange(0, len(tokens), 2), self.expert(tokens[::2]))
            .view(x.shape)
        )


class Functional(nn.Module):
    """A linear map whose weight is used outside its own call as well."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.linear.weight


@pytest.mark.parametrize("odd", [Routed, Functional])
def test_a_module_that_cannot_be_captured_takes_a_second_pass(odd: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Outside the geometry it costs the fast path only: the scores are the same, and the log says why, once."""
    model = without_dropout(build("llama"))
    model.model.layers[1].mlp = odd(8)  # type: ignore[union-attr,index]
    pool, target = ragged([7, 5, 6]), ragged([9, 4], seed=1)
    optimizer = warmed_up(model)
    plain = Scorer(model, optimizer, layers="self_attn")(pool, target, NEEDS)
    scorer = Scorer(model, optimizer, layers="self_attn", update="auto")
    with caplog.at_level(logging.WARNING, logger="winnow.scorer"):
        for _ in range(2):
            signals = scorer(pool, target, NEEDS)
            assert not scorer.holds_update
            assert torch.equal(signals.gram, plain.gram)  # type: ignore[arg-type]
            assert torch.equal(signals.alignment, plain.alignment)  # type: ignore[arg-type]
    assert len(caplog.records) == 1 and "layers.1.mlp" in caplog.text
    with pytest.raises((CaptureError, GradientMismatch), match=r"layers\.1\.mlp"):
        Scorer(model, optimizer, layers="self_attn", update="one_pass")(pool, target, NEEDS)
