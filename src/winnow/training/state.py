"""What a checkpoint holds beside weights and optimizer, so that selection goes on exactly."""

from __future__ import annotations

from typing import Any

from winnow.records.checkpoint import method_name
from winnow.scorer import Scorer
from winnow.selectors.abilities import Stateful
from winnow.selectors.base import Selector
from winnow.training.accumulate import Accumulated
from winnow.training.budget import Budget
from winnow.training.idle import Idle
from winnow.training.intake import Intake


class Memory:
    """What selection remembers over the pools.

    Args:
        selector: the selector.
        budget: counters.
        idle: pools without an update.
        accumulated: gradients added up for the coming update.
        intake: gate and cadence.
    """

    def __init__(
        self, selector: Selector, budget: Budget, idle: Idle, accumulated: Accumulated, intake: Intake
    ) -> None:
        self.selector, self.budget, self.idle, self.accumulated = selector, budget, idle, accumulated
        self.intake = intake

    def state_dict(self, scorer: Scorer | None, optimizer: str) -> dict[str, Any]:
        """The ``winnow`` entry of a checkpoint.

        Args:
            scorer: holds the target gradient.
            optimizer: name of the optimizer's class.

        Returns:
            Plain containers and tensors.
        """
        return {
            "method": method_name(self.selector),
            "optimizer": optimizer,
            "budget": self.budget.state_dict(),
            "idle": self.idle.pools,
            "accumulated": self.accumulated.state_dict(),
            "scorer": scorer.state_dict() if scorer is not None else {},
            "selector": self.selector.state_dict() if isinstance(self.selector, Stateful) else {},
            "intake": self.intake.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up all of it but the scorer's part.

        Args:
            state: from ``state_dict``.
        """
        self.budget.load_state_dict(state["budget"])
        self.idle.pools = int(state["idle"])
        if "accumulated" in state:
            self.accumulated.load_state_dict(state["accumulated"])
        if isinstance(self.selector, Stateful):
            self.selector.load_state_dict(state["selector"])
        if "intake" in state:
            self.intake.load_state_dict(state["intake"])

    def forgets(self, scorer: Scorer | None) -> bool:
        """Whether neither selector nor target gradient nor gate remember earlier pools.

        Args:
            scorer: holds the target gradient.

        Returns:
            True where a pool may be scored twice without a trace.
        """
        return (
            not isinstance(self.selector, Stateful) and self.intake.plain and (scorer is None or not scorer.target.keep)
        )
