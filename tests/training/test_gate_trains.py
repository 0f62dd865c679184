"""Training behind a gate: which pools are scored, what is trained on in between, and that it goes on exactly."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim.lr_scheduler import StepLR

from tests import runs
from winnow.data import Corpus, Example, SelectionDataModule
from winnow.data.steps import Raw
from winnow.gates import Cadence, Draw, Embeddings, Fields, Gate, LinearGate, NGrams
from winnow.lm.passes import CAPTURED, TRAINED
from winnow.run.schedule import following
from winnow.scorer.meter import Meter
from winnow.selectors import FilterWeight, Full, GateOnly, MaxLoss, Random, TracIn
from winnow.training.budget import Budget
from winnow.training.intake import Intake
from winnow.training.limits import TICKS, Limits

DRAW = 24


class Record(Callback):
    """What every step saw and did."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(pl_module.last_step)


def gate(**options: Any) -> LinearGate:
    return LinearGate(NGrams(64), **options)


def world(made: Gate | None, corpus: Corpus | None = None, **options: Any) -> SelectionDataModule:
    raw = None if made is None else Raw(DRAW, partial(Draw.of, features=made.features))
    return runs.datamodule(corpus=corpus, raw=raw, **options)


def train(
    selector: Any, made: Gate | None, steps: int = 8, period: int | str = 4, between: str = "uniform", **options: Any
) -> tuple[Any, list[Any]]:
    record = Record()
    options.setdefault("data", world(made))
    callbacks = [record, *options.pop("callbacks", [])]
    module = runs.fit(selector, steps, intake=Intake(made, Cadence(period), between), callbacks=callbacks, **options)
    return module, record.steps


SELECTORS = [FilterWeight(filter_size=3), TracIn(filter_size=3), Random(filter_size=3), GateOnly(filter_size=3)]


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda one: type(one).__name__)
def test_every_nth_pool_is_scored_and_the_gate_s_best_are_trained_on_in_between(selector: Any) -> None:
    made = gate()
    module, steps = train(selector, made)
    assert [record.taken.scored for record in steps] == [True, False, False, False] * 2
    for record in steps:
        taken, size = record.taken, 8 if record.taken.scored else 3
        assert len(record.signals) == len(taken.passed) == size and len(taken.drawn.examples) == DRAW
        assert record.meta["id"] == [taken.drawn.examples[at].id for at in taken.passed.index.tolist()]
        assert (record.signals.alignment is not None) == taken.scored
        assert (taken.labels is not None) == taken.scored
        if not taken.scored:
            best = taken.passed.predicted.topk(3).values
            assert torch.equal(taken.passed.predicted[taken.passed.index].sort(descending=True).values, best)
            assert record.selection.index.tolist() == [0, 1, 2] and (record.selection.weight == 1).all()
    budget = module.budget
    assert (budget.steps, budget.steps_scored, budget.updates) == (8, 2, 8)
    assert (budget.examples_drawn, budget.examples_seen) == (8 * DRAW, 2 * 8 + 6 * 3)
    assert budget.examples_target == 2 * 4


def test_the_gate_alone_takes_what_it_predicts() -> None:
    _, steps = train(GateOnly(filter_size=3), gate(), period=1, steps=5)
    for record in steps[1:]:  # before the first scoring all are equal
        predicted, kept = record.signals.predicted, record.selection.index
        assert len(kept) == 3 and predicted[kept].min() >= predicted.sort(descending=True).values[2]


def test_labels_reach_the_gate_and_predictions_follow_them() -> None:
    made = gate(random_share=1.0)
    train(FilterWeight(filter_size=3), made, steps=60, period=1)
    assert made.model.weights.abs().max() > 0 and made.model.noise != 1.0
    assert -1 <= made.correlation[0] <= 1


def test_scoring_now_and_then_without_a_gate_trains_on_random_candidates_in_between() -> None:
    _, steps = train(FilterWeight(filter_size=3), None, period=3, steps=9)
    assert [len(record.signals) for record in steps] == [8, 3, 3] * 3
    _, whole = train(FilterWeight(filter_size=3), None, period=1, steps=9)
    chosen = []
    for record, pool in zip(steps, whole, strict=True):
        ids = pool.meta["id"]
        assert set(record.meta["id"]) <= set(ids), "the same pools"
        if not record.taken.scored:
            chosen.append(tuple(ids.index(name) for name in record.meta["id"]))
    assert len(set(chosen)) > 1, "not always the same places"


def test_a_step_that_is_not_scored_costs_no_more_than_random_candidates_do(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[tuple[str, int]]] = []
    take = Meter.take

    def heard(meter: Meter, stepped: bool) -> Any:
        flops, passes = take(meter, stepped)
        seen.append([(one.kind, one.rows) for one in passes])
        return flops, passes

    monkeypatch.setattr(Meter, "take", heard)

    def shapes(selector: Any, made: Gate | None, period: int) -> list[list[tuple[str, int]]]:
        seen.clear()
        train(selector, made, steps=4, period=period)
        return list(seen)

    gated = shapes(FilterWeight(filter_size=3, weight="uniform"), gate(), 2)
    plain = shapes(Random(filter_size=3), None, 1)
    assert gated[1] == gated[3] == plain[1] == [(TRAINED, 3)]
    assert gated[2] == [(CAPTURED, 12), (TRAINED, 3)]


@pytest.mark.parametrize("between", ["uniform", "predicted"])
def test_weights_in_between(between: str) -> None:
    made = gate(label="weight")
    # Numbers all count as one word, and spelled they do not; where all predictions are below zero none is weighed.
    spelled = {ord(digit): letter for digit, letter in zip("0123456789", "abcdefghij", strict=True)}
    known = [replace(one, prompt=one.prompt.translate(spelled)) for one in map(runs.example, range(96))]
    made.model.learn(made.features(known), torch.linspace(1, 3, len(known), dtype=torch.float64))
    data = world(made, replace(runs.corpus(), stream=runs.Listed(known)))
    _, steps = train(FilterWeight(filter_size=3), made, steps=12, between=between, data=data)
    found = []
    for record in steps[5:8] + steps[9:]:
        hopes = record.signals.predicted.clamp_min(0)
        assert hopes.sum() > 0
        expected = hopes / hopes.mean() if between == "predicted" else torch.ones(3)
        torch.testing.assert_close(record.selection.weight, expected.float())
        found.append(record.selection.weight)
    assert (torch.stack(found) != 1).any() == (between == "predicted")


class Save(Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.budget.steps == self.step:
            trainer.save_checkpoint(self.path)


# Lightning looks for the position in the data loader; it is in the data module (StepSampler).
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize(
    ("at", "period", "explore"),
    [(4, 4, "thompson"), (6, 4, "ucb"), (4, "adaptive", "ucb"), (6, "adaptive", "thompson")],
)
def test_it_goes_on_bit_for_bit(at: int, period: Any, explore: str, tmp_path: Path) -> None:
    def run(path: str | None = None, **options: Any) -> tuple[Any, list[Any]]:
        record, made = Record(), gate(explore=explore)
        module = runs.module(
            runs.model(seed=0 if path is None else 7), FilterWeight(filter_size=3), intake=Intake(made, Cadence(period))
        )
        callbacks = [record, *options.pop("callbacks", [])]
        trainer = runs.trainer(12, callbacks=callbacks)
        trainer.fit(module, world(made), ckpt_path=path, weights_only=True)
        return module, record.steps

    whole, steps = run(callbacks=[Save(tmp_path / "half.ckpt", at)])
    resumed, rest = run(str(tmp_path / "half.ckpt"))
    assert [one.meta["id"] for one in rest] == [one.meta["id"] for one in steps[at:]]
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    counts = [
        {k: v for k, v in module.budget.state_dict().items() if "seconds" not in k} for module in (whole, resumed)
    ]
    assert counts[0] == counts[1]
    assert repr(steps[-1].metrics.get("gate/correlation")) == repr(rest[-1].metrics.get("gate/correlation"))


@pytest.mark.parametrize("features", [NGrams(64), Fields(), Embeddings(32)], ids=lambda one: type(one).__name__)
def test_workers_change_nothing(features: Any) -> None:
    ids = []
    if isinstance(features, Embeddings):
        features.take(torch.randn(400, 8, generator=torch.Generator().manual_seed(0)), _ids)
    for workers in (0, 1):
        made = LinearGate(features)
        _, steps = train(FilterWeight(filter_size=3), made, steps=6, data=world(made, num_workers=workers))
        ids.append([record.meta["id"] for record in steps])
    assert ids[0] == ids[1]


def _ids(text: str) -> list[int]:
    return [ord(letter) % 400 for letter in text]


def test_a_finite_stream_is_used_up_a_draw_at_a_time() -> None:
    """Of 96 examples four draws of 24 make an epoch: every example is offered once, and what is left over is not."""
    made = gate()
    module, steps = train(FilterWeight(filter_size=3), made, steps=-1, max_epochs=2)
    assert module.budget.steps == 8 and module.budget.examples_drawn == 2 * 96
    offered = [example.id for record in steps[:4] for example in record.taken.drawn.examples]
    assert len(set(offered)) == 96
    again = [example.id for record in steps[4:] for example in record.taken.drawn.examples]
    assert set(again) == set(offered) and again != offered
    data = world(made, runs.corpus(90))
    assert data.steps.steps == 3, "18 are left over"
    with pytest.raises(ValueError, match=r"holds 20 examples, fewer than one draw \(data.draw_size=24\)"):
        world(made, runs.corpus(20))


def odd_corpus() -> Corpus:
    """Ids that repeat, empty and very long texts, other scripts, and one source."""
    texts = [
        ("", "a response"),
        ("数を足す", "七です"),
        ("สามบวกสี่", "เจ็ด"),
        ("x " * 3000, "y"),
        ("What is 1 plus 2?", "3"),
    ]
    listed = runs.Listed([Example(f"id{at % 7}", "one", *texts[at % 5]) for at in range(96)])
    return replace(runs.corpus(), stream=listed)


def test_odd_streams_train(caplog: pytest.LogCaptureFixture) -> None:
    made = gate()
    module, _ = train(FilterWeight(filter_size=3), made, steps=8, data=world(made, odd_corpus()))
    assert module.budget.steps == module.budget.updates == 8
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    assert module.budget.examples_truncated > 0
    assert "one source" not in caplog.text


def test_candidates_without_a_response_are_left_out_and_counted() -> None:
    listed = runs.Listed([
        Example(f"e{at}", "one", "word " * (200 if at % 2 else 1), f"answer {at}") for at in range(96)
    ])
    made = gate(random_share=1.0)
    module, steps = train(
        FilterWeight(filter_size=3), made, steps=6, data=world(made, replace(runs.corpus(), stream=listed))
    )
    assert module.budget.examples_excluded == sum(int((~record.signals.valid).sum()) for record in steps) > 0
    for record in steps:
        assert record.signals.valid[record.selection.index].all()
        if record.taken.labels is not None:
            assert torch.equal(record.taken.labels.isfinite(), record.signals.valid)


def test_a_gate_refuses_what_it_cannot_stand_in_front_of() -> None:
    with pytest.raises(ValueError, match=r"Full has no filter_size; set scoring\.period=1"):
        train(Full(), gate())
    with pytest.raises(ValueError, match=r"there is no gate: set gate=ngrams"):
        train(GateOnly(), None, period=1)
    with pytest.raises(ValueError, match=r"scoring\.period=adaptive goes by a gate's predictions"):
        train(Random(), None, period="adaptive")
    with pytest.raises(ValueError, match=r"scoring\.between=predicted weighs by a gate's predictions"):
        train(Random(), None, between="predicted")
    with pytest.raises(ValueError, match=r"scoring\.between must be one of"):
        Intake(gate(), Cadence(), "none")
    for size in (20, 4):
        with pytest.raises(ValueError, match=rf"data.draw_size={size} must be a multiple of data.pool_size=8"):
            runs.datamodule(raw=Raw(size, partial(Draw.of, features=NGrams(64))))
    with pytest.raises(ValueError, match=r"data\.packing joins them into rows"):
        runs.datamodule(raw=Raw(8, partial(Draw.of, features=NGrams(64))), packing=True)


def test_a_method_by_loss_can_teach_a_gate_by_its_weights() -> None:
    made = gate(label="weight")
    module, steps = train(MaxLoss(filter_size=3), made, steps=8)
    assert all(record.signals.alignment is None for record in steps)
    assert made.model.weights.abs().max() > 0
    assert module.budget.flops_products == 0 < module.budget.flops_backward < module.budget.flops_forward


# Budgets


def test_a_run_ends_where_its_budget_does() -> None:
    whole = runs.fit(Random(filter_size=2), steps=9)
    each = whole.budget.flops / 9
    bounds = {"flops": 4.5 * each, "examples": 9, "tokens": whole.budget.tokens_trained // 2}
    for name, bound in bounds.items():
        module = runs.fit(Random(filter_size=2), steps=-1, max_epochs=-1, limits=Limits(**{name: bound}))
        spent = {"flops": "flops", "examples": "examples_trained", "tokens": "tokens_trained"}[name]
        assert getattr(module.budget, spent) >= bound
        assert module.budget.updates in (4, 5, 6)
    module = runs.fit(Random(filter_size=2), steps=-1, max_epochs=-1, limits=Limits(minutes=1e-5))
    assert module.budget.updates == 1
    module = runs.fit(Random(filter_size=2), steps=3, limits=Limits(examples=1000, updates=3))
    assert module.budget.updates == 3, "whichever comes first"


def test_a_schedule_follows_the_budget(tmp_path: Path) -> None:
    from transformers import get_cosine_schedule_with_warmup

    schedule = following(partial(get_cosine_schedule_with_warmup, num_warmup_steps=3, num_training_steps=TICKS))
    record = Record()
    module = runs.fit(
        Random(filter_size=2), steps=-1, max_epochs=-1, scheduler=schedule, callbacks=[record],
        limits=Limits(examples=40, follows=True, warmup=3),
    )  # fmt: skip
    rates = [one.metrics["optimizer/lr"] for one in record.steps]
    assert len(rates) == 20
    expected = [at / 3 for at in range(3)] + [(1 + math.cos(math.pi * 2 * at / 40)) / 2 for at in range(3, 20)]
    assert rates == pytest.approx([1e-2 * share for share in expected], abs=1e-6)
    assert module._optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_a_schedule_that_cannot_follow_is_refused() -> None:
    with pytest.raises(ValueError, match=r"StepLR cannot follow a budget"):
        following(lambda optimizer: StepLR(optimizer, 3))(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]))


@pytest.mark.parametrize("bad", [{"flops": 0.0}, {"examples": -1}, {"tokens": 0}, {"minutes": float("inf")}])
def test_a_bound_that_is_none_is_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=rf"budget.{next(iter(bad))} must be a finite number > 0"):
        Limits(**bad)


def test_the_nearest_bound_counts() -> None:
    budget = Budget(examples_trained=10, tokens_trained=50, updates=3)
    assert Limits().share(budget) == 0
    assert Limits(examples=20, tokens=60, updates=4).share(budget) == pytest.approx(50 / 60)
    budget.flops_forward = float("nan")
    with pytest.raises(RuntimeError, match=r"cannot be counted"):
        Limits(flops=1e9).share(budget)
    assert not Limits(updates=3).any and Limits(minutes=1.0).any


def test_what_is_checked_behind_a_gate_is_not_the_gate_s(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("winnow.training.budget.perf_counter", lambda: clock[0])
    monkeypatch.setattr("winnow.training.module.check_losses", lambda *_: clock.append(clock.pop() + 1.0))
    module, _ = train(FilterWeight(filter_size=3), gate(), steps=4)
    assert module.budget.seconds_gate == 0 and module.budget.seconds_updating == module.budget.seconds == 4


def test_what_was_spent_is_counted_for_every_phase() -> None:
    made = gate()
    module, steps = train(FilterWeight(filter_size=3), made, steps=8)
    budget = module.budget
    parts = [budget.flops_forward, budget.flops_backward, budget.flops_weights, budget.flops_attention]
    assert min(*parts, budget.flops_products) > 0 == budget.flops_optimizer
    assert budget.flops == sum(parts) + budget.flops_products == steps[-1].metrics["budget/flops"]
    assert budget.tokens_forwarded == budget.tokens_backwarded > budget.tokens_trained
    phases = (budget.seconds_gate, budget.seconds_scoring, budget.seconds_updating)
    assert min(*phases, budget.seconds_features, budget.seconds_loading) > 0
    assert budget.seconds == pytest.approx(budget.seconds_gate + budget.seconds_selecting + budget.seconds_updating)
    assert budget.seconds_scoring <= budget.seconds_selecting
    restored = Budget()
    restored.load_state_dict(json.loads(json.dumps(budget.state_dict())))
    assert restored == budget
    watched = runs.fit(Random(filter_size=2), steps=4, limit_val_batches=1.0, val_check_interval=2)
    assert watched.budget.flops_evaluation > 0
    assert watched.budget.flops == runs.fit(Random(filter_size=2), steps=4).budget.flops


def test_pools_left_over_where_a_budget_ends_make_an_update() -> None:
    module = runs.fit(Random(filter_size=2), steps=-1, max_epochs=-1, pools_per_update=3, limits=Limits(examples=10))
    assert module.budget.steps == 5 and module.budget.examples_trained == 10
    assert module.budget.updates == 2 == module.trainer.global_step and module.accumulated.seen == 0
