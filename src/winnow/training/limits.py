"""Where a run ends: at so many operations, examples, tokens or minutes; and a schedule that knows how far it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from winnow.training.budget import Budget

TICKS = 1_000_000
"""Length of a schedule that follows a budget: its end is the budget's, however many updates that will have been."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what a run may spend; the first that is reached ends it.

    Args:
        flops: operations of training; ``budget.flops``.
        examples: candidates whose gradient reached the optimizer; ``budget.examples``.
        tokens: their response tokens; ``budget.tokens``.
        minutes: in steps, and waiting for data; ``budget.minutes``.
        updates: ``trainer.max_steps``; Lightning ends the run there, and a schedule has to know.
        follows: whether the learning-rate schedule is ``TICKS`` long and ends where the run does.
        warmup: updates of its warm-up.

    Raises:
        ValueError: a bound is not a finite number above zero.
    """

    flops: float | None = None
    examples: int | None = None
    tokens: int | None = None
    minutes: float | None = None
    updates: int | None = None
    follows: bool = False
    warmup: int = 0

    def __post_init__(self) -> None:
        for name, bound in self._bounds.items():
            if bound is not None and not 0 < bound < math.inf:
                raise ValueError(f"budget.{name} must be a finite number > 0, or null for no bound; got {bound!r}")

    @property
    def any(self) -> bool:
        """Whether anything but a number of updates is bounded."""
        return any(bound is not None for name, bound in self._bounds.items() if name != "updates")

    @property
    def _bounds(self) -> dict[str, float | None]:
        return {name: getattr(self, name) for name in ("flops", "examples", "tokens", "minutes", "updates")}

    def share(self, budget: Budget) -> float:
        """How much of the bound that is nearest has been spent.

        Args:
            budget: what has been spent.

        Returns:
            1 or more at the end; 0 without any bound.

        Raises:
            RuntimeError: operations are bounded, and this model's cannot be counted.
        """
        spent = {
            "flops": budget.flops,
            "examples": budget.examples_trained,
            "tokens": budget.tokens_trained,
            "minutes": (budget.seconds + budget.seconds_loading) / 60,
            "updates": budget.updates,
        }
        shares = [spent[name] / bound for name, bound in self._bounds.items() if bound is not None]
        if any(share != share for share in shares):
            raise RuntimeError("budget.flops: the operations of this model cannot be counted; bound something else")
        return max(shares, default=0.0)

    def advance(self, schedule: Any, budget: Budget) -> None:
        """An update was made: move a learning-rate schedule of ``TICKS`` to where the budget is.

        Args:
            schedule: of the optimizer, with a warm-up in updates if it has one.
            budget: what has been spent, the update included.
        """
        place = min(round(self.share(budget) * TICKS), TICKS)
        schedule.last_epoch = (budget.updates if budget.updates < self.warmup else max(place, self.warmup)) - 1
        schedule.step()
