"""The LightningModule: score the pool, let the selector choose, make one weighted update. It names no method."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from winnow.lm.finite import check_rates
from winnow.lm.layout import Batch
from winnow.models.quantized import of_the_base
from winnow.optim import wants_names
from winnow.scorer import Scorer
from winnow.selection import Selection
from winnow.selectors import Selector
from winnow.selectors.abilities import Sized
from winnow.signals import Signals
from winnow.training.accumulate import Accumulated
from winnow.training.budget import Budget
from winnow.training.chance import DROPOUT, forked_rng, step_seed
from winnow.training.choosing import Chooser, with_losses
from winnow.training.gradient import check_clip_norm, clip, clipped
from winnow.training.health import check_idle, check_losses, check_parameters, check_start
from winnow.training.idle import Idle
from winnow.training.intake import Intake, Taken, filled
from winnow.training.limits import Limits
from winnow.training.record import StepRecord, log_metrics, step_counts, step_metrics, update_loss
from winnow.training.state import Memory
from winnow.training.stopping import Stop
from winnow.training.together import Together
from winnow.training.validation import TargetNLL

log = logging.getLogger(__name__)


class SelectionModule(lightning.LightningModule):
    """Fine-tunes a causal language model on what a selector keeps of every pool.

    ``on_train_batch_start`` scores the pool and selects; ``training_step`` makes one update with the
    gradient (1/k) sum_i w_i g_i. Optimization is manual.

    Args:
        model: a Hugging Face causal language model, possibly with a LoRA adapter.
        selector: chooses from :class:`winnow.signals.Signals`.
        scorer: builds the :class:`winnow.scorer.Scorer` from model and optimizer.
        optimizer: builds the optimizer from the trainable parameters; from pairs of name and parameter
            if its first argument is called ``named_parameters``.
        scheduler: builds a learning-rate schedule from the optimizer; stepped once per update.
        clip_norm: bound on the gradient norm; None for no clipping.
        max_idle_steps: pools in a row that may lead to no update before the run is given up.
        pools_per_update: pools, each scored and chosen from by itself with the same parameters, whose gradients
            are averaged into one update. Those left at the end of an epoch make a smaller one.
        seed: of dropout, of selectors that draw at random and of the gate, together with the step.
        record_tasks: score against every target task by itself too, for the records; where gradients are compared.
        intake: stage 0: what a step takes up, and which pools are scored; every pool as it comes by default.
        limits: what may be spent before the run ends; without bounds by default.

    Raises:
        ValueError: a bound is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        selector: Selector,
        scorer: Callable[[nn.Module, torch.optim.Optimizer], Scorer],
        optimizer: Callable[[list[Any]], torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        clip_norm: float | None = None,
        max_idle_steps: int = 100,
        pools_per_update: int = 1,
        seed: int = 0,
        record_tasks: bool = False,
        intake: Intake | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__()
        check_clip_norm(clip_norm)
        self.automatic_optimization = False
        self.strict_loading = False  # a LoRA checkpoint does not hold the frozen base
        self.model, self.selector = model, selector
        self._build = (scorer, optimizer, scheduler)
        self.clip_norm, self.seed = clip_norm, seed
        self.budget = Budget()
        self.accumulated = Accumulated(pools_per_update)
        self.idle = Idle(max_idle_steps)
        self.intake, self.limits = intake or Intake(), limits or Limits()
        self.intake.check(selector)
        self._choose = Chooser(selector, self.intake, seed, record_tasks)
        self._memory = Memory(selector, self.budget, self.idle, self.accumulated, self.intake)
        self.together = Together()
        self.stop = Stop()
        """A stop that was asked for, which is obeyed between two pools."""
        self.stage = ""
        """``scoring`` or ``updating`` within a pool; empty between two."""
        self.last_step: StepRecord | None = None
        self._scorer: Scorer | None = None
        self._scorer_state: dict[str, Any] | None = None
        self._scored: tuple[Taken, Signals, Selection] | None = None
        self._val = TargetNLL()

    @property
    def scorer(self) -> Scorer:
        """What scores the pools; RuntimeError before the optimizer is there."""
        if self._scorer is None:
            raise RuntimeError("there is no scorer before the optimizer: fit, or prepare")
        return self._scorer

    def prepare(self, trainer: lightning.Trainer) -> torch.optim.Optimizer:
        """Refuse and build what a fit would, outside one; gives an optimizer of its own."""
        self.trainer = trainer
        self.on_fit_start()
        built = self.configure_optimizers()
        optimizer: torch.optim.Optimizer = built if isinstance(built, torch.optim.Optimizer) else built[0][0]
        return optimizer

    def configure_optimizers(self) -> Any:
        """Build optimizer and schedule over the parameters that require gradients."""
        scorer, optimizer, scheduler = self._build
        built = optimizer(list(self._trained.items() if wants_names(optimizer) else self._trained.values()))
        self._scorer = scorer(self.model, built)
        self._scorer.check(self.intake.needs(self.selector.needs))
        self.intake.cheaper.check(self._scorer.update)
        self._scorer.meter.adds = True
        check_rates(built.param_groups)
        if self._scorer_state is not None:
            self._scorer.load_state_dict(self._scorer_state)
        return built if scheduler is None else ([built], [scheduler(built)])

    def on_train_start(self) -> None:
        """Train nothing where a run that goes on has spent its budget."""
        self.trainer.should_stop |= self._spent

    def on_fit_start(self) -> None:
        """Refuse what would be silently wrong: see :func:`winnow.training.health.check_start`."""
        check_start(self.model, self.trainer.precision, self.together.strangers(self.trainer.world_size))

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Score the pool and select from it, unless a stop was asked for; the choice is kept for ``training_step``."""
        self.stop.obey()
        self.stage = "scoring"
        self.budget.start()
        self.together.begin()
        taken = self._take_up(batch)
        with self.trainer.precision_plugin.train_step_context():  # Lightning calls this hook outside autocast
            signals = self._choose.score(self.scorer, taken, batch.get("target"), self._check_parameters)
            self.budget.lap("scoring", "selecting")
            self._scored = taken, *self._choose(self.scorer, taken, signals, self.budget.steps)
        self.budget.lap("selecting")

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """One update on the kept candidates, then the step's record.

        Raises:
            NotFinite: the learning rate, every loss of the pool or a parameter is not finite.
            RuntimeError: ``max_idle_steps`` pools in a row led to no update.
        """
        assert self._scored is not None
        self.stage = "updating"
        (taken, signals, selection), self._scored = self._scored, None
        pool, step, rate = taken.pool, self.budget.steps, self._rate
        losses = torch.full((len(signals),), torch.nan, dtype=torch.float32)
        if signals.losses is not None:
            losses = signals.losses.detach().float().cpu()
        check_rates(self._optimizer.param_groups, step)
        check_losses(self.model, signals, step, rate)
        self.budget.lap("updating")  # what Lightning and the checks took is no gate's
        gate = self.intake.learn(taken, signals, selection)
        self.budget.lap("updating" if self.intake.plain else "gate")
        chosen = len(selection)
        loss, selection, updated = self._train(pool, selection, losses)
        if chosen and not len(selection) and signals.losses is None:
            check_losses(self.model, with_losses(self.scorer, signals, pool), step, rate)
        if self.idle.count(signals, selection, chosen):
            self._check_parameters()
        for scorer in self.intake.cheaper.scorers(self.scorer):
            self.together.spend(self.budget, scorer.meter, updated and scorer is self.scorer)
        counts = step_counts(taken, signals, selection, chosen, self._choose.needs, batch.get("target"))
        self.budget.step(updated=updated, **counts)
        metrics = step_metrics(loss, rate, signals, selection, self.budget.metrics() | gate, self.scorer.target_loss)
        self.last_step = StepRecord(step, taken.meta, signals, selection, losses, metrics, taken)
        if self._datamodule is not None:
            epoch, position = batch["key"]
            self._datamodule.position = (epoch, position + 1)
        if updated and self.limits.follows:
            self.limits.advance(self.lr_schedulers(), self.budget)
        if self._spent:
            self.trainer.should_stop = True
            if self.accumulated.seen:  # pools that are left over make a smaller update, as at the end of an epoch
                self.budget.updates += self._take()
        check_idle(self.idle, self.budget.updates, self._rate)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The pool is done with: what is saved from here on is whole."""
        log_metrics(self.trainer, cast(StepRecord, self.last_step))
        self.stage = ""
        self.budget.wait()

    @property
    def resumable(self) -> bool:
        """Whether a checkpoint written now would hold the state after a whole number of pools.

        Within scoring it does where neither selector nor target gradient remember earlier pools.
        """
        return self.stage == "" or (self.stage == "scoring" and self._memory.forgets(self._scorer))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch of target validation examples to that target's mean NLL."""
        self.budget.wait(False)
        self._val.add(dataloader_idx, batch, self.scorer, self.together.ranks)

    def on_validation_epoch_end(self) -> None:
        """Log the targets' NLL: their weighted mean, and each where there are several."""
        targets = self._datamodule.corpus.targets if self._datamodule is not None else []
        mean, each = self._val.take(targets, self.scorer, self.budget)
        if mean is not None:
            self.log("target/val_nll", mean, prog_bar=True, batch_size=1)
            self.log_dict(each, batch_size=1)
        self.budget.wait()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Parameters and buffers without what is of the frozen parameters, which the run can load again."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        state = super().state_dict(*args, **kwargs)
        base = of_the_base(state, frozen)
        return {name: value for name, value in state.items() if name not in base}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what selection needs to go on exactly: counters, target gradient, selector state."""
        checkpoint["winnow"] = self._memory.state_dict(self._scorer, type(self._optimizer.optimizer).__name__)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the saved counters, target gradient and selector state."""
        self._memory.load_state_dict(checkpoint["winnow"])
        self._scorer_state = checkpoint["winnow"]["scorer"]
        if self._scorer is not None:
            self._scorer.load_state_dict(self._scorer_state)

    def _take_up(self, batch: dict[str, Any]) -> Taken:
        """What the step works on, where the model is."""
        steps: Any = getattr(self._datamodule, "steps", None)
        count = self.selector.filter_size if isinstance(self.selector, Sized) else 0
        taken = self.intake(batch, getattr(steps, "pool_size", 0), count, self.seed, self.budget.steps)
        if taken.drawn is None:
            return taken
        self.budget.seconds_features += taken.drawn.seconds
        self.budget.lap("gate")
        taken = filled(taken, steps, self.device)
        self.budget.lap("loading")
        return taken

    @property
    def _spent(self) -> bool:
        return self.limits.any and self.together.any(self.limits.share(self.budget) >= 1)

    def _train(self, pool: Batch, selection: Selection, losses: Tensor) -> tuple[float, Selection, bool]:
        """Gradient of a pool's choice and, where one is due, the optimizer's step.

        Fills in the losses it learns of. Gives the loss, what was really trained on, and whether a step was made.
        """
        with forked_rng(self.device, step_seed(self.seed, self.budget.steps, DROPOUT)):
            selection, found = self.scorer.backward(pool, selection, self.together.backward(self.manual_backward))
        losses[found.isfinite()] = found[found.isfinite()]
        trained = self._trained
        alone = self.accumulated.pools == 1
        if len(selection):
            selection = clipped(trained, self.clip_norm if alone else None, selection, self.budget.steps)
            if not len(selection):
                self._check_parameters()
        loss = update_loss(losses, selection)
        if alone:
            return loss, selection, self._step(len(selection) > 0)
        self.accumulated.seen += 1
        if len(selection):
            self.accumulated.add(trained)
        if not self.accumulated.due and not self.trainer.is_last_batch:
            return loss, selection, False
        return loss, selection, self._take()

    def _take(self) -> bool:
        """The step on the gradients that were added up."""
        trained = self._trained
        return self._step(self.accumulated.take(trained) and clip(trained, self.clip_norm))

    @property
    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: held for name, held in self.model.named_parameters() if held.requires_grad}

    def _step(self, ready: bool) -> bool:
        """The step of optimizer and schedule, unless there is no gradient for it."""
        if ready:
            self._optimizer.step()
            self._check_parameters(updated=True)
            self.together.check(self._trained, self.budget)
            self._optimizer.zero_grad()
            schedule = cast(Any, self.lr_schedulers())
            if schedule is not None and not self.limits.follows:
                schedule.step()
        return ready

    def _check_parameters(self, updated: bool = False) -> None:
        optimizer = None if updated else self._optimizer
        self.together.sound(lambda: check_parameters(self.model, self.budget.steps, self._rate, optimizer))

    @property
    def _rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    @property
    def _optimizer(self) -> LightningOptimizer:
        return cast(LightningOptimizer, self.optimizers())

    @property
    def _datamodule(self) -> Any:
        return getattr(self.trainer, "datamodule", None)
