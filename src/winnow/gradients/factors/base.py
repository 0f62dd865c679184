"""Per-example gradients of one parameter, kept as factors for as long as possible.

One kind a file, each answering for itself. Most are factored: outer products of activations (linear maps), scatters of
output gradients to rows (embeddings), outer products by expert, and sums of several contributions to one parameter
(tied weights, a module called twice). What has no factors is dense.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rows = slice | Tensor
"""Rows of a parameter's first dimension: a slice or a sorted LongTensor."""


@runtime_checkable
class Side(Protocol):
    """A linear map of one side of a matrix to fewer buckets: signs, and bucket = place modulo ``buckets``."""

    @property
    def signs(self) -> Float[Tensor, " side"]:
        """One for every place of the side."""

    @property
    def buckets(self) -> int:
        """How many there are."""


@runtime_checkable
class Projection(Protocol):
    """R^T G Q of one parameter's gradients G, which a kind may take of its factors."""

    @property
    def rows(self) -> Side | None:
        """R; None where rows stay as they are."""

    def fold_rows(
        self, tensor: Float[Tensor, "*middle rows"], scale: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*middle kept"]:
        """R^T diag(scale) of a tensor with the parameter's rows in its last dimension."""

    def fold_columns(
        self, tensor: Float[Tensor, "*middle columns"], scale: Float[Tensor, " columns"] | None = None
    ) -> Float[Tensor, "*middle kept"]:
        """diag(scale) Q of a tensor with the parameter's columns in its last dimension."""

    def formed(self, factor: Factor) -> Float[Tensor, "batch kept_rows kept_columns"]:
        """The projection of gradients that are formed, a few rows at a time."""


class Factor(ABC):
    """Gradients G_i of one parameter for a batch of examples i.

    The first half is what every kind has to say; the second has answers that are right for any kind, which those with
    factors replace by cheaper ones. How gradients are mapped is in :class:`winnow.gradients.factors.dense.Formed`.
    """

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Shape of the parameter."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Precision the gradients are held in."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abstractmethod
    def rows(self, rows: Rows) -> Float[Tensor, "batch rows *rest"]:
        """Gradient of every example restricted to some rows; a fresh tensor the caller may change."""

    @abstractmethod
    def combine(
        self, weight: Float[Tensor, " kept"], index: Int[Tensor, " kept"] | None = None
    ) -> Float[Tensor, "*shape"]:
        """sum_i weight_i G_{index_i}, over all examples if no index is given, without any per-example gradient."""

    @abstractmethod
    def inner(self, direction: Float[Tensor, "*shape"]) -> Float[Tensor, " batch"]:
        """Inner products <G_i, direction>, without any per-example gradient."""

    @abstractmethod
    def examples(self, index: Rows) -> Factor:
        """The same gradients for some of the examples."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> Factor:
        """The same gradients in another precision."""

    @abstractmethod
    def times(self, scalar: float) -> Factor:
        """Scalar G_i."""

    @abstractmethod
    def scaled(self, scale: Float[Tensor, "*shape"]) -> Factor:
        """Scale o G_i."""

    @abstractmethod
    def scale_sides(self, row: Float[Tensor, " rows"], column: Float[Tensor, " columns"]) -> Factor:
        """diag(row) G_i diag(column) of a matrix's gradients."""

    @abstractmethod
    def multiply_left(self, matrix: Float[Tensor, "rows rows"]) -> Factor:
        """A G_i for a symmetric matrix A."""

    @abstractmethod
    def multiply_right(self, matrix: Float[Tensor, "columns columns"]) -> Factor:
        """G_i A for a symmetric matrix A."""

    def support(self) -> Int[Tensor, " rows"] | None:
        """Rows of the parameter that any example touches, sorted; None for all of them."""
        return None

    def block(self, rows: Rows) -> Float[Tensor, "batch rows *rest"]:
        """As :meth:`rows`, but possibly a view, which the caller may not change."""
        return self.rows(rows)

    @property
    def length(self) -> int | None:
        """Tokens T, where the gradients are sums of T outer products each, or hold such a sum; else None."""
        return None

    @property
    def forming(self) -> float:
        """Multiplications that forming every example's gradient takes."""
        return 0.0

    @property
    def combining(self) -> float:
        """Multiplications that :meth:`combine` or :meth:`inner` of all examples takes."""
        return self.forming

    def multiplying(self, right: bool) -> float:
        """Multiplications that :meth:`multiply_left`, or :meth:`multiply_right`, takes beside forming the gradients.

        Args:
            right: of the latter.
        """
        return float(len(self) * self.shape.numel() * self.shape[-1 if right else 0])

    @property
    def paired(self) -> bool:
        """Whether the outer products of :meth:`sides` are all there is of the gradients."""
        return False

    def sides(self) -> tuple[Float[Tensor, "batch tokens rows"], Float[Tensor, "batch tokens columns"]] | None:
        """Both factors of every token's outer product; None where there are none."""
        return None

    @property
    def factored(self) -> bool:
        """Whether a projection of the gradients costs less than forming them."""
        return False

    def projected(self, projection: Projection) -> Float[Tensor, "batch kept_rows kept_columns"]:
        """R^T G_i Q."""
        return projection.formed(self)

    def folded_columns(self, fold: Callable[[Tensor], Tensor]) -> Factor | None:
        """The gradients with ``fold`` over their columns, where the rows that are touched are few; else None."""
        return None

    def elementwise_of(self, factor: Factor) -> bool:
        """Whether these are ``factor``'s gradients times one tensor, elementwise, by construction."""
        return False

    def over(self, factor: Factor) -> Factor | None:
        """The elementwise scale that these gradients carry, over other gradients; None where they carry none."""
        return None
