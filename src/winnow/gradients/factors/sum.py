"""Several contributions to one parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.gradients.factors.base import Factor, Projection, Rows
from winnow.gradients.factors.dense import Formed
from winnow.gradients.factors.outer_product import OuterProduct
from winnow.gradients.factors.scatter import Scatter


@dataclass(frozen=True)
class Sum(Formed):
    """Several contributions to one parameter, added before any product is taken.

    Args:
        parts: the contributions, over the same examples.
    """

    parts: Sequence[Factor]

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter."""
        return self.parts[0].shape

    @property
    def dtype(self) -> torch.dtype:
        """Precision the gradients are held in."""
        return self.parts[0].dtype

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.parts[0])

    def support(self) -> Int[Tensor, " rows"] | None:
        """Union of the rows of the parts."""
        supports = [part.support() for part in self.parts]
        found = [support for support in supports if support is not None]
        return torch.cat(found).unique() if len(found) == len(supports) else None

    def rows(self, rows: Rows) -> Float[Tensor, "batch rows *rest"]:
        """Per-example gradients of some rows, added over the parts."""
        total = self.parts[0].rows(rows)
        for part in self.parts[1:]:
            total += part.rows(rows)
        return total

    def combine(
        self, weight: Float[Tensor, " kept"], index: Int[Tensor, " kept"] | None = None
    ) -> Float[Tensor, "*shape"]:
        """sum_i weight_i G_{index_i}."""
        total = self.parts[0].combine(weight, index)
        for part in self.parts[1:]:
            total = total + part.combine(weight, index)
        return total

    def inner(self, direction: Float[Tensor, "*shape"]) -> Float[Tensor, " batch"]:
        """<G_i, V>."""
        total = self.parts[0].inner(direction)
        for part in self.parts[1:]:
            total = total + part.inner(direction)
        return total

    def examples(self, index: Rows) -> Sum:
        """The gradients of some of the examples."""
        return Sum([part.examples(index) for part in self.parts])

    def to(self, dtype: torch.dtype) -> Sum:
        """The same gradients in another precision."""
        return Sum([part.to(dtype) for part in self.parts])

    def times(self, scalar: float) -> Sum:
        """Scalar G_i, part by part."""
        return Sum([part.times(scalar) for part in self.parts])

    def scale_sides(self, row: Float[Tensor, " rows"], column: Float[Tensor, " columns"]) -> Sum:
        """diag(row) G_i diag(column), part by part."""
        return Sum([part.scale_sides(row, column) for part in self.parts])

    def multiply_left(self, matrix: Float[Tensor, "rows rows"]) -> Sum:
        """A G_i, part by part."""
        return Sum([part.multiply_left(matrix) for part in self.parts])

    def multiply_right(self, matrix: Float[Tensor, "columns columns"]) -> Sum:
        """G_i A, part by part."""
        return Sum([part.multiply_right(matrix) for part in self.parts])

    def multiplying(self, right: bool) -> float:
        """Of all parts."""
        return sum(part.multiplying(right) for part in self.parts)

    @property
    def length(self) -> int | None:
        """Of the first part that has one."""
        return next((part.length for part in self.parts if part.length is not None), None)

    @property
    def forming(self) -> float:
        """Of all parts."""
        return sum(part.forming for part in self.parts)

    @property
    def combining(self) -> float:
        """Of all parts."""
        return sum(part.combining for part in self.parts)

    @property
    def factored(self) -> bool:
        """Whether all parts are outer products or scatters."""
        return all(isinstance(part, OuterProduct | Scatter) for part in self.parts)

    def projected(self, projection: Projection) -> Float[Tensor, "batch kept_rows kept_columns"]:
        """R^T G_i Q, part by part."""
        return torch.stack([part.projected(projection) for part in self.parts]).sum(0)
