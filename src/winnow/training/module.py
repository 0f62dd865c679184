"""The LightningModule: score the pool, let the selector choose, make one weighted update. It names no method."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from winnow.lm.finite import HALF, NotFinite, check_rates, likely_cause, not_finite
from winnow.lm.layout import response_tokens
from winnow.lm.losses import example_losses
from winnow.records.checkpoint import method_name
from winnow.scorer import Scorer, TargetNotFinite
from winnow.selection import Selection
from winnow.selectors import Selector
from winnow.signals import Needs, Signals
from winnow.training.accumulate import Accumulated
from winnow.training.budget import Budget
from winnow.training.idle import Idle
from winnow.training.precision import check_precision
from winnow.training.record import StepRecord
from winnow.training.stopping import Stop

log = logging.getLogger(__name__)


class SelectionModule(lightning.LightningModule):
    """Fine-tunes a causal language model on what a selector keeps of every pool.

    ``on_train_batch_start`` scores the pool and selects; ``training_step`` makes one update with the
    gradient (1/k) sum_i w_i g_i. Optimization is manual: clipping and the schedule happen here.

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
        seed: of dropout and of selectors that draw at random, together with the step.
        record_tasks: score against every target task by itself too, for the records; where gradients are compared.

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
    ) -> None:
        super().__init__()
        number = isinstance(clip_norm, int | float) and not isinstance(clip_norm, bool)
        if clip_norm is not None and not (number and 0 < clip_norm < math.inf):
            raise ValueError(f"clip_norm must be a number > 0 and finite, or null for none; got {clip_norm!r}")
        self.automatic_optimization = False
        self.strict_loading = False  # a LoRA checkpoint does not hold the frozen base
        self.model, self.selector = model, selector
        self._build = (scorer, optimizer, scheduler)
        self.clip_norm, self.seed, self.record_tasks = clip_norm, seed, record_tasks
        self.budget = Budget()
        self.accumulated = Accumulated(pools_per_update)
        self.idle = Idle(max_idle_steps)
        self.stop = Stop()
        """A stop that was asked for, which is obeyed between two pools."""
        self.stage = ""
        """``scoring`` or ``updating`` within a pool; empty between two."""
        self.last_step: StepRecord | None = None
        self._scorer: Scorer | None = None
        self._scorer_state: dict[str, Any] | None = None
        self._scored: tuple[Signals, Selection] | None = None
        self._val: dict[int, tuple[float, int]] = {}

    @property
    def scorer(self) -> Scorer:
        """What scores the pools; there once the optimizer is.

        Raises:
            RuntimeError: it is not there yet.
        """
        if self._scorer is None:
            raise RuntimeError("there is no scorer before the optimizer: fit, or prepare")
        return self._scorer

    def prepare(self, trainer: lightning.Trainer) -> torch.optim.Optimizer:
        """Refuse and build what a fit would, outside one.

        Args:
            trainer: of the precision and devices that are meant.

        Returns:
            An optimizer of its own; a fit builds another.
        """
        self.trainer = trainer
        self.on_fit_start()
        built = self.configure_optimizers()
        optimizer: torch.optim.Optimizer = built if isinstance(built, torch.optim.Optimizer) else built[0][0]
        return optimizer

    def configure_optimizers(self) -> Any:
        """Build optimizer and schedule over the parameters that require gradients."""
        scorer, optimizer, scheduler = self._build
        trained = [(name, held) for name, held in self.model.named_parameters() if held.requires_grad]
        built = optimizer(trained if wants_names(optimizer) else [held for _, held in trained])
        self._scorer = scorer(self.model, built)
        self._scorer.check(self.selector.needs)
        check_rates(built.param_groups)
        if self._scorer_state is not None:
            self._scorer.load_state_dict(self._scorer_state)
        return built if scheduler is None else ([built], [scheduler(built)])

    def on_train_start(self) -> None:
        """Take SIGTERM and SIGINT from Lightning, which would leave in the middle of a measurement, without saving."""
        if self.stop.waits:
            self.stop.take()

    def on_fit_start(self) -> None:
        """Refuse what would be silently wrong.

        Raises:
            NotFinite: a parameter is not finite.
            ValueError: float16, or more than one process.
        """
        check_precision(self.trainer.precision)
        if any(parameter.dtype == torch.float16 for parameter in self.model.parameters()):
            raise ValueError(f"model.dtype=float16: {HALF}")
        broken = not_finite(self.model.named_parameters())
        if broken is not None:
            raise NotFinite(f"parameter {broken} is not finite before the first update: the weights are damaged")
        if self.trainer.world_size > 1:
            raise ValueError(
                f"{self.trainer.world_size} processes: selection over a pool split among processes is not "
                "implemented; use trainer.devices=1, and for several devices several jobs at a time: -m with "
                "hydra/launcher=joblib or submitit_local, a process per job"
            )

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Score the pool and select from it; the choice is kept for ``training_step``.

        Raises:
            BaseException: a stop was asked for.
        """
        self.stop.obey()
        self.stage = "scoring"
        self.budget.start()
        with self.trainer.precision_plugin.train_step_context():  # Lightning calls this hook outside autocast
            self._scored = self._choose(batch)
        self.budget.selected()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """One update on the kept candidates, then the step's record.

        Raises:
            NotFinite: the learning rate, every loss of the pool or a parameter is not finite.
            RuntimeError: ``max_idle_steps`` pools in a row led to no update.
        """
        assert self._scored is not None
        self.stage = "updating"
        signals, selection = self._scored
        self._scored = None
        pool, step = batch["pool"], self.budget.steps
        losses = torch.full((len(signals),), torch.nan, dtype=torch.float32)
        if signals.losses is not None:
            losses = signals.losses.detach().float().cpu()
        rate = float(self._optimizer.param_groups[0]["lr"])
        check_rates(self._optimizer.param_groups, step)
        self._check_losses(signals, step, rate)
        chosen = len(selection)
        loss, selection, updated = self._train(pool, selection, losses)
        if chosen and not len(selection) and signals.losses is None:
            self._check_losses(self._with_losses(signals, pool), step, rate)
        self.idle.count(signals, selection, chosen)
        kept_tokens = signals.tokens[selection.index.to(signals.tokens.device)]
        self.budget.step(
            examples=len(signals),
            tokens=int(signals.tokens.sum()),
            kept=len(selection),
            kept_tokens=int(kept_tokens.sum()),
            updated=updated,
            target=len(batch["target"]["labels"]) if self.selector.needs.target else 0,
            excluded=int((~signals.valid).sum()) + chosen - len(selection),
            truncated=int(batch["truncated"].sum()),
        )
        metrics = {
            "train/loss": loss,
            "select/kept": float(len(selection)),
            "select/effective_size": selection.effective_size,
            "select/valid": float(signals.valid.sum()),
            "optimizer/lr": rate,
            **{f"select/{name}": float(value) for name, value in selection.diagnostics.items()},
            **self.budget.metrics(),
        }
        if self._scorer is not None and self._scorer.target_loss is not None:
            metrics["target/loss"] = float(self._scorer.target_loss)
        self.last_step = StepRecord(step, batch["meta"], signals, selection, losses, metrics)
        self._log(metrics)
        if self._datamodule is not None:
            epoch, position = batch["key"]
            self._datamodule.position = (epoch, position + 1)
        self.idle.check()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The pool is done with: what is saved from here on is whole."""
        self.stage = ""

    @property
    def resumable(self) -> bool:
        """Whether a checkpoint written now would hold the state after a whole number of pools.

        Within scoring it does where neither selector nor target gradient remember earlier pools.
        """
        forgets = not hasattr(self.selector, "state_dict") and (self._scorer is None or not self._scorer.target.keep)
        return self.stage == "" or (self.stage == "scoring" and forgets)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch of target validation examples to that target's mean NLL."""
        losses = example_losses(self.model, batch)
        active = response_tokens(batch) > 0
        total, count = self._val.get(dataloader_idx, (0.0, 0))
        self._val[dataloader_idx] = (total + float(losses[active].double().sum()), count + int(active.sum()))

    def on_validation_epoch_end(self) -> None:
        """Log the targets' NLL: their weighted mean, and each where there are several."""
        targets = self._datamodule.corpus.targets if self._datamodule is not None else []
        means = {at: total / max(count, 1) for at, (total, count) in self._val.items()}
        self._val = {}
        if not means:
            return
        weights = {at: targets[at].weight if at < len(targets) else 1.0 for at in means}
        mean = sum(weights[at] * means[at] for at in means) / sum(weights.values())
        self.log("target/val_nll", mean, prog_bar=True, batch_size=1)
        if len(means) > 1:
            self.log_dict({f"target/{targets[at].name}/val_nll": means[at] for at in means}, batch_size=1)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Parameters and buffers without the frozen parameters, which the run can load again."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name not in frozen}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what selection needs to go on exactly: counters, target gradient, selector state."""
        checkpoint["winnow"] = {
            "method": method_name(self.selector),
            "optimizer": type(self._optimizer.optimizer).__name__,
            "budget": self.budget.state_dict(),
            "idle": self.idle.pools,
            "accumulated": self.accumulated.state_dict(),
            "scorer": self._scorer.state_dict() if self._scorer is not None else {},
            "selector": self.selector.state_dict() if hasattr(self.selector, "state_dict") else {},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the saved counters, target gradient and selector state."""
        state = checkpoint["winnow"]
        self.budget.load_state_dict(state["budget"])
        self.idle.pools = int(state["idle"])
        if "accumulated" in state:
            self.accumulated.load_state_dict(state["accumulated"])
        self._scorer_state = state["scorer"]
        if self._scorer is not None:
            self._scorer.load_state_dict(state["scorer"])
        if hasattr(self.selector, "load_state_dict"):
            self.selector.load_state_dict(state["selector"])

    def _choose(self, batch: dict[str, Any]) -> tuple[Signals, Selection]:
        assert self._scorer is not None
        needs = self.selector.needs
        if needs.forward:
            needs = replace(needs, losses=True)  # the forward gives them for nothing, and the ledger wants them
        if self.record_tasks and needs.alignment is not None and needs.sketch is None:
            needs = replace(needs, per_task=True)
        target = batch.get("target")
        if needs.target and target is None:
            raise ValueError(f"{type(self.selector).__name__} needs a target task, and data.corpus has none")
        try:
            weight = None if target is None or not needs.target else target["weight"]
            task = None if target is None or weight is None else target["task"]
            signals = self._scorer(batch["pool"], target, needs, weight, target_task=task, meta=batch["meta"])
        except TargetNotFinite as error:
            self._check_parameters(self.budget.steps)
            log.warning("pool %d: %s; no update (scoring.on_target_nan=skip)", self.budget.steps, error)
            tokens = response_tokens(batch["pool"])
            nothing = Selection(tokens.new_zeros(0), torch.zeros(0), {"target_not_finite": 1.0})
            return self._with_losses(Signals(valid=tokens > 0, tokens=tokens), batch["pool"]), nothing
        selection = self.selector(signals, torch.Generator().manual_seed(self._step_seed(1)))
        if self._scorer.target_reused:
            log.warning("pool %d: target loss not finite; reusing the last target gradient", self.budget.steps)
            selection = replace(selection, diagnostics={**selection.diagnostics, "target_reused": 1.0})
        return signals, selection

    def _train(self, pool: dict[str, Tensor], selection: Selection, losses: Tensor) -> tuple[float, Selection, bool]:
        """Gradient of a pool's choice and, where one is due, the optimizer's step.

        Fills in the losses it learns of. Gives the loss, what was really trained on, and whether a step was made.
        """
        assert self._scorer is not None
        with self._forked_rng():
            selection, found = self._scorer.backward(pool, selection, self.manual_backward)
        losses[found.isfinite()] = found[found.isfinite()]
        trained = {name: held for name, held in self.model.named_parameters() if held.requires_grad}
        alone = self.accumulated.pools == 1
        if len(selection) and not self._clip(trained, self.clip_norm if alone else None):
            self._check_parameters(self.budget.steps)
            log.warning("pool %d: the gradient of the update is not finite; no update", self.budget.steps)
            self._optimizer.zero_grad()
            selection = Selection(selection.index[:0], selection.weight[:0], {"update_not_finite": 1.0})
        loss = float("nan")
        if len(selection):
            loss = float((losses[selection.index.cpu()] * selection.weight.cpu()).sum()) / len(selection)
        if alone:
            return loss, selection, self._step(len(selection) > 0)
        self.accumulated.seen += 1
        if len(selection):
            self.accumulated.add(trained)
        if not self.accumulated.due and not self.trainer.is_last_batch:
            return loss, selection, False
        some = self.accumulated.take(trained)
        return loss, selection, self._step(some and self._clip(trained, self.clip_norm))

    @staticmethod
    def _clip(trained: dict[str, nn.Parameter], bound: float | None) -> bool:
        """Clip the gradients' norm; says whether it is finite."""
        norm = nn.utils.clip_grad_norm_(list(trained.values()), float("inf") if bound is None else bound)
        return bool(norm.isfinite())

    def _step(self, ready: bool) -> bool:
        """The step of optimizer and schedule, unless there is no gradient for it."""
        if ready:
            self._optimizer.step()
            self._check_parameters(self.budget.steps, trainable=True)
            self._optimizer.zero_grad()
            schedule = cast(Any, self.lr_schedulers())
            if schedule is not None:
                schedule.step()
        return ready

    def _check_parameters(self, step: int, trainable: bool = False) -> None:
        """Stop at a parameter that is not finite: from it no later pool comes back."""
        held = [one for one in self.model.named_parameters() if one[1].requires_grad or not trainable]
        if not_finite(held) is not None:
            rate = float(self._optimizer.param_groups[0]["lr"])
            raise NotFinite(f"pool {step}, {'after' if trainable else 'before'} its update: {self._cause(rate)}")

    def _with_losses(self, signals: Signals, pool: dict[str, Tensor]) -> Signals:
        """Losses of the whole pool tell an odd batch from a model that is beyond help."""
        assert self._scorer is not None
        return replace(signals, losses=self._scorer(pool, None, Needs(losses=True)).losses)

    def _check_losses(self, signals: Signals, step: int, rate: float) -> None:
        """Stop where no candidate that has a response has a finite loss."""
        present = signals.tokens > 0
        if signals.losses is None or not bool(present.any()) or bool(signals.losses[present].isfinite().any()):
            return
        raise NotFinite(f"pool {step}: none of its {int(present.sum())} losses is finite; {self._cause(rate)}")

    def _cause(self, rate: float) -> str:
        return likely_cause(dict(self.model.named_parameters()), rate)

    @property
    def _optimizer(self) -> LightningOptimizer:
        return cast(LightningOptimizer, self.optimizers())

    @property
    def _datamodule(self) -> Any:
        return getattr(self.trainer, "datamodule", None)

    def _log(self, metrics: dict[str, float]) -> None:
        self.log_dict({name: value for name, value in metrics.items() if value == value})

    def _step_seed(self, purpose: int) -> int:
        # Distinct streams per (seed, step, purpose) without touching a global generator.
        return (self.seed * 1_000_003 + self.budget.steps * 2 + purpose) % (2**63 - 1)

    @contextmanager
    def _forked_rng(self) -> Iterator[None]:
        """Dropout as a pure function of (seed, step), so that resume needs no generator state."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self._step_seed(0))
            yield


def wants_names(factory: Callable[..., Any]) -> bool:
    """Whether an optimizer's constructor takes (name, parameter) pairs.

    Args:
        factory: a class, or a partial or wrapper of one.

    Returns:
        True if its first argument is called ``named_parameters``.
    """
    try:
        arguments = list(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # some built-in callables have no signature
        return False
    return bool(arguments) and arguments[0] == "named_parameters"
