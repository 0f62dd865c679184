"""What stays the same over the pools that are scored: model, parameters, geometry, target gradient, mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.geometry import Geometry
from winnow.gradients.factors.base import Factor
from winnow.lm.forward import Forward
from winnow.products.mode import Mode
from winnow.scorer.target import TargetGradient, TargetNotFinite
from winnow.signals import Needs


@dataclass
class Scope:
    """What pools are scored with.

    Args:
        forward: the model.
        parameters: those that take part, by name.
        geometry: gives P and the momentum of each.
        target: holds target gradients over the calls.
        mode: how products are taken.
    """

    forward: Forward
    parameters: dict[str, nn.Parameter]
    geometry: Geometry
    target: TargetGradient
    mode: Mode
    target_loss: Tensor | None = None
    """Weighted mean loss of the last target batch, detached; None if the last call ran none."""

    def tau(
        self, name: str, needs: Needs, like: Factor, gradient: Callable[[], Tensor | None]
    ) -> Float[Tensor, "*shape"]:
        """The target gradient of a parameter, less the momentum where that is asked for.

        Args:
            name: the parameter.
            needs: says whether it is.
            like: gradients, for shape and precision.
            gradient: the target's, or None where the target does not reach the parameter.

        Returns:
            g* - m, or g*.
        """
        parameter, tau = self.parameters[name], gradient()
        momentum = self.geometry.momentum(parameter, name) if needs.momentum else None
        tau = torch.zeros(like.shape, dtype=like.dtype, device=parameter.device) if tau is None else tau
        return tau if momentum is None else tau - momentum.to(tau.dtype)

    def check_target(self, losses: Float[Tensor, " target"], share: Float[Tensor, " target"]) -> None:
        """Note the weighted mean loss of a target batch.

        Args:
            losses: of the examples, detached.
            share: of each; those without one may have any loss.

        Raises:
            TargetNotFinite: the mean is not finite.
        """
        self.target_loss = torch.where(share > 0, losses * share, 0).sum()
        if not bool(self.target_loss.isfinite()):
            raise TargetNotFinite(f"the loss of the target batch is {float(self.target_loss)}")
