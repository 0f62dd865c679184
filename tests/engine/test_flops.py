"""The operations of scoring and updating follow from shapes, as torch's own counter sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests import runs
from tests.families import FAMILIES, build, ragged
from winnow.evaluation import evaluate
from winnow.lm.forward import Forward
from winnow.lm.passes import FORWARD, TRAINED, Pass
from winnow.optim import MuonWithAdamW
from winnow.report.summary import cost_lines
from winnow.scorer import Scorer
from winnow.scorer.flop_counter import counted
from winnow.scorer.flops import Flops, Rates
from winnow.scorer.meter import step_flops
from winnow.selection import Selection
from winnow.signals import Needs

POOL, TARGET = ragged([14, 9, 11, 12, 8, 13]), ragged([10, 7, 12], seed=1)
BOTH = Needs(gram=1, alignment=1)
KEPT = Selection(torch.tensor([0, 2, 3]), torch.ones(3))


def ready(model: torch.nn.Module, needs: Needs, optimizer: Any = None, **options: Any) -> Scorer:
    """After a first step: the optimizer has a state, and what is counted once is counted."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained) if optimizer is None else optimizer(model)
    scorer = Scorer(model, optimizer, verify=False, **options)
    scorer(POOL, TARGET, needs)
    scorer.backward(POOL, KEPT)
    optimizer.step()
    optimizer.zero_grad()
    scorer.meter.take(False)
    return scorer


def both(scorer: Scorer, needs: Needs, run: Callable[[], Any]) -> tuple[Flops, float]:
    """What the meter says of something, and what torch counts."""
    expected = counted(run)
    return scorer.meter.take(False)[0], expected


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_ten_families_full_and_lora(family: str, lora: bool) -> None:
    scorer = ready(build(family, lora=lora), BOTH)
    scoring, expected = both(scorer, BOTH, lambda: scorer(POOL, TARGET, BOTH))
    assert scoring.total == pytest.approx(expected, rel=0.005)
    assert scoring.weights == 0 < min(scoring.forward, scoring.backward, scoring.attention, scoring.products)
    update, expected = both(scorer, BOTH, lambda: scorer.backward(POOL, KEPT))
    assert update.total == pytest.approx(expected, rel=1e-9)
    assert update.products == 0 < min(update.forward, update.backward, update.weights, update.attention)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_shapes_that_were_never_probed(attention: str) -> None:
    model = build("llama", attention=attention)
    rates = Rates(Scorer(model, torch.optim.SGD(model.parameters()))._pass.scope.forward, {})
    for lengths in ([1, 1], [31], [5, 30, 3, 8]):
        batch, found = ragged(lengths), Flops()
        rates.add(found, [Pass.of(batch, FORWARD)])
        with torch.no_grad():
            expected = counted(lambda batch=batch: rates._forward.losses(batch))  # type: ignore[misc]
        assert found.total == pytest.approx(expected, rel=1e-9)
        assert found.attention > 0


def muon(model: torch.nn.Module) -> MuonWithAdamW:
    return MuonWithAdamW(model.named_parameters())


WHOLE = Needs(alignment=0, curvature=True)
MODES = {
    "one_pass": (BOTH, {"update": "one_pass"}),
    "last": (BOTH, {"layers": "last:1"}),
    "packed": (BOTH, {"pack": True}),
    "reused target": (BOTH, {"every": 2}),
    "averaged target": (BOTH, {"target_ema": 0.9}),
    "ghost": (Needs(gram=0, alignment=0), {"mode": "ghost"}),
    "sketch": (BOTH, {"mode": "sketch", "sketch_dim": 4}),
    "in pieces": (BOTH, {"pool_micro_batch": 2}),
    "alignment alone": (Needs(alignment=0), {}),
    "norms alone": (Needs(norms=1), {}),
    "norms and alignment": (Needs(norms=1, alignment=1), {}),
    "other powers": (Needs(gram=2, alignment=1), {}),
    "momentum": (Needs(gram=1, alignment=1, momentum=True), {}),
    "count sketch": (Needs(gram=1, alignment=1, sketch=64), {}),
    "losses": (Needs(losses=True), {}),
    "curvature": (WHOLE, {}),
    "muon": (BOTH, {"optimizer": muon}),
}
RARER = {
    "per task": (Needs(gram=1, alignment=1, per_task=True), {}),
    "muon in pieces": (BOTH, {"optimizer": muon, "pool_micro_batch": 2}),
    "muon, sketch": (BOTH, {"optimizer": muon, "mode": "sketch", "sketch_dim": 4}),
    "muon, other powers": (Needs(gram=2, alignment=1, norms=1), {"optimizer": muon}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MODES, *(pytest.param(name, marks=pytest.mark.long) for name in RARER)])
def test_every_way_of_scoring(name: str) -> None:
    needs, options = (MODES | RARER)[name]
    scorer = ready(build("llama"), needs, **options)
    task = torch.tensor([0, 1, 0]) if needs.per_task else None
    found, expected = both(scorer, needs, lambda: scorer(POOL, TARGET, needs, target_task=task))
    assert found.total == pytest.approx(expected, rel=0.01)


@pytest.mark.long
@pytest.mark.parametrize("name", ["muon", "in pieces", "curvature"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_ten_families_in_costly_ways(family: str, lora: bool, name: str) -> None:
    needs, options = MODES[name]
    scorer = ready(build(family, lora=lora), needs, **options)
    found, expected = both(scorer, needs, lambda: scorer(POOL, TARGET, needs))
    assert found.total == pytest.approx(expected, rel=0.005)


@pytest.mark.long
def test_a_first_step_of_muon_takes_the_mean_gradient_too() -> None:
    found = {}
    for first in ("pool", "identity"):
        model = build("llama")
        scorer = Scorer(model, muon(model), verify=False, first_step=first)
        scorer._checks = lambda *_: None  # type: ignore[assignment]
        scorer(POOL, TARGET, BOTH)  # what is counted once is counted
        scorer.meter.take(False)
        flops, expected = both(scorer, BOTH, lambda scorer=scorer: scorer(POOL, TARGET, BOTH))  # type: ignore[misc]
        assert flops.total == pytest.approx(expected, rel=0.01)
        found[first] = flops.products
    assert found["pool"] > 1.2 * found["identity"]


def test_a_packed_update_is_counted_by_its_rows() -> None:
    pool, kept = ragged([14, 5, 9, 3, 4, 6]), Selection(torch.arange(6), torch.ones(6))
    totals = {}
    for pack in (False, True):
        scorer = ready(build("llama"), Needs(losses=True), pack=pack)
        scorer.backward(pool, kept)  # compares packed with padded losses, once
        scorer.meter.take(False)
        found, expected = both(scorer, BOTH, lambda scorer=scorer: scorer.backward(pool, kept))  # type: ignore[misc]
        assert found.total == pytest.approx(expected, rel=1e-9) and found.products == 0
        totals[pack] = found.forward
    assert totals[True] < 0.6 * totals[False]


def test_scoring_the_last_layers_stops_there() -> None:
    totals = {}
    for layers in ("all", "last:1"):
        scorer = ready(build("llama"), BOTH, layers=layers)
        totals[layers] = both(scorer, BOTH, lambda scorer=scorer: scorer(POOL, TARGET, BOTH))  # type: ignore[misc]
    (whole, counted_whole), (last, counted_last) = totals["all"], totals["last:1"]
    assert last.forward == whole.forward and last.backward < 0.75 * whole.backward
    assert last.products < 0.75 * whole.products and counted_last < 0.85 * counted_whole


def test_an_update_out_of_the_scoring_pass_takes_weight_gradients_alone() -> None:
    scorer = ready(build("llama"), BOTH, update="one_pass")
    scorer(POOL, TARGET, BOTH)
    scorer.meter.take(False)
    scorer.assign_update(KEPT)
    found, _ = scorer.meter.take(False)
    assert found.weights == found.total > 0


def test_muon_s_iterations_are_counted_and_elementwise_steps_are_not() -> None:
    model = build("llama")
    optimizer = MuonWithAdamW(model.named_parameters())
    model(**{key: POOL[key] for key in ("input_ids", "attention_mask")}).logits.sum().backward()
    assert step_flops(optimizer) == counted(optimizer.step) > 0
    assert step_flops(torch.optim.AdamW(model.parameters())) == 0


def test_evaluation_is_counted_to_the_last_generated_token() -> None:
    model, passes = runs.model(), []  # type: ignore[var-annotated]
    targets = [replace(target, max_new_tokens=5) for target in runs.corpus().targets]

    def measure() -> None:
        evaluate(model, runs.tokenizer(), targets, max_length=48, batch_size=4, passes=passes)

    expected, rates = counted(measure), Rates(Forward(model), {})
    assert sum(rates.forward(one) for one in passes) == pytest.approx(expected, rel=1e-9)
    assert {one.pairs is None for one in passes} == {True, False}  # an NLL's, and a generation's


def test_what_nobody_reads_does_not_pile_up_and_what_somebody_does_adds_up() -> None:
    scorer = ready(build("llama"), BOTH)
    for _ in range(3):
        scorer(POOL, TARGET, BOTH)
    once = scorer.meter.take(False)[0].forward
    scorer.meter.adds = True
    for _ in range(3):
        scorer(POOL, TARGET, BOTH)
    found, passes = scorer.meter.take(False)
    assert found.forward == 3 * once and len(passes) == 3
    assert scorer.meter.take(False)[0].total == 0


def test_counting_leaves_no_trace() -> None:
    """Neither in parameters, gradients, flags and hooks, nor in a random generator."""
    model, heard = build("gpt2"), []
    model.train()
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: heard.append(gradient))
    before = [parameter.clone() for parameter in model.parameters()]
    identities = [id(parameter) for parameter in model.parameters()]
    state, rates = (
        torch.get_rng_state(),
        Rates(Scorer(model, torch.optim.SGD(model.parameters()))._pass.scope.forward, {}),
    )
    rates.add(Flops(), [Pass.of(POOL, TRAINED)])
    assert torch.equal(torch.get_rng_state(), state) and not heard and model.training
    assert [id(parameter) for parameter in model.parameters()] == identities
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(one, parameter) for one, parameter in zip(before, model.parameters(), strict=True))


def test_tokens_are_those_that_are_no_padding() -> None:
    assert Pass.of(POOL, FORWARD) == Pass(FORWARD, 6, 14, int((POOL["labels"][:, 1:] != -100).any(0).sum()), 67)


def test_a_model_that_cannot_be_counted_is_said_to_be_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    model = build("llama")

    def refuse(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].shape[0] < 3:
            raise RuntimeError("no batch so small")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    scorer = Scorer(model, torch.optim.AdamW(model.parameters()), verify=False)
    signals = scorer(POOL, TARGET, BOTH)
    found, passes = scorer.meter.take(False)
    assert found.total != found.total and len(passes) == 1 and bool(signals.valid.all())
    assert "budget/flops is not known" in caplog.text and "no batch so small" in caplog.text
    assert cost_lines({"flops_forward": None, "tokens_forwarded": 3, "tokens_backwarded": 2})[0].endswith("be counted")
