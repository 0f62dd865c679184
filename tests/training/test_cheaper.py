"""Cheaper scores are what they say: of a window of each example, under autocast, or of another model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import runs
from tests.families import build, ragged
from tests.training.test_gate_trains import Record, gate, world
from winnow.lm.crop import cropped
from winnow.lm.layout import response_tokens
from winnow.scorer import Scorer
from winnow.selectors import FilterWeight
from winnow.signals import Needs
from winnow.training.cheaper import Cheaper, proxy_scorer
from winnow.training.intake import Intake

BOTH = Needs(losses=True, gram=1, alignment=1)


def batch(prompts: list[int], responses: list[int], left: bool = False) -> dict[str, torch.Tensor]:
    """Rows of numbered tokens, so that it can be seen which are left."""
    width = max(map(sum, zip(prompts, responses, strict=True)))
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, response in zip(prompts, responses, strict=True):
        ids = list(range(1, prompt + response + 1))
        blank = [0] * (width - len(ids))
        for key, fill, values in (
            ("input_ids", 0, ids),
            ("attention_mask", 0, [1] * len(ids)),
            ("labels", -100, [-100] * prompt + ids[prompt:]),
        ):
            filler = [fill] * len(blank)
            rows[key].append([*filler, *values] if left else [*values, *filler])
    return {key: torch.tensor(value) for key, value in rows.items()}


@pytest.mark.parametrize("left", [False, True])
def test_a_window_holds_the_end_of_the_prompt_and_the_beginning_of_the_response(left: bool) -> None:
    given = batch([2, 10, 10, 30, 0, 5], [3, 2, 10, 1, 12, 0], left)
    short = cropped(given, 8)
    expected = [
        [1, 2, 3, 4, 5],  # whole
        [5, 6, 7, 8, 9, 10, 11, 12],  # all of a short response
        [7, 8, 9, 10, 11, 12, 13, 14],  # half of the window is response
        [24, 25, 26, 27, 28, 29, 30, 31],
        [1, 2, 3, 4, 5, 6, 7, 8],
        [1, 2, 3, 4, 5],
    ]
    for row, ids in enumerate(expected):
        mask = short["attention_mask"][row].bool()
        assert short["input_ids"][row][mask].tolist() == ids
        labels = short["labels"][row][mask]
        prompt = [2, 10, 10, 30, 0, 5][row]
        assert labels.tolist() == [-100 if one <= prompt else one for one in ids]
    assert short["input_ids"].shape == (6, 8) and (short["labels"][short["attention_mask"] == 0] == -100).all()
    assert ((response_tokens(short) > 0) == (response_tokens(given) > 0)).all()


def test_a_window_as_long_as_the_examples_changes_nothing() -> None:
    given = ragged([14, 9, 3])
    for key, value in cropped(given, 14).items():
        assert torch.equal(value, given[key])
    with pytest.raises(ValueError, match=r"scoring\.max_tokens must be at least 2"):
        cropped(given, 1)


def scored(cheaper: Cheaper, model: torch.nn.Module | None = None) -> tuple[Any, Scorer]:
    model = build("llama") if model is None else model
    scorer = Scorer(model, torch.optim.SGD(model.parameters()), verify=False)
    pool, target = ragged([14, 9, 11, 12]), ragged([10, 7], seed=1)
    return cheaper.score(scorer, pool, target, BOTH, None, None, {}), scorer


def test_scores_of_a_window_are_those_of_the_window() -> None:
    model = build("llama")
    found, _ = scored(Cheaper(max_tokens=6), model)
    scorer = Scorer(model, torch.optim.SGD(model.parameters()), verify=False)
    expected = scorer(cropped(ragged([14, 9, 11, 12]), 6), cropped(ragged([10, 7], seed=1), 6), BOTH)
    assert torch.equal(found.gram, expected.gram) and torch.equal(found.alignment, expected.alignment)
    whole, _ = scored(Cheaper(), model)
    assert torch.equal(found.tokens, whole.tokens) and not torch.equal(found.tokens, expected.tokens)


def test_scores_under_autocast_are_near_the_exact_ones() -> None:
    model = build("llama").float()
    (found, _), (whole, _) = scored(Cheaper(precision="bf16"), model), scored(Cheaper(), model)
    assert not torch.equal(found.losses, whole.losses)
    torch.testing.assert_close(found.losses, whole.losses, rtol=0.05, atol=0.05)
    cosine = torch.nn.functional.cosine_similarity(found.alignment, whole.alignment, dim=0)
    assert cosine > 0.99


def test_a_proxy_s_scores_are_its_own_plain_ones() -> None:
    model, other = build("llama"), build("llama", seed=5)
    proxy = proxy_scorer(model, other, verify=False)
    found, scorer = scored(Cheaper(proxy=proxy), model)
    expected = Scorer(other, torch.optim.SGD(other.parameters()), geometry="identity", verify=False)(
        ragged([14, 9, 11, 12]), ragged([10, 7], seed=1), BOTH
    )
    assert torch.equal(found.gram, expected.gram) and torch.equal(found.losses, expected.losses)
    flops, passes = proxy.meter.take(False)
    assert flops.total > 0 and len(passes) == 1 and scorer.meter.take(False)[0].total == 0
    with pytest.raises(ValueError, match=r"scoring\.proxy has a vocabulary of 23 tokens and the model one of 279"):
        proxy_scorer(runs.model(), other)


def test_what_is_not_the_model_s_own_pass_makes_no_update() -> None:
    for cheaper in (Cheaper(max_tokens=4), Cheaper(precision="bf16")):
        cheaper.check("two_pass")
        with pytest.raises(ValueError, match=r"set scoring\.update=two_pass"):
            cheaper.check("one_pass")
    Cheaper().check("one_pass")
    for bad in ({"max_tokens": 1}, {"precision": "fp8"}):
        with pytest.raises(ValueError, match=rf"scoring\.{next(iter(bad))} must be"):
            Cheaper(**bad)


@pytest.mark.parametrize("kind", ["max_tokens", "precision", "proxy"])
def test_training_with_cheaper_scores(kind: str) -> None:
    """The update is of whole examples and of the model, whatever was scored; and the price falls."""
    cheaper = {
        "max_tokens": lambda: Cheaper(max_tokens=12),
        "precision": lambda: Cheaper(precision="bf16"),
        "proxy": lambda: Cheaper(proxy=proxy_scorer(runs.model(), runs.model(seed=4), every=2)),
    }[kind]()
    totals = []
    for how in (cheaper, Cheaper()):
        made, record = gate(), Record()
        module = runs.fit(
            FilterWeight(filter_size=3), 4, data=world(made), callbacks=[record], intake=Intake(made, cheaper=how)
        )
        assert module.budget.updates == 4
        totals.append(module.budget.flops)
        for one in record.steps:
            assert one.signals.tokens.tolist() == [len(e) for e in _responses(one, module)]
    assert totals[0] < totals[1] if kind == "max_tokens" else totals[0] > 0


def _responses(record: Any, module: Any) -> list[list[int]]:
    tokenizer = runs.tokenizer()
    return [tokenizer(text, add_special_tokens=False)["input_ids"] + [0] for text in record.meta["response"]]


def test_a_proxy_s_target_gradient_survives_a_checkpoint(tmp_path: Path) -> None:
    build_proxy = partial(proxy_scorer, runs.model(), runs.model(seed=4), target_ema=0.5)
    intake = Intake(gate(), cheaper=Cheaper(proxy=build_proxy()))
    runs.fit(FilterWeight(filter_size=3), 3, data=world(intake.gate), intake=intake)
    other = Intake(gate(), cheaper=Cheaper(proxy=build_proxy()))
    other.load_state_dict(intake.state_dict())
    one, two = (made.cheaper.proxy.state_dict()["target"] for made in (intake, other))
    assert one["updates"] == two["updates"] == 3
    assert all(torch.equal(one["gradients"][name], two["gradients"][name]) for name in one["gradients"])
