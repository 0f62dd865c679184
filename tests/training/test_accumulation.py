"""Several pools make one update: each scored by itself, their gradients averaged, a stop in between exact."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests import runs
from winnow.lm.losses import example_losses
from winnow.scorer import Scorer
from winnow.selection import Selection
from winnow.selectors import FilterWeight, Random


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


class Chosen(Callback):
    """What every pool's selection was."""

    def __init__(self) -> None:
        self.selections: list[Selection] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.selections.append(pl_module.last_step.selection)


@pytest.mark.parametrize("update", ["one_pass", "two_pass"])
def test_an_update_is_the_mean_over_the_pools(update: str) -> None:
    network, seen = runs.model(), Chosen()
    reference = copy.deepcopy(network)
    module = runs.fit(
        FilterWeight(filter_size=3),
        steps=1,
        network=network,
        pools_per_update=3,
        clip_norm=0.05,  # of the mean, not of a pool's
        callbacks=[seen],
        scorer=lambda model, optimizer: Scorer(model, optimizer, update=update),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for step, got in enumerate(seen.selections):
        batch = runs.datamodule().steps[(0, step)]
        selector, scorer = FilterWeight(filter_size=3), Scorer(reference, optimizer)
        again = selector(scorer(batch["pool"], batch["target"], selector.needs, batch["target"]["weight"]))
        assert torch.equal(again.index, got.index)
        losses = example_losses(reference, batch["pool"])[again.index]
        ((losses * again.weight).sum() / len(again) / 3).backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
    optimizer.step()
    torch.testing.assert_close(weights(module.model), weights(reference), rtol=1e-5, atol=1e-7)
    assert len(seen.selections) == 3 and module.budget.steps == 3 and module.budget.updates == 1
    assert module.budget.examples_trained == 9 and module.trainer.global_step == 1


def test_updates_are_what_lightning_and_the_schedule_count() -> None:
    module = runs.fit(
        Random(filter_size=2),
        steps=3,
        pools_per_update=2,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
    )
    assert (module.trainer.global_step, module.budget.steps, module.budget.updates) == (3, 6, 3)
    assert module._optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / 8)


def test_what_is_left_at_the_end_of_an_epoch_is_an_update() -> None:
    module = runs.fit(Random(filter_size=2), steps=-1, max_epochs=2, pools_per_update=5)
    assert module.budget.steps == 24  # 12 pools an epoch: 5, 5 and 2
    assert module.trainer.global_step == module.budget.updates == 6


def test_a_pool_without_a_finite_gradient_does_not_spoil_the_others() -> None:
    network, calls = runs.model(), []

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(len(calls) + 1)
        return gradient * torch.inf if len(calls) == 2 else gradient

    network.lm_head.weight.register_hook(poison)
    module = runs.fit(Random(filter_size=2), steps=1, network=network, pools_per_update=3)
    assert calls == [1, 2, 3]
    assert weights(module.model).isfinite().all()
    assert module.budget.updates == 1 and module.budget.examples_trained == 4


class Stop(Callback):
    """Saves after the fifth pool, in the middle of an update."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.budget.steps == 5:
            trainer.save_checkpoint(self.path)


# Not so: the datamodule is told where it was.
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_stop_between_pools_of_one_update_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "middle.ckpt"
    selector = FilterWeight(filter_size=3)
    whole = runs.fit(selector, steps=4, pools_per_update=3, dropout=0.2, callbacks=[Stop(path)])
    network = runs.model(dropout=0.2, seed=9)
    resumed = runs.module(network, FilterWeight(filter_size=3), pools_per_update=3)
    runs.trainer(4).fit(resumed, runs.datamodule(), ckpt_path=str(path), weights_only=True)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert resumed.budget.examples_trained == whole.budget.examples_trained and resumed.budget.updates == 4


def test_no_pools_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pools_per_update must be a whole number, at least 1, got 0"):
        runs.module(runs.model(), Random(filter_size=2), pools_per_update=0)
