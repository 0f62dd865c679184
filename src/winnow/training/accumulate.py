"""Gradients of several pools, averaged into one update."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from winnow.selection import Selection

log = logging.getLogger(__name__)


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
                self._sum[name] = parameter.grad if held is None else held.to(parameter.device).add_(parameter.grad)
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
            parameters[name].grad = gradient.to(parameters[name].device).div_(count)
        return count > 0

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint.

        Returns:
            The sum and its counters.
        """
        return {"seen": self.seen, "count": self.count, "sum": dict(self._sum)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Args:
            state: what ``state_dict`` gave.
        """
        self.seen, self.count, self._sum = int(state["seen"]), int(state["count"]), dict(state["sum"])


def check_clip_norm(bound: object) -> None:
    """Refuse a bound that is none.

    Args:
        bound: ``clip_norm``.

    Raises:
        ValueError: it is neither None nor a finite number above zero.
    """
    number = isinstance(bound, int | float) and not isinstance(bound, bool)
    if bound is not None and not (number and 0 < cast(float, bound) < math.inf):
        raise ValueError(f"clip_norm must be a number > 0 and finite, or null for none; got {bound!r}")


def clipped(parameters: Mapping[str, nn.Parameter], bound: float | None, selection: Selection, step: int) -> Selection:
    """Clip the gradient of a pool's choice, and say what it is worth.

    Args:
        parameters: by name; a gradient that is not finite is dropped.
        bound: of the norm; None to leave it.
        selection: what the gradient is of.
        step: pools seen, for the log.

    Returns:
        The same; emptied, with ``update_not_finite`` in its diagnostics, where the gradient is not finite; with
        ``update_zero`` where all of it is zero.
    """
    norm = _clip(parameters, bound)
    if norm == 0:
        return replace(selection, diagnostics={**selection.diagnostics, "update_zero": 1.0})
    if math.isfinite(norm):
        return selection
    log.warning("pool %d: the gradient of the update is not finite; no update", step)
    for parameter in parameters.values():
        parameter.grad = None
    return Selection(selection.index[:0], selection.weight[:0], {"update_not_finite": 1.0})


def clip(parameters: Mapping[str, nn.Parameter], bound: float | None) -> bool:
    """Clip the norm of all gradients together.

    Args:
        parameters: by name.
        bound: of the norm; None to leave it.

    Returns:
        Whether the norm is finite.
    """
    return math.isfinite(_clip(parameters, bound))


def _clip(parameters: Mapping[str, nn.Parameter], bound: float | None) -> float:
    return float(nn.utils.clip_grad_norm_(list(parameters.values()), float("inf") if bound is None else bound))
