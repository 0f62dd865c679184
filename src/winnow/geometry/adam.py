"""Adam and AdamW, linearised: the second moment is frozen at the value in the state (docs/METHOD.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.geometry.base import (
    Diagonal,
    Identity,
    OptimizerState,
    Preconditioner,
    accumulation_dtype,
)


class AdamGeometry:
    """P = diag(1 / (sqrt(v / (1 - beta2^t)) + eps)), everything read from param groups and state.

    Serves ``torch.optim.Adam`` and ``AdamW``: plain, foreach, fused, capturable, amsgrad (whose running
    maximum takes the place of v).

    Args:
        optimizer: the optimizer.
        first_step: P of a parameter that has no state yet: ``pool`` takes v_hat as the square of the
            pool's mean gradient, which is what Adam's own first step does with it; ``identity`` takes I.

    Raises:
        ValueError: ``first_step`` is neither.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, first_step: str = "pool") -> None:
        if first_step not in ("pool", "identity"):
            raise ValueError(f"first_step must be 'pool' or 'identity' (scoring.first_step), got {first_step!r}")
        self.state = OptimizerState(optimizer)
        self.first_step = first_step

    def preconditioner(
        self,
        parameter: torch.nn.Parameter,
        name: str,
        mean: Callable[[], Float[Tensor, "*shape"]],
    ) -> Preconditioner:
        """The frozen diagonal.

        Args:
            parameter: the parameter.
            name: its name, for errors.
            mean: the pool's mean gradient, used at the first step.

        Returns:
            A diagonal, or the identity at the first step if so configured.
        """
        group, state = self.state.group(parameter, name), self.state.state(parameter)
        if not _started(state):
            if self.first_step == "identity":
                return Identity()
            return Diagonal(1 / (mean().abs() + group["eps"]))
        second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        second = second.to(accumulation_dtype(second.dtype))
        correction = 1 - group["betas"][1] ** _steps(state)
        return Diagonal(1 / ((second / correction).sqrt() + group["eps"]))

    def momentum(self, parameter: torch.nn.Parameter, name: str) -> Float[Tensor, "*shape"] | None:
        """beta1 m / (1 - beta1^t), t counting the coming step.

        Args:
            parameter: the parameter.
            name: its name, for errors.

        Returns:
            The term, or None before the first step.
        """
        group, state = self.state.group(parameter, name), self.state.state(parameter)
        if not _started(state):
            return None
        beta = group["betas"][0]
        mean = state["exp_avg"]
        return mean.to(accumulation_dtype(mean.dtype)) * (beta / (1 - beta ** (_steps(state) + 1)))


def _steps(state: dict[str, Any]) -> float:
    return float(state["step"])


def _started(state: dict[str, Any]) -> bool:
    return "step" in state and _steps(state) > 0
