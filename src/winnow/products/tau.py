"""tau, the target gradient of one parameter."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from winnow.gradients.factors.base import Factor


class Target:
    """tau of one parameter: a tensor, made when asked for, or a weighted sum of factorised gradients.

    Args:
        make: gives tau.
        examples: give the gradients whose weighted sum tau is, if it is nothing else.
        weight: the weights.
        joint: the candidates' gradients and after them those of ``examples``.
    """

    def __init__(
        self,
        make: Callable[[], Tensor],
        examples: Callable[[], Factor] | None = None,
        weight: Float[Tensor, " target"] | None = None,
        joint: Factor | None = None,
    ) -> None:
        self._make, self.examples, self.weight, self.joint = make, examples, weight, joint
        self._tensor: Tensor | None = None

    def tensor(self) -> Float[Tensor, "*shape"]:
        """The target gradient itself.

        Returns:
            A tensor of the parameter's shape.
        """
        if self._tensor is None:
            self._tensor = self._make()
        return self._tensor
