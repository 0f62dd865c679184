"""SGD, with or without momentum: P = I."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.geometry.base import Identity, OptimizerState, Preconditioner


class IdentityGeometry:
    """P = I and no momentum, whatever the optimizer (``scoring.geometry=identity``)."""

    def preconditioner(
        self,
        parameter: torch.nn.Parameter,
        name: str,
        mean: Callable[[], Float[Tensor, "*shape"]],
    ) -> Preconditioner:
        """P = I.

        Args:
            parameter: ignored.
            name: ignored.
            mean: ignored.

        Returns:
            The identity.
        """
        return Identity()

    def momentum(self, parameter: torch.nn.Parameter, name: str) -> None:
        """Nothing.

        Args:
            parameter: ignored.
            name: ignored.
        """


class SGDGeometry(IdentityGeometry):
    """``torch.optim.SGD``: the update is -lr (g + momentum * buffer), so P = I.

    Args:
        optimizer: the optimizer whose momentum buffers are read.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.state = OptimizerState(optimizer)

    def momentum(self, parameter: torch.nn.Parameter, name: str) -> Float[Tensor, "*shape"] | None:  # type: ignore[override]
        """The momentum times the buffer; with Nesterov, momentum squared * buffer.

        Args:
            parameter: the parameter.
            name: its name, for errors.

        Returns:
            The term, or None before the first step or without momentum.
        """
        group = self.state.group(parameter, name)
        buffer = self.state.state(parameter).get("momentum_buffer")
        if buffer is None or group["momentum"] == 0:
            return None
        return group["momentum"] ** (2 if group["nesterov"] else 1) * buffer
