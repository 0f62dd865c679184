"""Adam and AdamW, linearised: the second moment is frozen at the value in the state (docs/METHOD.md)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.geometry.base import Group, Preconditioner, State, UpdateRule, steps
from winnow.geometry.preconditioners import Diagonal, Identity
from winnow.gradients.factors.precision import wide


class AdamRule(UpdateRule):
    """P = diag(1 / (sqrt(v / (1 - beta2^t)) + eps)), everything read from param groups and state.

    Serves ``torch.optim.Adam`` and ``AdamW``: plain, foreach, fused, capturable, amsgrad (whose running
    maximum takes the place of v).
    """

    def step_size(self, group: Group, state: State, rate: float) -> float:
        """Rate (1 - beta1) / (1 - beta1^t), t counting the coming step.

        Args:
            group: options of the parameter's group.
            state: its state.
            rate: learning rate.

        Returns:
            What multiplies P g in the update.
        """
        beta = group["betas"][0]
        return float(rate * ((1 - beta) / (1 - beta ** (steps(state) + 1))))

    def preconditioner(
        self,
        parameter: torch.nn.Parameter,
        group: Group,
        state: State,
        mean: Callable[[], Float[Tensor, "*shape"]] | None,
    ) -> Preconditioner:
        """The frozen diagonal."""
        if steps(state) == 0:
            return Identity() if mean is None else Diagonal(1 / (mean().abs() + group["eps"]))
        correction = (1 - group["betas"][1] ** steps(state)) ** 0.5
        root = self.second_moment(group, state).sqrt()
        # The correction is a tensor, so that three passes do: a number would be multiplied in a fourth.
        numerator = torch.full((), correction, dtype=root.dtype, device=root.device)
        return Diagonal(torch.div(numerator, root.add_(group["eps"] * correction), out=root))

    def momentum(self, group: Group, state: State) -> Float[Tensor, "*shape"] | None:
        """beta1 m / (1 - beta1^t), t counting the coming step."""
        if steps(state) == 0:
            return None
        beta = group["betas"][0]
        return self.first_moment(state) * (beta / (1 - beta ** (steps(state) + 1)))

    def first_moment(self, state: State) -> Float[Tensor, "*shape"]:
        """m, without bias correction.

        Args:
            state: a parameter's state.

        Returns:
            The moment in float32 or float64.
        """
        return wide(state["exp_avg"])

    def second_moment(self, group: Group, state: State) -> Float[Tensor, "*shape"]:
        """v, without bias correction.

        Args:
            group: options of the parameter's group.
            state: its state.

        Returns:
            The moment in float32 or float64.
        """
        return wide(state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"])
