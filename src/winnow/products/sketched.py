"""Products of sketches: both sides of linear maps folded to a few numbers, tables by their columns."""

from __future__ import annotations

import torch
from torch import Tensor

from winnow.gradients.factors.base import Factor
from winnow.products.cost import Work
from winnow.products.formed import Formed
from winnow.products.mode import Mode
from winnow.products.parcel import Parcel
from winnow.products.sums import Sums


class Sketched(Formed):
    """K and b of sketches where gradients have factors; what has none, or loses them under P, is formed.

    Args:
        sums: what is added to.
        mode: how products are taken.
        work: counts what was done; None where nobody asks.
    """

    def __init__(self, sums: Sums, mode: Mode, work: Work | None = None) -> None:
        super().__init__(sums, mode, work)
        self._with_target: Tensor | None = None
        """Inner products of sketches of candidates and target examples, all with all, summed until ``finish``."""
        self._weight: Tensor | None = None

    def gram(self, parcel: Parcel) -> tuple[str, bool]:
        """Add sketches' products, by what P leaves of the factors.

        Args:
            parcel: a parameter's contribution.

        Returns:
            How it was done, and whether b is done.
        """
        joint = self._joint(parcel)
        if joint is not None and joint.factored:
            self._add_joint(parcel, joint)
            return "sketched", True
        if joint is None:
            scaled = parcel.preconditioner.factor(parcel.factor, self.half)
        else:
            scaled = joint.examples(slice(0, len(parcel.factor)))
        if scaled.factored:
            return "sketched", self._sketch(parcel, scaled)
        if self.sums.gram is not None:

            def fold(tensor: Tensor) -> Tensor:
                return self.mode.sketch(parcel.name, scaled).fold_columns(tensor)

            folded = scaled.folded_columns(fold)
            if folded is not None:  # a table: columns are sketched; rows, which are few, meet exactly
                direction = self.shared_direction(parcel)
                self.add_formed(folded, None if direction is None else fold(direction.to(scaled.dtype)))
                return "formed", direction is not None
        return self.of_scaled(parcel, scaled)

    def finish(self) -> None:
        """Take K and b from the products of candidates and target examples."""
        if self._with_target is None or self._weight is None:
            return
        sums, weight = self.sums, self._weight
        size = len(self._with_target) - len(weight)
        across = self._with_target[:, size:] @ weight
        if sums.gram is not None:
            sums.gram += self._with_target[:size, :size]
        if sums.alignment is not None:
            sums.alignment += across[:size]
        if sums.target_square is not None:
            sums.target_square += weight @ across[size:]

    def _joint(self, parcel: Parcel) -> Factor | None:
        """P^(p/2) of candidates and target examples as one, if K and b both take sketches of that."""
        same = parcel.tau is not None and self.sums.needs.alignment == 2 * self.half
        joint = parcel.tau.joint if parcel.tau is not None and same else None
        return None if joint is None or not joint.factored else parcel.preconditioner.factor(joint, self.half)

    def _add_joint(self, parcel: Parcel, joint: Factor) -> None:
        """K and b in one product: of candidates and target examples, which P reaches alike."""
        assert parcel.tau is not None and parcel.tau.weight is not None
        found = self.mode.sketch(parcel.name, joint).factor(joint)
        if self._with_target is None:
            self._with_target = found.new_zeros(len(found), len(found))
            self._weight = parcel.tau.weight.to(found.dtype)
        self._with_target.addmm_(found, found.T)

    def _sketch(self, parcel: Parcel, scaled: Factor) -> bool:
        """K and b of sketches; says whether b is done."""
        sums, half = self.sums, self.half
        sketch = self.mode.sketch(parcel.name, parcel.factor)
        found = sketch.factor(scaled)
        if sums.gram is not None:
            sums.gram.addmm_(found, found.T)
        if sums.alignment is None:
            return False
        assert parcel.tau is not None and sums.needs.alignment is not None
        known = self.shares
        if not known:
            half, found = 0.0, sketch.factor(parcel.factor)
        power = sums.needs.alignment - half
        examples, weight = parcel.tau.examples, parcel.tau.weight
        weighed = None if examples is None else parcel.preconditioner.factor(examples(), power)
        if weighed is not None and weighed.factored:
            # P goes into the target's factors too: its gradient is not formed either.
            assert weight is not None
            direction = weight.to(found.dtype) @ sketch.factor(weighed)
        else:
            direction = sketch.tensor(self.direction(parcel, power).to(found.dtype))
        sums.alignment.addmv_(found, direction)
        if sums.target_square is not None:
            sums.target_square += direction @ direction if known else torch.nan
        return True
