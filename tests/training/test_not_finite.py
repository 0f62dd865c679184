"""Numbers that are not finite stop a run at once, with a likely cause; schedules are as long as the run."""

from __future__ import annotations

import logging
import math
from typing import Any

import pandas as pd
import pytest
import torch

from tests import runs
from tests.commands import SMALL, configured, save_base
from tests.run.test_run import go
from winnow.lm.finite import NotFinite, not_finite
from winnow.run import run
from winnow.run.instantiate import BuildError
from winnow.run.schedule import planned_updates, schedule_arguments
from winnow.scorer import Scorer, TargetNotFinite
from winnow.selectors import FilterWeight, MaxLoss
from winnow.signals import Needs


def test_the_first_tensor_that_is_not_finite_is_named() -> None:
    huge = torch.full((4,), 3e38)  # finite, though its norm is not
    assert not_finite([("a", huge), ("b", torch.zeros(0)), ("c", torch.ones(2, dtype=torch.long))]) is None
    assert not_finite([("a", huge), ("b", torch.tensor([1.0, math.nan])), ("c", torch.tensor(math.inf))]) == "b"
    assert not_finite([]) is None


def test_a_loop_of_ones_own_is_told_why_the_target_has_no_gradient() -> None:
    network = runs.model()
    batch = runs.datamodule().steps[(0, 0)]
    scorer = Scorer(network, torch.optim.SGD(network.parameters(), lr=0.1))
    network.lm_head.weight.data[0, 0] = math.nan
    with pytest.raises(TargetNotFinite, match=r"target batch is nan: parameter lm_head\.weight is not finite"):
        scorer(batch["pool"], batch["target"], Needs(alignment=1))


class Blows(torch.optim.SGD):
    """Leaves one entry that is not finite at its second step."""

    calls = 0

    def step(self, closure: Any = None) -> Any:
        found = super().step(closure)
        self.calls += 1
        if self.calls == 2:
            self.param_groups[0]["params"][3].data.view(-1)[0] = math.inf
        return found


@pytest.mark.parametrize("selector", [FilterWeight(filter_size=2), MaxLoss(filter_size=2)])
def test_a_parameter_that_is_not_finite_stops_the_run_at_its_update(selector: Any) -> None:
    with pytest.raises(NotFinite, match=r"pool 1, after its update: parameter \S+ is not finite at .*optimizer\.lr"):
        runs.fit(selector, steps=9, optimizer=lambda parameters: Blows(parameters, lr=0.1))


def test_a_rate_that_is_not_finite_stops_before_its_update() -> None:
    seen: list[Any] = []

    def schedule(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: math.nan if step == 2 else 1.0)

    with pytest.raises(NotFinite, match="pool 2: the learning rate is nan"):
        runs.fit(FilterWeight(filter_size=2), steps=9, scheduler=schedule, before=seen.append)
    assert all(parameter.isfinite().all() for parameter in seen[0].model.parameters())
    with pytest.raises(NotFinite, match="the learning rate is inf"):
        runs.fit(FilterWeight(filter_size=2), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=math.inf))


def test_damaged_or_half_precision_weights_are_refused_before_the_first_pool() -> None:
    network = runs.model()
    network.lm_head.weight.data[0, 0] = math.nan
    with pytest.raises(NotFinite, match=r"lm_head\.weight is not finite before the first update"):
        runs.fit(FilterWeight(filter_size=2), network=network)
    with pytest.raises(ValueError, match=r"model\.dtype=float16.*bfloat16"):
        runs.fit(FilterWeight(filter_size=2), network=runs.model().half())


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("trainer.precision=16-true", r"trainer\.precision=16-true: float16 holds nothing above"),
        ("trainer.precision=16-mixed", r"trainer\.precision=16-mixed.*scaled gradients.*bf16-mixed"),
        ("trainer.precision=16", r"trainer\.precision=16.*scaled gradients"),
        ("model.dtype=float16", r"model\.dtype=float16"),
        ("clip_norm=nan", "clip_norm must be a number or null, got nan"),
        ("clip_norm=inf", "clip_norm must be a number > 0 and finite"),
        ("optimizer.lr=inf", "the learning rate is inf"),
        ("scheduler.num_warmup_steps=-3", r"scheduler\.num_warmup_steps must be .*>= 0, got -3"),
    ],
)
def test_what_would_not_stay_finite_is_refused_before_anything_is_measured(option: str, words: str) -> None:
    save_base()
    with pytest.raises(BuildError, match=words):
        go(option)


@pytest.mark.parametrize(
    ("bounds", "updates"),
    [
        ((10, None, None, 1), 10),
        ((10, -1, 5, 1), 10),
        ((-1, 3, 5, 1), 15),
        ((-1, 3, 5, 2), 9),
        ((4, 3, 5, 2), 4),
        ((-1, 3, None, 1), None),
        ((None, None, 5, 1), None),
        ((0, None, 5, 1), 0),
    ],
)
def test_updates_are_planned_from_every_bound(bounds: tuple[Any, ...], updates: int | None) -> None:
    assert planned_updates(*bounds) == updates


def test_a_schedule_of_unknown_length_is_refused_and_a_short_one_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    options = {"num_warmup_steps": 10, "num_training_steps": None, "last_epoch": -1}
    assert schedule_arguments(options, 40) == {"num_training_steps": 40}
    assert not caplog.records
    with pytest.raises(ValueError, match=r"trainer\.max_steps .*trainer\.max_epochs.*num_training_steps"):
        schedule_arguments(options, None)
    with pytest.raises(ValueError, match=r"scheduler\.num_training_steps must be"):
        schedule_arguments({"num_training_steps": -1}, 40)
    with caplog.at_level(logging.WARNING):
        assert schedule_arguments({**options, "num_training_steps": 20}, 40) == {}
        schedule_arguments(options, 10)
    assert "shorter than the run of 40 updates" in caplog.text and "never reached" in caplog.text


def test_a_cosine_over_epochs_comes_down_once() -> None:
    """Two passes over a finite stream, two pools to an update: five pools make three updates a pass."""
    save_base()
    lines = [runs.example(number) for number in range(47)]
    rows = pd.DataFrame({"prompt": [line.prompt for line in lines], "response": [line.response for line in lines]})
    rows.to_json("stream.jsonl", orient="records", lines=True)
    for name, start in (("val", 500), ("test", 600)):
        own = [runs.example(start + number) for number in range(4)]
        table = pd.DataFrame({"prompt": [one.prompt for one in own], "response": [one.response for one in own]})
        table.to_json(f"{name}.jsonl", orient="records", lines=True)
    plain = [line for line in SMALL if "corpus" not in line]
    options = [
        "data=jsonl", "data.corpus.stream=stream.jsonl", "data.corpus.targets.target.val=val.jsonl",
        "data.corpus.targets.target.test=test.jsonl",
        "data.corpus.on_overlap=drop", "scheduler=cosine", "scheduler.num_warmup_steps=1", "trainer.max_steps=-1",
        "trainer.max_epochs=2", "pools_per_update=2",
    ]  # fmt: skip
    with configured(*plain, *options) as cfg:
        run(cfg)
    rates = pd.read_csv("out/metrics.csv")["optimizer/lr"].dropna().tolist()
    assert len(rates) == 10
    highest = rates.index(max(rates))
    assert rates[:highest] == sorted(rates[:highest]) and rates[highest:] == sorted(rates[highest:], reverse=True)
    assert min(rates[highest:]) < 0.2 * max(rates) and rates[-1] > 0
