"""The update, the losses and the evaluation of examples laid end to end are those of padded examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import runs
from tests.engine.test_gradients_capture import Mixing, toy
from tests.engine.test_scorer_one_pass import without_dropout
from tests.families import build, double, ragged
from tests.reference import warmed_up
from winnow.data import Corpus, Target
from winnow.evaluation import answer_nll
from winnow.lm.forward import Forward
from winnow.lm.passes import FORWARD, TRAINED
from winnow.scorer import Scorer
from winnow.selection import Selection
from winnow.selectors import Full
from winnow.signals import Needs

# One without a response token, one of a single token.
POOL = ragged([12, 5, 9, 6, 4, 1, 3], [2, 4, 3, 6, 1, 1, 1])
SELECTION = Selection(torch.tensor([0, 1, 2, 4, 6]), torch.tensor([0.4, 1.6, 1.0, 0.0, 2.0]))


def update(model: nn.Module, pool: dict[str, Tensor], chosen: Selection, **options: Any) -> dict[str, Tensor]:
    """The gradient that an update puts into ``.grad``, without a scoring before it, and the losses it saw."""
    model.zero_grad()
    scorer = Scorer(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)
    trained, losses = scorer.backward(pool, chosen)
    passes = scorer._pass.scope.forward.passes
    found = {name: held.grad for name, held in model.named_parameters() if held.grad is not None}
    cells = torch.tensor(sum(one.rows * one.length for one in passes))
    assert {one.kind for one in passes} == {TRAINED}
    return found | {"losses": losses, "trained": trained.index, "cells": cells}


def same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys() and len(got) > 3
    assert torch.equal(got["trained"], expected["trained"])
    assert torch.allclose(got["losses"], expected["losses"], rtol=1e-6, equal_nan=True), "kept in float32"
    for name in got.keys() - {"losses", "trained", "cells"}:
        size = max(float(expected[name].norm()), 1e-3)
        assert float((got[name] - expected[name]).norm()) < 1e-9 * size, name


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("family", "attention"), [("llama", "sdpa"), ("gpt2", "eager"), ("gemma3", "eager"), ("qwen2_moe", "sdpa")]
)
def test_a_packed_update_is_the_padded_one(family: str, attention: str, lora: bool) -> None:
    with double():
        model = without_dropout(build(family, lora, attention))
        expected = update(model, POOL, SELECTION)
        packed = update(model, POOL, SELECTION, pack=True)
        same(packed, expected)
        assert int(packed["cells"]) == 36 < int(expected["cells"]) == 60
        pieces = {"pool_micro_batch": 3, "reduction": "sum"}
        same(update(model, POOL, SELECTION, pack=True, **pieces), update(model, POOL, SELECTION, **pieces))


def test_examples_of_a_row_do_not_see_one_another() -> None:
    """Another text in an example of no weight, which shares a row with one that counts, changes no gradient."""
    chosen = Selection(torch.tensor([0, 2, 6]), torch.tensor([1.0, 0.0, 1.0]))
    other = {key: value.clone() for key, value in POOL.items()}
    other["input_ids"][2, :9] = 24 - other["input_ids"][2, :9]
    other["labels"][2, 3:9] = other["input_ids"][2, 3:9]
    with double():
        for family, attention in (("llama", "sdpa"), ("gpt2", "eager")):
            model = without_dropout(build(family, False, attention))
            first, second = (update(model, pool, chosen, pack=True) for pool in (POOL, other))
            assert int(first["cells"]) == 24 and float(first["losses"][2]) != float(second["losses"][2])
            assert torch.equal(first["losses"][[0, 6]], second["losses"][[0, 6]])
            for name in first.keys() - {"losses", "trained", "cells"}:
                assert float((first[name] - second[name]).abs().max()) <= 1e-12, name


def test_an_update_that_cannot_pack_says_so_and_goes_padded(caplog: pytest.LogCaptureFixture) -> None:
    with double():
        opt = without_dropout(build("opt"))
        same(update(opt, POOL, SELECTION, pack=True), update(opt, POOL, SELECTION))
    assert "batches stay padded: packed examples have other losses than alone" in caplog.text
    assert "OPTForCausalLM with attention 'eager'" in caplog.text
    caplog.clear()
    model = toy(Mixing())
    scorer = Scorer(model, warmed_up(model), pack=True)
    for _ in range(2):
        scorer.backward(POOL, SELECTION)
    assert caplog.text.count("takes no position_ids") == 1, "once"


def test_a_spoilt_example_is_left_out_of_a_packed_update_alone() -> None:
    with double():
        model: Any = without_dropout(build("llama"))
        pool = {key: value.clone() for key, value in POOL.items()}
        pool["input_ids"][1, 2] = 1
        model.get_input_embeddings().weight.data[1] = torch.nan
        packed = update(model, pool, SELECTION, pack=True)
        assert packed["trained"].tolist() == [0, 2, 4, 6] and bool(packed["losses"][1].isnan())
        same(packed, update(model, pool, SELECTION))


def test_the_check_leaves_dropout_and_chance_alone() -> None:
    """Losses are compared without dropout, under which no two passes agree; the update itself has it."""
    with double():
        model = build("gpt2")
        state = torch.get_rng_state()
        forward = Forward(model, packed=True)
        assert forward.rows(POOL) is not None and torch.equal(torch.get_rng_state(), state) and model.training
        first, second = forward.laid_losses(POOL, TRAINED), forward.laid_losses(POOL, TRAINED)
    assert not torch.equal(first, second)


def test_losses_and_evaluations_are_packed_too() -> None:
    with double():
        model = without_dropout(build("llama"))
        optimizer = warmed_up(model)
        padded, packed = (Scorer(model, optimizer, pack=pack) for pack in (False, True))
        expected, got = (one(POOL, None, Needs(losses=True)) for one in (padded, packed))
        assert torch.equal(got.valid, expected.valid)
        assert torch.allclose(got.losses, expected.losses, rtol=1e-9, equal_nan=True)  # type: ignore[arg-type]
        assert answer_nll(model, [POOL], pack=True) == pytest.approx(answer_nll(model, [POOL]), rel=1e-9)
        with torch.no_grad():
            (losses, spent), (alone, cost) = packed.meter.evaluated(POOL), padded.meter.evaluated(POOL)
        assert torch.allclose(losses, alone, rtol=1e-9, equal_nan=True) and 0 < spent < 0.65 * cost
    passes = packed._pass.scope.forward.passes
    assert [(one.kind, one.rows * one.length) for one in passes] == [(FORWARD, 48)], "an evaluation is no scoring"


def test_training_without_scoring_packs_its_updates_and_its_validation() -> None:
    rows = [replace(runs.example(at), response="one and two and three. " * (1 + 3 * (at % 4 == 0))) for at in range(16)]
    world, found = Corpus(runs.Listed(rows), [Target("task", rows[:8], rows[:2])]), {}
    for pack in (False, True):
        module = runs.fit(
            Full(),
            1,
            data=runs.datamodule(corpus=world),
            limit_val_batches=1.0,
            val_check_interval=1,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            scorer=lambda model, optimizer, pack=pack: Scorer(model, optimizer, pack=pack),
        )
        weights = torch.cat([one.detach().flatten() for one in module.model.parameters()])
        found[pack] = weights, float(module.trainer.callback_metrics["target/val_nll"]), module.budget
    assert torch.allclose(found[True][0], found[False][0], atol=1e-6)
    assert found[True][1] == pytest.approx(found[False][1], rel=1e-5)
    for spent in ("flops_weights", "flops_evaluation"):
        assert getattr(found[True][2], spent) < 0.75 * getattr(found[False][2], spent), spent
