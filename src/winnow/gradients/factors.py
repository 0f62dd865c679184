"""Per-example gradients of one parameter, kept as factors for as long as possible.

Four kinds, one interface (``Factor``): an outer product of activations (linear maps; in a module of its
own), a scatter of output gradients to rows (embeddings), a dense block (everything else), and the sum of
several contributions to one parameter (tied weights, a module called twice).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

LARGE = 2**14
"""On a CPU, gradients of at least so many numbers are combined one at a time, without a copy of the chosen ones."""

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


@dataclass(frozen=True)
class Scatter:
    """G_i[token] = sum of values_i[t] over the positions t that hold the token: an embedding's gradient.

    Args:
        tokens: row of the table used at each position.
        values: output gradients, zero where the position gives no gradient (``padding_idx``).
        size: number of rows of the table.
    """

    tokens: Int[Tensor, "batch tokens"]
    values: Float[Tensor, "batch tokens width"]
    size: int

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter."""
        return torch.Size((self.size, self.values.shape[2]))

    @property
    def dtype(self) -> torch.dtype:
        """Precision the gradients are held in."""
        return self.values.dtype

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.tokens)

    def support(self) -> Int[Tensor, " rows"]:
        """The distinct tokens of the batch."""
        return self.tokens.unique()

    def rows(self, rows: Rows) -> Float[Tensor, "batch rows width"]:
        """Per-example gradients of some rows of the table."""
        if isinstance(rows, slice):
            rows = torch.arange(self.size, device=self.tokens.device)[rows]
        place = torch.full((self.size,), len(rows), device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        index = place[self.tokens]
        flat = (index + len(rows) * torch.arange(len(self), device=rows.device)[:, None]).flatten()
        values, wanted = self.values.flatten(0, 1), (index < len(rows)).flatten()
        if not bool(wanted.all()):
            flat, values = flat[wanted], values[wanted]
        out = values.new_zeros(len(self) * len(rows), values.shape[1])
        return out.index_add_(0, flat, values).view(len(self), len(rows), -1)

    def combine(
        self, weight: Float[Tensor, " kept"], index: Int[Tensor, " kept"] | None = None
    ) -> Float[Tensor, "size width"]:
        """sum_i weight_i G_{index_i} by one scatter."""
        kept = self if index is None else self.examples(index)
        # A frequent token is added to many times over: half precision would lose the later ones.
        wide = torch.promote_types(self.dtype, torch.float32)
        values = kept.values * weight.to(wide)[:, None, None]
        out = values.new_zeros(self.shape)
        return out.index_add_(0, kept.tokens.flatten(), values.flatten(0, 1)).to(self.dtype)

    def inner(self, direction: Float[Tensor, "size width"]) -> Float[Tensor, " batch"]:
        """<G_i, V> by gathering the rows of V."""
        gathered = direction.to(self.dtype)[self.tokens]
        return torch.linalg.vecdot(gathered.flatten(1), self.values.flatten(1))

    def scaled(self, scale: Float[Tensor, "size width"]) -> Scatter:
        """Scale o G_i; the scale of a token's row goes to each of its positions."""
        return Scatter(self.tokens, self.values * scale[self.tokens], self.size)

    def examples(self, index: Rows) -> Scatter:
        """The gradients of some of the examples."""
        return Scatter(self.tokens[index], self.values[index], self.size)

    def to(self, dtype: torch.dtype) -> Scatter:
        """The same gradients in another precision."""
        return Scatter(self.tokens, self.values.to(dtype), self.size)


@dataclass(frozen=True)
class Dense:
    """Gradients stored as they are: biases, norms, and whatever has no factored form.

    Args:
        values: one gradient per example.
    """

    values: Float[Tensor, " batch *shape"]

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter."""
        return self.values.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        """Precision the gradients are held in."""
        return self.values.dtype

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.values)

    def support(self) -> None:
        """Every row is touched."""

    def rows(self, rows: Rows) -> Float[Tensor, "batch rows *rest"]:
        """Per-example gradients of some rows."""
        values = self.values if self.shape else self.values[:, None]
        return values[:, rows].clone()

    def combine(
        self, weight: Float[Tensor, " kept"], index: Int[Tensor, " kept"] | None = None
    ) -> Float[Tensor, "*shape"]:
        """sum_i weight_i G_{index_i}."""
        wide = torch.promote_types(self.dtype, torch.float32)
        if self.values.device.type == "cpu" and self.shape.numel() >= LARGE:
            out = self.values.new_zeros(self.shape, dtype=wide)
            rows = range(len(self)) if index is None else index.tolist()
            for row, share in zip(rows, weight.tolist(), strict=True):
                out.add_(self.values[row], alpha=share)
            return out.to(self.dtype)
        values = self.values if index is None else self.values[index]
        return torch.tensordot(weight.to(wide), values.to(wide), dims=1).to(self.dtype)

    def inner(self, direction: Float[Tensor, "*shape"]) -> Float[Tensor, " batch"]:
        """<G_i, V>."""
        return self.values.reshape(len(self), -1) @ direction.to(self.dtype).reshape(-1)

    def examples(self, index: Rows) -> Dense:
        """The gradients of some of the examples."""
        return Dense(self.values[index])

    def to(self, dtype: torch.dtype) -> Dense:
        """The same gradients in another precision."""
        return Dense(self.values.to(dtype))


@dataclass(frozen=True)
class Sum:
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


@dataclass(frozen=True)
class Scaled:
    """Gradients multiplied elementwise by one tensor: scale o G_i.

    Args:
        factor: the gradients.
        scale: multiplier of the parameter's shape.
    """

    factor: Factor
    scale: Float[Tensor, "*shape"]

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter."""
        return self.factor.shape

    @property
    def dtype(self) -> torch.dtype:
        """Precision the gradients are held in."""
        return self.factor.dtype

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.factor)

    def support(self) -> Int[Tensor, " rows"] | None:
        """Rows of the gradients below."""
        return self.factor.support()

    def rows(self, rows: Rows) -> Float[Tensor, "batch rows *rest"]:
        """Per-example gradients of some rows, scaled."""
        scale = self.scale if self.shape else self.scale[None]
        if isinstance(self.factor, Dense) and self.shape:
            return self.factor.values[:, rows] * scale[rows]  # no copy before
        return self.factor.rows(rows).mul_(scale[rows])

    def combine(
        self, weight: Float[Tensor, " kept"], index: Int[Tensor, " kept"] | None = None
    ) -> Float[Tensor, "*shape"]:
        """Scaled weighted sum."""
        return self.scale * self.factor.combine(weight, index)

    def inner(self, direction: Float[Tensor, "*shape"]) -> Float[Tensor, " batch"]:
        """<scale o G_i, V> = <G_i, scale o V>."""
        return self.factor.inner(self.scale * direction)

    def examples(self, index: Rows) -> Scaled:
        """The gradients of some of the examples."""
        return Scaled(self.factor.examples(index), self.scale)

    def to(self, dtype: torch.dtype) -> Scaled:
        """The same gradients in another precision."""
        return Scaled(self.factor.to(dtype), self.scale.to(dtype))
