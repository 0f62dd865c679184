"""What it costs to apply a P that is a matrix, counted where it is applied."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from winnow.geometry.base import Preconditioner
from winnow.geometry.preconditioners import OneSided
from winnow.gradients.factors.base import Factor
from winnow.products.cost import Work


@dataclass(frozen=True)
class Metered:
    """A P that counts its matrix products.

    Args:
        inner: P, a matrix on one side of the gradient.
        work: takes the multiplications.
    """

    inner: OneSided
    work: Work

    def tensor(self, gradient: Float[Tensor, "rows columns"], power: float) -> Float[Tensor, "rows columns"]:
        """P^power applied to one gradient."""
        if power:
            self._count(gradient.numel() * float(len(self.inner.vectors)))
        return self.inner.tensor(gradient, power)

    def factor(self, factor: Factor, power: float) -> Factor:
        """P^power applied to the gradient of every example."""
        if power:
            self._count(factor.multiplying(self.inner.right))
        return self.inner.factor(factor, power)

    def _count(self, product: float) -> None:
        # The matrix's power is taken anew for every use, out of its eigenvectors.
        self.work.spend(product + float(len(self.inner.vectors)) ** 3)


def metered(preconditioner: Preconditioner, numbers: int, work: Work) -> Preconditioner:
    """Count what making and applying P takes, where that is matrix products.

    Args:
        preconditioner: of a parameter.
        numbers: of the parameter.
        work: takes the multiplications.

    Returns:
        The same where P multiplies elementwise.
    """
    if not isinstance(preconditioner, OneSided):
        return preconditioner
    # Muon's: the momentum times its transpose, on the shorter side. Eigenvalues are not counted, as torch does not.
    work.spend(float(numbers * len(preconditioner.vectors)))
    return Metered(preconditioner, work)
