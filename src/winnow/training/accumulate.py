"""Gradients of several pools, averaged into one update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from winnow.lm.shards import gathered, held_as


class Accumulated:
    """Sum of the gradients of pools since the last update; kept apart from ``.grad``, which scoring may use.

    Args:
        pools: how many make one update.

    Raises:
        ValueError: no whole number, or fewer than one.
    """

    def __init__(self, pools: int) -> None:
        if not isinstance(pools, int) or pools < 1:
            raise ValueError(f"pools_per_update must be a whole number, at least 1, got {pools!r}")
        self.pools, self.seen, self.count = pools, 0, 0
        self._sum: dict[str, Tensor] = {}

    @property
    def due(self) -> bool:
        """Whether as many pools were seen as make an update."""
        return self.seen >= self.pools

    def add(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Take over the gradients of a pool from ``.grad``.

        Args:
            parameters: the trained ones, by name.
        """
        self.count += 1
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                held = self._sum.get(name)
                before = None if held is None else held_as(held.to(parameter.device), parameter)
                self._sum[name] = parameter.grad if before is None else before.add_(parameter.grad)
                parameter.grad = None

    def take(self, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Write the mean over the pools that gave a gradient to ``.grad``, and begin anew.

        Args:
            parameters: the trained ones, by name.

        Returns:
            False if no pool gave one; nothing is written then.
        """
        count, total = self.count, self._sum
        self.seen, self.count, self._sum = 0, 0, {}
        for name, gradient in total.items():
            parameters[name].grad = held_as(gradient.to(parameters[name].device), parameters[name]).div_(count)
        return count > 0

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint.

        Returns:
            The sum and its counters; sums in rows are made whole, by all processes.
        """
        return {"seen": self.seen, "count": self.count, "sum": gathered(self._sum)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Args:
            state: what ``state_dict`` gave.
        """
        self.seen, self.count, self._sum = int(state["seen"]), int(state["count"]), dict(state["sum"])
