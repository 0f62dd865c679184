"""SGD, with or without momentum: P = I."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.geometry.base import Geometry, Group, Preconditioner, State, UpdateRule
from winnow.geometry.preconditioners import Identity


class IdentityGeometry(Geometry):
    """P = I and no momentum, whatever the optimizer (``scoring.geometry=identity``)."""

    def preconditioner(
        self,
        parameter: torch.nn.Parameter,
        name: str,
        mean: Callable[[], Float[Tensor, "*shape"]],
    ) -> Preconditioner:
        """P = I."""
        return Identity()

    def momentum(self, parameter: torch.nn.Parameter, name: str) -> None:
        """Nothing."""


class SGDRule(UpdateRule):
    """``torch.optim.SGD``: the update is -lr (c g + momentum * buffer), so P = I."""

    def step_size(self, group: Group, state: State, rate: float) -> float:
        """Rate times the gradient's own share c: 1 - dampening; with Nesterov, 1 + momentum.

        Args:
            group: options of the parameter's group.
            state: its state; the first step has no dampening.
            rate: learning rate.

        Returns:
            What multiplies g in the update.
        """
        if group["momentum"] == 0:
            return rate
        damped = 1 - group["dampening"] if state.get("momentum_buffer") is not None else 1.0
        return float(rate * (1 + group["momentum"] if group["nesterov"] else damped))

    def preconditioner(
        self,
        parameter: torch.nn.Parameter,
        group: Group,
        state: State,
        mean: Callable[[], Float[Tensor, "*shape"]] | None,
    ) -> Preconditioner:
        """P = I."""
        return Identity()

    def momentum(self, group: Group, state: State) -> Float[Tensor, "*shape"] | None:
        """The momentum times the buffer; with Nesterov, momentum squared * buffer."""
        buffer = state.get("momentum_buffer")
        if buffer is None or group["momentum"] == 0:
            return None
        return group["momentum"] ** (2 if group["nesterov"] else 1) * buffer
