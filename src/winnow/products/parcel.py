"""What arrives of one parameter: gradients of candidates, the P they are compared under, and the target's gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from winnow.geometry.base import Preconditioner
from winnow.gradients.factors.base import Factor


class Tau:
    """The target gradient of one parameter: a tensor, made when asked for, or a weighted sum of factored gradients.

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


@dataclass(slots=True)
class Parcel:
    """One parameter's contribution to the products.

    Args:
        name: the parameter.
        factor: gradients of candidates.
        preconditioner: P of this parameter.
        tau: needed for ``alignment``.
        rows: which candidates they are.
        targets: how many target examples went through the model beside them.
        by_task: the tau of every target task; needed for ``per_task``.
        hvp: H sum_j g_j of this parameter; ``curvature`` counts none where it is None.
        on_formed: called with the dense gradients formed for K when they need no more memory than the factors.
    """

    name: str
    factor: Factor
    preconditioner: Preconditioner
    tau: Tau | None = None
    rows: slice = field(default_factory=lambda: slice(None))
    targets: int = 0
    by_task: Sequence[Float[Tensor, "*shape"]] = ()
    hvp: Float[Tensor, "*shape"] | None = None
    on_formed: Callable[[Factor], None] | None = None

    def target(self) -> Float[Tensor, "*shape"]:
        """Tau itself.

        Returns:
            A tensor of the parameter's shape.

        Raises:
            ValueError: there is none, and b is asked for.
        """
        if self.tau is None:
            raise ValueError(f"b of {self.name} is asked for, and there is no target gradient")
        return self.tau.tensor()
