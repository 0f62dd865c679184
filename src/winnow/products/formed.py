"""Products of gradients that are formed a few rows at a time, or of tokens where that takes less."""

from __future__ import annotations

import torch
from torch import Tensor

from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import Dense
from winnow.products.gram import add_gram, chunks
from winnow.products.parcel import Parcel
from winnow.products.token_products import token_gram
from winnow.products.way import Way


class Formed(Way):
    """Every candidate's gradient is formed, a parameter at a time; K and b are exact."""

    def gram(self, parcel: Parcel) -> tuple[str, bool]:
        """Add to K from token products where the mode says so, else from formed gradients, which serve b too.

        Args:
            parcel: a parameter's contribution.

        Returns:
            How it was done, and whether b is done.
        """
        return self.of_scaled(parcel, parcel.preconditioner.factor(parcel.factor, self.half))

    def of_scaled(self, parcel: Parcel, scaled: Factor) -> tuple[str, bool]:
        """As :meth:`gram`, of gradients that carry P's power already.

        Args:
            parcel: a parameter's contribution.
            scaled: P^(p/2) g_i.

        Returns:
            How it was done, and whether b is done.
        """
        gram = self.sums.gram
        if gram is None:
            return "formed", False
        if self.mode.takes_token_products(scaled, self.sums.alignment is not None):
            gram += token_gram(scaled, self.mode.chunk_elements)
            return "token products", False
        if parcel.on_formed is not None and self._is_smaller(parcel.factor, scaled):
            dense = Dense(parcel.factor.rows(slice(None)))
            parcel.on_formed(dense)
            parcel.factor = dense
            # P's power, as large as the parameter, is not taken twice.
            same = scaled.over(dense)
            scaled = parcel.preconditioner.factor(dense, self.half) if same is None else same
        return "formed", self._form(parcel, scaled)

    def add_formed(self, scaled: Factor, direction: Tensor | None) -> None:
        """Inner products of formed gradients, and with a direction if there is one.

        Args:
            scaled: P^(p/2) g_i.
            direction: P^(a-p/2) tau.
        """
        sums = self.sums
        assert sums.gram is not None
        if direction is not None and sums.target_square is not None:
            sums.target_square += torch.linalg.vector_norm(direction).square()
        for rows in chunks(scaled, self.mode.chunk_elements, every_row=False):
            block = scaled.block(rows).flatten(1)
            add_gram(sums.gram, block)
            if direction is not None:
                assert sums.alignment is not None
                sums.alignment.addmv_(block, direction[rows].flatten())

    def shared_direction(self, parcel: Parcel) -> Tensor | None:
        """What b is the inner product with, of the gradients formed for K.

        Args:
            parcel: a parameter's contribution.

        Returns:
            P^(a-p/2) tau; None where b's power does not allow it.
        """
        if not self.shares:
            return None
        assert self.sums.needs.alignment is not None
        return self.direction(parcel, self.sums.needs.alignment - self.half)

    def _form(self, parcel: Parcel, scaled: Factor) -> bool:
        direction = self.shared_direction(parcel)
        if direction is not None:
            direction = (direction if direction.shape else direction[None]).to(scaled.dtype)
        self.add_formed(scaled, direction)
        return direction is not None

    def _is_smaller(self, factor: Factor, scaled: Factor) -> bool:
        """Whether gradients, to which P^(p/2) goes elementwise, take no more memory than the factors they come from.

        Where P is a matrix, a product with every G_i costs more than one with the factors.
        """
        if not factor.paired or factor.length is None or not scaled.elementwise_of(factor):
            return False
        numbers = factor.length * sum(factor.shape)
        return factor.shape.numel() * factor.dtype.itemsize <= numbers * self.sums.precision.itemsize
