"""Per-example gradients of one parameter, kept as factors for as long as possible.

Four kinds, one interface (``Factor``): an outer product of activations (linear maps; in a module of its
own), a scatter of output gradients to rows (embeddings), a dense block (everything else), and the sum of
several contributions to one parameter (tied weights, a module called twice).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rows = slice | Tensor
"""Rows of a parameter's first dimension: a slice or a sorted LongTensor."""


@runtime_checkable
class Factor(Protocol):
    """Gradients G_i of one parameter for a batch of examples i."""

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision the gradients are held in."""

    def __len__(self) -> int:
        """Number of examples."""

    def support(self) -> Int[Tensor, " rows"] | None:
        """Rows of the parameter that any example touches, sorted; None for all of them."""

    def rows(self, rows: Rows) -> Float[Tensor, "batch rows *rest"]:
        """Gradient of every example restricted to some rows; a fresh tensor the caller may change."""

    def combine(
        self, weight: Float[Tensor, " kept"], index: Int[Tensor, " kept"] | None = None
    ) -> Float[Tensor, "*shape"]:
        """sum_i weight_i G_{index_i}, over all examples if no index is given, without any per-example gradient."""

    def inner(self, direction: Float[Tensor, "*shape"]) -> Float[Tensor, " batch"]:
        """Inner products <G_i, direction>, without any per-example gradient."""

    def examples(self, index: Rows) -> Factor:
        """The same gradients for some of the examples."""

    def to(self, dtype: torch.dtype) -> Factor:
        """The same gradients in another precision."""
