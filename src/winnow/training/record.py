"""What one step saw and did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import lightning
import torch
from jaxtyping import Float
from torch import Tensor

from winnow.data.batch import describe
from winnow.records.ledger import Gated
from winnow.selection import Selection
from winnow.signals import Needs, Signals
from winnow.training.intake import Taken


@dataclass(frozen=True)
class StepRecord:
    """What one step saw and did, for the records; callbacks read it as ``module.last_step``.

    Args:
        step: pools seen before this one.
        meta: ids, sources, hidden labels and texts of the pool.
        signals: what the selector was given.
        selection: what it chose and the update used.
        losses: per-example losses as far as they are known, NaN elsewhere.
        metrics: scalars of the step.
        taken: the pool, and where a gate took it from.
    """

    step: int
    meta: dict[str, list[str]]
    signals: Signals
    selection: Selection
    losses: Float[Tensor, " pool"]
    metrics: dict[str, float]
    taken: Taken

    @property
    def gated(self) -> Gated | None:
        """What a gate made of the draw; None for pools as they come."""
        taken = self.taken
        if taken.passed is None or taken.drawn is None:
            return None
        index = taken.passed.index
        left = torch.ones(len(taken.passed.predicted), dtype=torch.bool)
        left[index] = False
        predicted, labels = taken.passed.predicted, taken.labels
        return Gated(
            predicted[index],
            taken.passed.at_random,
            torch.full((len(index),), torch.nan) if labels is None else labels,
            describe([taken.drawn.examples[at] for at in left.nonzero().squeeze(1).tolist()]),
            predicted[left],
        )


def update_loss(losses: Float[Tensor, " pool"], selection: Selection) -> float:
    """Weighted mean loss of what was trained on.

    Args:
        losses: of the pool, as far as they are known.
        selection: what was trained on.

    Returns:
        NaN for nothing.
    """
    if not len(selection):
        return float("nan")
    return float((losses[selection.index.cpu()] * selection.weight.cpu()).sum()) / len(selection)


def step_metrics(
    loss: float,
    rate: float,
    signals: Signals,
    selection: Selection,
    budget: Mapping[str, float],
    target_loss: Float[Tensor, ""] | None,
) -> dict[str, float]:
    """Scalars of a step, by the name they are logged under.

    Args:
        loss: of the update.
        rate: the learning rate.
        signals: what the selector was given.
        selection: what was trained on.
        budget: the counters' metrics.
        target_loss: of the target batch; None where none was run.

    Returns:
        Metrics of one step.
    """
    return {
        "train/loss": loss,
        "select/kept": float(len(selection)),
        "select/effective_size": selection.effective_size,
        "select/valid": float(signals.valid.sum()),
        "optimizer/lr": rate,
        **{f"select/{name}": float(value) for name, value in selection.diagnostics.items()},
        **budget,
        **({} if target_loss is None else {"target/loss": float(target_loss)}),
    }


def log_metrics(trainer: lightning.Trainer, record: StepRecord) -> None:
    """Give a step's metrics to loggers and callbacks, as ``LightningModule.log_dict`` would.

    That copies all that it keeps of each of some forty metrics at every step, which on a small model is time.

    Args:
        trainer: whose loggers, ``callback_metrics`` and ``logged_metrics`` are filled.
        record: of the step; metrics that are NaN are left out.
    """
    found = {name: value for name, value in record.metrics.items() if value == value}
    tensors = {name: torch.tensor(value) for name, value in found.items()}
    trainer.callback_metrics.update(tensors)
    every = cast(Any, trainer).log_every_n_steps  # set where mypy does not see it
    if not every or not trainer.loggers or not ((record.step + 1) % every == 0 or trainer.should_stop):
        return
    trainer.logged_metrics.update(tensors)
    for logger in trainer.loggers:
        logger.log_metrics({**found, "epoch": trainer.current_epoch}, step=record.step)
        logger.save()


def step_counts(
    taken: Taken,
    signals: Signals,
    selection: Selection,
    chosen: int,
    needs: Needs,
    target: Mapping[str, Tensor] | None,
) -> dict[str, int]:
    """What a step adds to the budget.

    Args:
        taken: the pool.
        signals: of it.
        selection: what was trained on.
        chosen: how many had been chosen.
        needs: what a scored pool is scored for.
        target: the step's target batch.

    Returns:
        Arguments of :meth:`winnow.training.budget.Budget.step`.
    """
    kept = signals.tokens[selection.index.to(signals.tokens.device)]
    return {
        "examples": len(signals),
        "tokens": int(signals.tokens.sum()),
        "kept": len(selection),
        "kept_tokens": int(kept.sum()),
        "target": len(target["labels"]) if target is not None and taken.scored and needs.target else 0,
        "excluded": int((~signals.valid).sum()) + chosen - len(selection),
        "truncated": taken.truncated,
        "drawn": len(signals) if taken.drawn is None else len(taken.drawn.examples),
        "scored": int(taken.scored and needs.forward),
    }


def step_needs(needs: Needs, by_task: bool) -> Needs:
    """What is computed at a step: what the selector needs, and what the ledger wants and costs little.

    Args:
        needs: the selector's.
        by_task: alignments with each target task are wanted, too.

    Returns:
        The needs, with losses wherever there is a forward, which gives them for nothing.
    """
    if needs.forward:
        needs = replace(needs, losses=True)
    if by_task and needs.alignment is not None and needs.sketch is None:
        needs = replace(needs, per_task=True)
    return needs
