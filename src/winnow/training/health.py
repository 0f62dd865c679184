"""Training that cannot recover is stopped, with a likely cause."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from winnow.lm.finite import HALF, RATE, NotFinite, check_state, likely_cause, not_finite
from winnow.signals import Signals
from winnow.training.idle import TARGET, Idle
from winnow.training.precision import check_precision


def check_start(model: nn.Module, precision: object, processes: int) -> None:
    """Refuse, before the first pool, what would be silently wrong.

    Args:
        model: the model.
        precision: the trainer's.
        processes: how many there are.

    Raises:
        NotFinite: a parameter is not finite.
        ValueError: float16, or more than one process.
    """
    check_precision(precision)
    if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise ValueError(f"model.dtype=float16: {HALF}")
    broken = not_finite(model.named_parameters())
    if broken is not None:
        raise NotFinite(f"parameter {broken} is not finite before the first update: the weights are damaged")
    if processes > 1:
        raise ValueError(
            f"{processes} processes, and a scorer that knows of one: over several processes pools are shared by "
            "winnow.parallel.ParallelScorer, which train.py takes by itself (trainer.devices=N, or torchrun)"
        )


def check_parameters(model: nn.Module, step: int, rate: float, optimizer: Any = None) -> None:
    """Stop at a parameter that is not finite: from it no later pool comes back.

    Args:
        model: the model.
        step: pools seen.
        rate: the learning rate, for the message.
        optimizer: has its state looked at, too; None after an update, which frozen parameters took no part in.

    Raises:
        NotFinite: there is one.
    """
    held = [one for one in model.named_parameters() if one[1].requires_grad or optimizer is not None]
    if not_finite(held) is not None:
        when = "after" if optimizer is None else "before"
        raise NotFinite(f"pool {step}, {when} its update: {likely_cause(dict(model.named_parameters()), rate)}")
    if optimizer is not None:
        check_state(model, optimizer, step)


def check_losses(model: nn.Module, signals: Signals, step: int, rate: float) -> None:
    """Stop where no candidate that has a response has a finite loss.

    Args:
        model: the model.
        signals: of the pool; without losses nothing is said.
        step: pools seen.
        rate: the learning rate, for the message.

    Raises:
        NotFinite: no loss is finite.
    """
    present = signals.tokens > 0
    if signals.losses is None or not bool(present.any()) or bool(signals.losses[present].isfinite().any()):
        return
    cause = likely_cause(dict(model.named_parameters()), rate)
    raise NotFinite(f"pool {step}: none of its {int(present.sum())} losses is finite; {cause}")


def check_idle(idle: Idle, updates: int, rate: float) -> None:
    """Give up after too many pools without an update.

    Args:
        idle: has counted them.
        updates: made so far; a target that is finite in no pool after one tells of the model, not of its data.
        rate: the learning rate, for the message.

    Raises:
        NotFinite: the target was finite in no pool since the last update.
        RuntimeError: for other reasons; names them.
    """
    if idle.pools >= idle.limit and updates and set(idle.causes) == {TARGET}:
        raise NotFinite(
            f"{idle.pools} pools in a row led to no update (max_idle_steps), the target finite in none since update "
            f"{updates} at a learning rate of {rate:g}: {RATE}, or its data hold what the model was never meant to read"
        )
    idle.check()
