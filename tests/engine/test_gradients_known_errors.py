"""The known errors of other systems, each a test of its own."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families import build, double, ragged, rows
from tests.reference import diagonal, relative, slow_matrix, warmed_up
from winnow.scorer import Scorer
from winnow.signals import Needs, Signals

ALL = Needs(losses=True, alignment=1, gram=1, norms=1)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with double():
        yield


def expected(
    scorer: Scorer, model: nn.Module, pool: dict[str, Tensor], target: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    names = list(scorer.parameters)
    p = diagonal(scorer.geometry.optimizer, model, names)  # type: ignore[attr-defined]
    g, tau = slow_matrix(model, pool, names), slow_matrix(model, target, names).mean(0)
    return (g * p) @ g.T, (g * p) @ tau


def check(signals: Signals, gram: Tensor, alignment: Tensor) -> None:
    assert signals.gram is not None and signals.alignment is not None
    assert relative(signals.gram, gram) < 1e-9
    assert relative(signals.alignment, alignment) < 1e-9


def test_lora_scale_is_not_ignored() -> None:
    """With alpha = 7 and r = 3 a gradient without the scale is off by a factor of 7/3."""
    model = build("llama", lora=True)
    assert model.get_base_model().model.layers[0].mlp.up_proj.scaling == {"default": 7 / 3}  # type: ignore[operator,union-attr]
    pool, target = ragged([7, 5]), ragged([6], seed=1)
    scorer = Scorer(model, warmed_up(model))
    gram, alignment = expected(scorer, model, pool, target)
    check(scorer(pool, target, ALL), gram, alignment)


def test_conv1d_with_several_target_examples() -> None:
    model = build("gpt2")
    pool, target = ragged([7, 5, 4]), ragged([6, 9, 3, 5], seed=1)
    scorer = Scorer(model, warmed_up(model), layers=r"c_attn|c_proj|c_fc")
    check(scorer(pool, target, ALL), *expected(scorer, model, pool, target))


def test_biased_attention_projections() -> None:
    model = build("qwen2")
    pool, target = ragged([7, 5, 4]), ragged([6, 9], seed=1)
    scorer = Scorer(model, warmed_up(model), layers=r"[qkv]_proj\.bias")
    assert len(scorer.parameters) == 6
    gram, alignment = expected(scorer, model, pool, target)
    check(scorer(pool, target, ALL), gram, alignment)


@pytest.mark.filterwarnings("error")
def test_rows_without_response_tokens_give_no_nan_and_touch_nobody() -> None:
    model = build("llama")
    scorer = Scorer(model, warmed_up(model))
    pool, target = ragged([7, 5, 6], [2, 5, 3]), ragged([6, 4], [2, 4], seed=1)
    signals = scorer(pool, target, ALL)
    without = scorer(rows(pool, [0, 2]), rows(target, [0]), ALL)
    assert signals.valid.tolist() == [True, False, True] and signals.tokens.tolist() == [5, 0, 3]
    assert signals.losses is not None and signals.losses.isnan().tolist() == [False, True, False]
    check(rows_of(signals, [0, 2]), without.gram, without.alignment)  # type: ignore[arg-type]
    assert signals.gram is not None and not signals.gram[1].any() and not signals.gram[:, 1].any()


def rows_of(signals: Signals, index: list[int]) -> Signals:
    assert signals.gram is not None and signals.alignment is not None
    return Signals(
        signals.valid[index], signals.tokens[index], None, signals.alignment[index], signals.gram[index][:, index]
    )


def test_an_empty_pool_of_responses_is_no_error() -> None:
    model = build("llama")
    scorer = Scorer(model, warmed_up(model))
    signals = scorer(ragged([5, 4], [5, 4]), ragged([6], seed=1), ALL)
    assert not signals.valid.any() and signals.gram is not None and not signals.gram.any()


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_dropout_is_off_while_scoring_and_back_on_after(lora: bool) -> None:
    model = build("gpt2", lora)
    flags = {name: module.training for name, module in model.named_modules()}
    assert all(flags.values())
    scorer = Scorer(model, warmed_up(model))
    pool, target = ragged([7, 5]), ragged([6], seed=1)
    before = torch.get_rng_state()
    first, second = scorer(pool, target, ALL), scorer(pool, target, ALL)
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert first.gram is not None and second.gram is not None and torch.equal(first.gram, second.gram)
    torch.manual_seed(1)
    one = model(input_ids=pool["input_ids"]).logits
    torch.manual_seed(2)
    assert not torch.equal(one, model(input_ids=pool["input_ids"]).logits), "dropout is active when not scoring"


@pytest.mark.parametrize("fail", [False, True], ids=["returns", "raises"])
def test_frozen_parameters_stay_frozen_after_hooks_come_and_go(fail: bool) -> None:
    model = build("qwen3", lora=True)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert len(set(flags.values())) == 2
    scorer = Scorer(model, warmed_up(model))
    pool = ragged([7, 5])
    if fail:
        with pytest.raises(IndexError):
            scorer({**pool, "input_ids": pool["input_ids"] + 10**6}, ragged([6], seed=1), ALL)
    else:
        scorer(pool, ragged([6], seed=1), ALL)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(module.training for module in model.modules())


def test_a_candidate_with_nan_loss_is_invalid_alone() -> None:
    """A row of an untied embedding is NaN: the candidate that uses it is out, the others' K and b unchanged."""
    model = build("llama")
    pool, target = ragged([7, 5, 6]), ragged([6, 4], seed=1)
    pool["input_ids"][1, 2] = 1
    assert (pool["input_ids"] == 1).sum() == 1 and not (target["input_ids"] == 1).any()
    scorer = Scorer(model, warmed_up(model))
    clean = scorer(pool, target, ALL)
    model.get_input_embeddings().weight.data[1] = torch.nan  # type: ignore[operator]
    for given in (scorer, Scorer(model, scorer.geometry.optimizer)):  # type: ignore[attr-defined]
        signals = given(pool, target, ALL)
        assert signals.valid.tolist() == [True, False, True]
        assert signals.gram is not None and clean.gram is not None
        assert signals.alignment is not None and clean.alignment is not None
        assert torch.isfinite(signals.gram).all() and not signals.gram[1].any()
        assert relative(signals.gram[[0, 2]][:, [0, 2]], clean.gram[[0, 2]][:, [0, 2]]) < 1e-12
        assert relative(signals.alignment[[0, 2]], clean.alignment[[0, 2]]) < 1e-12


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("llama", "eager"),
        ("gpt2", "eager"),
        ("opt", "eager"),
        ("gpt_neox", "eager"),
        ("llama", "sdpa"),
        ("gemma3", "sdpa"),
    ],
)
def test_padding_has_no_influence(family: str, attention: str) -> None:
    """What stands under the padding changes no bit; more padding, on either side, changes only rounding."""
    model = build(family, attention=attention)
    scorer = Scorer(model, warmed_up(model))
    pool, target = ragged([7, 5, 4], pad=1), ragged([6, 4], seed=1, pad=1)
    first = scorer(pool, target, ALL)
    other = {**pool, "input_ids": torch.where(pool["attention_mask"] == 1, pool["input_ids"], 9)}
    second = scorer(other, target, ALL)
    assert first.gram is not None and second.gram is not None
    assert torch.equal(first.gram, second.gram)
    assert torch.equal(first.alignment, second.alignment)  # type: ignore[arg-type]
    for widths in ((0, 3), (3, 0)):
        fill = {"input_ids": 1, "attention_mask": 0, "labels": -100}
        padded = {key: F.pad(value, widths, value=fill[key]) for key, value in pool.items()}
        third = scorer(padded, target, ALL)
        check(third, first.gram, first.alignment)  # type: ignore[arg-type]


def test_batch_composition_has_no_influence() -> None:
    model = build("qwen3")
    scorer = Scorer(model, warmed_up(model))
    pool, target = ragged([7, 5, 9, 4]), ragged([6, 4], seed=1)
    whole = scorer(pool, target, ALL)
    assert whole.gram is not None and whole.alignment is not None
    order = [3, 1, 0]
    part = scorer(rows(pool, order), target, ALL)
    check(part, whole.gram[order][:, order], whole.alignment[order])
