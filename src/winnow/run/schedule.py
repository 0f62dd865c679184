"""How many updates a run will make, and the learning-rate schedule that has to know."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

log = logging.getLogger(__name__)

LENGTH, WARMUP = "num_training_steps", "num_warmup_steps"  # as transformers' schedules call them


def planned_updates(
    max_steps: int | None, max_epochs: int | None, pools: int | None, pools_per_update: int = 1
) -> int | None:
    """Updates a run makes if no pool is idle.

    Args:
        max_steps: bound on updates; None or -1 for none.
        max_epochs: bound on passes over the stream; None or -1 for none.
        pools: pools in one pass; None for an endless stream.
        pools_per_update: pools whose gradients are averaged; those left at the end of a pass make an update too.

    Returns:
        The lesser of the bounds; None where neither says.
    """
    bounds = []
    if max_steps is not None and max_steps >= 0:
        bounds.append(int(max_steps))
    if max_epochs is not None and max_epochs >= 0 and pools is not None:
        bounds.append(int(max_epochs) * math.ceil(pools / pools_per_update))
    return min(bounds, default=None)


def schedule_arguments(options: Mapping[str, Any], planned: int | None) -> dict[str, Any]:
    """What a schedule's configuration leaves to the run: its length.

    Args:
        options: the configuration of ``scheduler``, with ``num_training_steps`` null where it follows the run.
        planned: updates the run will make, if that is known.

    Returns:
        ``num_training_steps`` where it was null, and nothing else.

    Raises:
        ValueError: a number of steps is negative or not finite, or the schedule follows the run and the run's length
            is not known.
    """
    for name, value in options.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # PyTorch's schedules take last_epoch=-1 for a fresh start.
        if number and name != "last_epoch" and not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"scheduler.{name} must be a finite number >= 0, got {value}")
    found = {}
    length = options.get(LENGTH)
    if LENGTH in options and length is None:
        if planned is None:
            raise ValueError(
                f"scheduler.{LENGTH}=null follows the run, and its length is not known: set trainer.max_steps (or "
                f"trainer.max_epochs, if the stream is finite), or scheduler.{LENGTH} to a number of updates"
            )
        found[LENGTH] = length = planned
    elif length is not None and planned is not None and length < planned:
        log.warning(
            "scheduler.%s=%d is shorter than the run of %d updates, the rest of which goes at the schedule's last rate",
            LENGTH,
            length,
            planned,
        )
    total, warmup = planned if length is None else length, options.get(WARMUP)
    if warmup and total and warmup >= total:
        log.warning(
            "scheduler.%s=%d: the warm-up takes all of the %d updates, and the learning rate is never reached",
            WARMUP,
            warmup,
            total,
        )
    return found


def following(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A schedule that can be set to any place, so that it can follow a budget.

    Args:
        build: a schedule from an optimizer.

    Returns:
        The same, which refuses a schedule whose rate is no function of its place alone.
    """

    def checked(optimizer: Any) -> Any:
        schedule = build(optimizer)
        if not isinstance(schedule, LambdaLR):
            raise ValueError(
                f"scheduler: {type(schedule).__name__} cannot follow a budget, as its rate is no function of its place "
                f"alone: take one of transformers, or set scheduler.{LENGTH} to a number of updates"
            )
        return schedule

    return checked
