"""A step: the pool is scored in the hook, the choice is applied once, and Lightning counts it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import Logger
from torch import nn

from tests import runs
from winnow.gates import Cadence
from winnow.lm.losses import example_losses
from winnow.selection import Selection
from winnow.selectors import FilterWeight, Full, MaxLoss, Random
from winnow.signals import Needs
from winnow.training.intake import Intake


class Kept(Logger):
    """Keeps what it is given."""

    name = version = "kept"

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        """None are kept."""


@dataclass
class Nothing:
    """Keeps nothing, ever."""

    needs: Needs = field(default_factory=Needs)

    def __call__(self, signals, generator=None):
        return Selection(torch.zeros(0, dtype=torch.long), torch.zeros(0))


@dataclass
class Fixed:
    """Keeps given positions with given weights, scoring with everything."""

    index: list[int]
    weight: list[float]
    needs: Needs = field(default_factory=lambda: Needs(losses=True, alignment=1, gram=1))

    def __call__(self, signals, generator=None):
        return Selection(torch.tensor(self.index), torch.tensor(self.weight))


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.model.parameters()])


def plain_training(network, steps, dropout_seed=None):
    """Plain PyTorch: the pools in order, mean loss, AdamW."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    data = runs.datamodule().steps
    network.train()
    for step in range(steps):
        loss = example_losses(network, data[(0, step)]["pool"]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_keeping_everything_with_uniform_weights_is_bitwise_plain_training():
    expected = plain_training(runs.model(), 4)
    for selector in (Full(), FilterWeight(filter_size=8, filter="top", weight="uniform"), MaxLoss(filter_size=8)):
        assert torch.equal(weights(runs.fit(selector)), expected), type(selector).__name__


def test_scoring_leaves_dropout_and_order_alone():
    every = FilterWeight(filter_size=8, filter="top", weight="uniform")
    assert torch.equal(weights(runs.fit(every, dropout=0.3)), weights(runs.fit(Full(), dropout=0.3)))


def test_update_is_the_weighted_mean_gradient():
    index, weight = [1, 4, 6], [0.5, 2.0, 0.5]
    network = runs.model()
    reference = copy.deepcopy(network)
    module = runs.fit(Fixed(index, weight), steps=1, network=network, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    losses = example_losses(reference, runs.datamodule().steps[(0, 0)]["pool"])[torch.tensor(index)]
    grads = torch.autograd.grad((losses * torch.tensor(weight)).sum() / 3, list(reference.parameters()))
    expected = torch.cat([(p - 0.1 * g).flatten() for p, g in zip(reference.parameters(), grads, strict=True)])
    torch.testing.assert_close(weights(module), expected.detach(), rtol=1e-5, atol=1e-7)


def test_a_row_s_own_weight_multiplies_its_loss_and_no_loss_that_is_reported():
    weight = {f"sums-{number}": (0.25, 1.0, 3.0)[number % 3] for number in range(96)}
    plain = runs.corpus()
    rows = [replace(one, weight=weight[one.id]) for one in plain.stream.examples]
    world = replace(plain, stream=runs.Listed(rows))
    batch = runs.datamodule(corpus=world).steps[(0, 0)]
    factor = torch.tensor([weight[name] for name in batch["meta"]["id"]])
    assert len(factor.unique()) == 3 and "row_weight" not in runs.datamodule().steps[(0, 0)]["pool"]
    network = runs.model()
    losses = example_losses(network, batch["pool"])
    grads = torch.autograd.grad((losses * factor).mean(), list(network.parameters()))
    expected = torch.cat([(p - 0.1 * g).flatten() for p, g in zip(network.parameters(), grads, strict=True)]).detach()
    losses = losses.detach()
    every = FilterWeight(filter_size=8, filter="top", weight="uniform")
    for selector, options in ((Full(), {}), (every, {}), (every, {"intake": Intake(cadence=Cadence(2))})):
        before = None if not options else lambda module: module.intake.cadence.count(lambda: (0.0, 0.0))
        data = runs.datamodule(corpus=world)
        module = runs.fit(selector, 1, before, data=data, optimizer=lambda p: torch.optim.SGD(p, 0.1), **options)
        torch.testing.assert_close(weights(module), expected, rtol=1e-5, atol=1e-7)
        assert module.last_step.metrics.get("select/scored", 1) == (not options)
        assert module.last_step.metrics["train/loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
        assert module.last_step.signals.losses is None or torch.allclose(module.last_step.signals.losses, losses)


def test_lightning_counts_updates_not_hooks():
    module = runs.fit(Random(filter_size=2), steps=5)
    assert module.trainer.global_step == 5
    assert module.budget.steps == 5


def test_metrics_reach_loggers_and_callbacks_as_lightning_s_own_do():
    kept = Kept()
    stop = EarlyStopping("train/loss", check_on_train_epoch_end=True)
    module = runs.module(runs.model(), Random(filter_size=2))
    runs.trainer(6, logger=kept, callbacks=[stop], log_every_n_steps=3).fit(module, runs.datamodule())
    assert [step for step, _ in kept.rows] == [2, 5]
    last = module.last_step.metrics
    assert {name: value for name, value in kept.rows[-1][1].items() if name != "epoch"} == last
    assert float(module.trainer.callback_metrics["train/loss"]) == pytest.approx(last["train/loss"])
    assert float(module.trainer.logged_metrics["select/kept"]) == 2
    quiet = runs.fit(Random(filter_size=2), steps=2)
    assert float(quiet.trainer.callback_metrics["train/loss"]) > 0, "callbacks are told without a logger, too"


def test_epochs_end_with_their_validation():
    module = runs.fit(Random(filter_size=2), steps=-1, max_epochs=2, limit_val_batches=1.0, check_val_every_n_epoch=1)
    assert module.trainer.current_epoch == 2
    assert module.trainer.global_step == 24  # 96 examples, pools of 8, twice
    assert float(module.trainer.callback_metrics["target/val_nll"]) > 0


def test_order_differs_between_epochs_and_covers_the_stream():
    data = runs.datamodule().steps
    epochs = [[name for step in range(12) for name in data[(epoch, step)]["meta"]["id"]] for epoch in (0, 1)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) and len(set(epochs[0])) == 96


def test_hook_leaves_the_batch_whole():
    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert len(batch["pool"]["labels"]) == 8
            assert len(batch["meta"]["id"]) == 8

    runs.fit(FilterWeight(filter_size=2), steps=2, callbacks=[Watch()])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_scoring_runs_in_the_precision_of_training(precision):
    seen = []
    network = runs.model()
    network.lm_head.register_forward_hook(lambda m, args, output: seen.append((m.training, output.dtype)))
    runs.fit(FilterWeight(filter_size=2), steps=2, network=network, precision=precision)
    assert {dtype for _, dtype in seen} == {torch.bfloat16}


def test_fp16_with_scaled_gradients_is_refused():
    module = runs.module(runs.model(), Full())
    trainer = runs.trainer()
    trainer.strategy.precision_plugin.precision = "16-mixed"
    with pytest.raises(ValueError, match="16-mixed"):
        trainer.fit(module, runs.datamodule())


def test_selector_that_never_keeps_anything_is_stopped():
    with pytest.raises(RuntimeError, match=r"3 pools in a row .*3 times the selector kept nothing.*on_empty"):
        runs.fit(Nothing(), steps=5, max_idle_steps=3)


def test_schedule_and_clipping_are_applied():
    rates = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rates.append(pl_module.last_step.metrics["optimizer/lr"])

    before = runs.model()
    module = runs.fit(
        Random(filter_size=2),
        steps=3,
        network=copy.deepcopy(before),
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
        clip_norm=1e-3,
        callbacks=[Watch()],
    )
    assert rates == [1.0, 0.5, 0.25]
    start = torch.cat([parameter.detach().flatten() for parameter in before.parameters()])
    assert float((weights(module) - start).norm()) <= 1e-3 * 1.75 + 1e-6


def poisoned(token):
    """The small model, which gives no finite state for one token; its parameters are finite."""
    network = runs.model()

    def spoil(module, arguments, output):
        return output.masked_fill((arguments[0] == token)[..., None], torch.nan)

    network.model.embed_tokens.register_forward_hook(spoil)
    return network


def test_loss_of_a_candidate_that_is_not_finite_is_left_out_and_counted():
    data = runs.datamodule()
    unused = len(runs.tokenizer())
    network = poisoned(unused)

    class Poisoned(type(data.steps)):
        def __getitem__(self, key):
            batch = super().__getitem__(key)
            batch["pool"]["input_ids"][2, 0] = unused
            return batch

    data.steps.__class__ = Poisoned
    for selector in (FilterWeight(filter_size=7), Random(filter_size=8)):
        module = runs.fit(selector, steps=3, network=copy.deepcopy(network), data=data)
        kept = module.last_step.selection.index.tolist()
        assert 2 not in kept
        assert weights(module).isfinite().all()
        assert module.budget.state_dict()["examples_excluded"] == 3


def test_target_that_is_not_finite_skips_the_update_or_reuses(caplog):
    unused = len(runs.tokenizer())
    network = poisoned(unused)

    class Poisoned(type(runs.datamodule().steps)):
        def __getitem__(self, key):
            batch = super().__getitem__(key)
            if key[1] == 1:
                batch["target"]["input_ids"][0, 0] = unused
            return batch

    for policy, updates in (("skip", 4), ("reuse", 3)):
        data = runs.datamodule()
        data.steps.__class__ = Poisoned
        module = runs.fit(
            FilterWeight(filter_size=2),
            steps=3,
            network=copy.deepcopy(network),
            data=data,
            on_target_nan=policy,
            layers="linear",
        )
        assert module.budget.steps == updates  # a skipped pool is one more pool for the same three updates
        assert ("no update" if policy == "skip" else "reusing") in caplog.text
        caplog.clear()


def test_adapter_checkpoints_leave_the_frozen_base_out(tmp_path):
    from peft import LoraConfig, get_peft_model

    network = get_peft_model(runs.model(), LoraConfig(r=2, lora_alpha=8, target_modules="all-linear"))
    module = runs.fit(FilterWeight(filter_size=2), steps=2, network=network)
    names = module.state_dict()
    assert names and all("lora_" in name for name in names)
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in network.named_parameters())


def test_several_targets_share_the_target_batch_by_weight():
    data = runs.datamodule(corpus=runs.corpus(targets=2), target_batch_size=5)
    batch = data.steps[(0, 0)]["target"]
    assert torch.bincount(batch["task"]).tolist() in ([3, 2], [2, 3])
    for task in (0, 1):
        assert float(batch["weight"][batch["task"] == task].sum()) == pytest.approx(0.5)
    module = runs.fit(FilterWeight(filter_size=2), steps=2, data=data, limit_val_batches=1.0, val_check_interval=1)
    assert {"target/val_nll", "target/task0/val_nll", "target/task1/val_nll"} <= set(module.trainer.callback_metrics)


def test_module_knows_no_method_by_name():
    import ast
    import inspect

    import winnow.selectors as selectors
    import winnow.training.module

    nodes = list(ast.walk(ast.parse(inspect.getsource(winnow.training.module))))
    words = {node.id for node in nodes if isinstance(node, ast.Name)}
    words |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    classes = {name for name in selectors.__all__ if name != "Selector"}
    assert not words & classes


def test_frozen_parameters_stay_frozen():
    network = runs.model()
    network.model.embed_tokens.weight.requires_grad_(False)
    before = network.model.embed_tokens.weight.clone()
    module = runs.fit(FilterWeight(filter_size=2), steps=2, network=network)
    assert isinstance(module.model, nn.Module)
    assert torch.equal(network.model.embed_tokens.weight, before)
    assert not network.model.embed_tokens.weight.requires_grad
