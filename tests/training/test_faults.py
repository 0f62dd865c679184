"""Degenerate numbers: a selector never ends a run, and a run never goes on without training and without a word."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests import runs
from tests.cases import CASES, Case, Pool
from tests.choosing import generator
from winnow.callbacks import LastCheckpoint
from winnow.data import Corpus
from winnow.lm.finite import NotFinite
from winnow.selection import Selection
from winnow.selectors import FilterWeight, Random
from winnow.signals import Signals
from winnow.training.health import check_idle
from winnow.training.idle import Idle

LONG = pytest.mark.long


def zero_target(pool: Pool) -> None:
    pool.target.zero_()
    pool.tasks.zero_()
    pool.momentum.zero_()


def identical(pool: Pool) -> None:
    for held in (pool.gradients, pool.losses, pool.hidden, pool.nuclear, pool.reference, pool.predicted):
        held[:] = held[0].clone()


POOLS: dict[str, Callable[[Pool], None]] = {
    "target gradient of zero": zero_target,
    "identical candidates": identical,
    "no gradient": lambda pool: pool.gradients.zero_(),
    "gradients that nearly overflow": lambda pool: pool.gradients.mul_(1e15),
    "gradients that nearly vanish": lambda pool: pool.gradients.mul_(1e-18),
    "one candidate without a gradient": lambda pool: pool.gradients[3].zero_(),
}


def indefinite(signals: Signals) -> Signals:
    """K with eigenvalues and a diagonal entry below zero, as rounding leaves them."""
    if signals.gram is None:
        return signals
    noise = torch.randn(signals.gram.shape, generator=generator(1), dtype=torch.float64).to(signals.gram.dtype)
    gram = signals.gram.to(torch.bfloat16).to(signals.gram.dtype) + 0.02 * signals.gram.abs().max() * (noise + noise.T)
    gram[2, 2] = -1e-4 * gram.diagonal().abs().max()
    assert torch.linalg.eigvalsh(gram)[0] < 0
    return replace(signals, gram=gram)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.contract], ids=lambda case: f"{case.name}-{'+'.join(case.variants[0])}"
)
def test_no_selector_ends_a_run_over_degenerate_signals(case: Case) -> None:
    for selector in case.every():
        for name, spoil in (*POOLS.items(), ("K that is indefinite", lambda pool: None)):
            pool = Pool.draw(8)
            spoil(pool)
            signals = pool.signals(selector.needs, torch.float32)
            signals = indefinite(signals) if name == "K that is indefinite" else signals
            selection = selector(signals, generator())
            index, weight = selection.index.tolist(), selection.weight
            assert len(set(index)) == len(index) <= 8 and set(index) <= set(range(8)), name
            assert bool(weight.isfinite().all()) and bool((weight >= 0).all()), name


def made(aligned: float, kept: int, **said: float) -> tuple[Signals, Selection]:
    signals = Signals(
        valid=torch.ones(4, dtype=torch.bool), tokens=torch.full((4,), 3), alignment=torch.full((4,), aligned)
    )
    return signals, Selection(torch.arange(kept), torch.ones(kept), said)


@pytest.mark.parametrize(
    ("pool", "chosen", "words"),
    [
        (made(0.0, 0), 0, "every inner product with the target was zero"),
        (made(-1.0, 0), 0, r"the selector kept nothing, as no candidate helps the target \(selector\.on_empty\)"),
        (made(1.0, 2, update_zero=1.0), 2, "the gradient of the update was zero"),
        (made(1.0, 0, update_not_finite=1.0), 2, "the gradient of the update was not finite"),
        (made(1.0, 0, target_not_finite=1.0), 0, "the target's loss or gradient was not finite"),
        (made(1.0, 0), 2, "no loss or gradient of the candidates was finite"),
    ],
)
def test_what_nothing_is_trained_on_for_is_named(pool: tuple[Signals, Selection], chosen: int, words: str) -> None:
    idle = Idle(2)
    odd = [idle.count(*pool, chosen) for _ in range(2)]
    assert odd == [words.endswith("zero")] * 2, "what may be the optimizer's doing is looked into"
    with pytest.raises(RuntimeError, match=rf"2 pools in a row .*2 times {words}"):
        idle.check()
    idle.count(*made(1.0, 2), 2)
    idle.check()


def test_a_target_that_is_finite_in_no_pool_since_an_update_tells_of_the_rate() -> None:
    idle = Idle(2)
    idle.count(*made(1.0, 0, target_not_finite=1.0), 0)
    idle.count(*made(1.0, 0, target_not_finite=1.0), 0)
    with pytest.raises(
        NotFinite, match=r"2 pools in a row .*since update 3 at a learning rate of 1e\+30: .*optimizer\.lr"
    ):
        check_idle(idle, updates=3, rate=1e30)
    with pytest.raises(RuntimeError, match=r"2 times the target's loss or gradient was not finite \(look at"):
        check_idle(idle, updates=0, rate=1e30)
    idle.count(*made(1.0, 0, update_not_finite=1.0), 2)
    with pytest.raises(RuntimeError, match=r"2 times the target's .*; 1 times the gradient of the update"):
        check_idle(idle, updates=3, rate=1e30)


def dead() -> Any:
    """A model whose losses depend on none of its parameters to first order."""
    network = runs.model()
    network.model.norm.weight.data.zero_()
    network.lm_head.weight.data.zero_()
    return network


@pytest.mark.parametrize("selector", [Random(filter_size=3), pytest.param(FilterWeight(filter_size=3), marks=LONG)])
def test_updates_that_change_nothing_end_the_run(selector: Any) -> None:
    with pytest.raises(RuntimeError, match=r"3 pools in a row .*3 times the gradient of the update was zero"):
        runs.fit(selector, steps=6, network=dead(), max_idle_steps=3)


def test_a_target_without_gradient_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError, match="2 times every inner product with the target was zero"):
        runs.fit(FilterWeight(filter_size=3, on_empty="skip"), steps=4, network=dead(), max_idle_steps=2)
    assert caplog.text.count("have nothing to choose by (said once)") == 1


@pytest.mark.long
def test_a_pool_of_copies_is_trained_on() -> None:
    copies = Corpus(runs.Listed([runs.example(1)] * 64), runs.corpus().targets)
    module = runs.fit(FilterWeight(filter_size=3), steps=2, data=runs.datamodule(corpus=copies))
    assert module.budget.updates == 2 and module.idle.pools == 0


class Poison(Callback):
    """Puts a number into the optimizer's state after the second pool."""

    def __init__(self, key: str, value: float, whole: bool) -> None:
        self.key, self.value, self.whole = key, value, whole

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *unused: Any) -> None:
        if pl_module.budget.steps == 2:
            for state in trainer.optimizers[0].state.values():
                held = state[self.key].view(-1)
                held[: len(held) if self.whole else 1] = self.value


@pytest.mark.parametrize(
    ("key", "value", "whole", "words"),
    [
        ("exp_avg_sq", math.inf, True, r"pool 2: the optimizer's state is not finite \(exp_avg_sq of model\.embed"),
        pytest.param("exp_avg_sq", math.nan, False, r"pool 2: the optimizer's state is .*\(exp_avg_sq of ", marks=LONG),
        pytest.param("exp_avg", math.inf, False, r"pool 2, after its update: parameter \S+ is not finite", marks=LONG),
    ],
)
def test_an_optimizer_whose_state_is_not_finite_ends_the_run(key: str, value: float, whole: bool, words: str) -> None:
    """An infinite second moment moves nothing any more: without this the run would go on and train nothing."""
    with pytest.raises(NotFinite, match=words):
        runs.fit(FilterWeight(filter_size=3), steps=5, callbacks=[Poison(key, value, whole)])


def test_a_state_in_which_one_entry_is_infinite_is_never_saved() -> None:
    """It shows in no score; the last checkpoint is from before."""
    callbacks = [Poison("exp_avg_sq", math.inf, False), LastCheckpoint(".", every=1)]
    run = runs.trainer(5, callbacks=callbacks, enable_checkpointing=True)
    with pytest.raises(NotFinite, match="exp_avg_sq of"):
        run.fit(runs.module(runs.model(), FilterWeight(filter_size=3)), runs.datamodule())
    kept = torch.load(Path("last.ckpt"), weights_only=True)
    assert kept["winnow"]["budget"]["steps"] == 1
