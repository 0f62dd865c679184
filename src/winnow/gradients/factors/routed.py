"""Per-example gradients of a mixture of experts: outer products of the tokens that each expert was given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.gradients.factors.base import Rows
from winnow.gradients.factors.dense import Formed


@dataclass(frozen=True)
class Routed(Formed):
    """G_i[e] = sum over the slots s of example i routed to expert e of left_i[s] right_i[s]^T.

    A token has as many slots as it has experts. A side that is the same for all slots of a token is held
    once a token.

    Args:
        left: the side that indexes the parameter's second dimension, once a slot or once a token.
        right: the side that indexes its third, likewise.
        expert: the expert of each slot; one that is out of range gives no gradient.
        count: number of experts.
    """

    left: Float[Tensor, "batch left_places rows"]
    right: Float[Tensor, "batch right_places columns"]
    expert: Int[Tensor, "batch slots"]
    count: int

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter."""
        return torch.Size((self.count, self.left.shape[2], self.right.shape[2]))

    @property
    def dtype(self) -> torch.dtype:
        """Precision the factors are held in."""
        return self.left.dtype

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.left)

    def support(self) -> Int[Tensor, " rows"]:
        """The experts that some example reaches."""
        found = self.expert.unique()
        return found[found < self.count]

    def rows(self, rows: Rows) -> Float[Tensor, "batch rows left right"]:
        """Per-example gradients of some experts, an expert at a time."""
        wanted = torch.arange(self.count, device=self.expert.device)[rows].tolist()
        out = self.left.new_zeros(len(self), len(wanted), *self.shape[1:])
        order = self.expert.argsort(dim=1, stable=True)
        for at, number in enumerate(wanted):
            counts = (self.expert == number).sum(1)
            longest = int(counts.max()) if len(counts) else 0
            if longest == 0:
                continue
            place = torch.arange(longest, device=counts.device)
            first = (self.expert < number).sum(1, keepdim=True)
            slots = order.gather(1, (first + place).clamp_max(order.shape[1] - 1))
            left, right = (self._gather(side, slots) for side in (self.left, self.right))
            left = left.masked_fill((place >= counts[:, None])[:, :, None], 0)
            torch.bmm(left.transpose(1, 2), right, out=out[:, at])
        return out

    @property
    def forming(self) -> float:
        """B d p for every slot of the example that has the most of an expert."""
        held = self.expert.new_zeros(len(self), self.count + 1)
        held.scatter_add_(1, self.expert.clamp_max(self.count), torch.ones_like(self.expert))
        return float(len(self) * self.shape[1:].numel() * int(held[:, : self.count].amax(0).sum()))

    @property
    def combining(self) -> float:
        """D p for every slot."""
        return float(self.shape[1:].numel() * int((self.expert < self.count).sum()))

    def combine(
        self, weight: Float[Tensor, " kept"], index: Int[Tensor, " kept"] | None = None
    ) -> Float[Tensor, "count left right"]:
        """sum_i weight_i G_{index_i}, one matmul an expert."""
        kept = self if index is None else self.examples(index)
        out = self.left.new_zeros(self.shape)
        scale = weight.to(torch.promote_types(self.dtype, torch.float32))
        for number, example, left, right in kept._by_expert():
            out[number] = (left * scale[example][:, None]).to(left.dtype).T @ right
        return out

    def inner(self, direction: Float[Tensor, "count left right"]) -> Float[Tensor, " batch"]:
        """<G_i, V> = sum_s left_i[s]^T V[e_s] right_i[s]."""
        out = self.left.new_zeros(len(self))
        for number, example, left, right in self._by_expert():
            out.index_add_(0, example, torch.linalg.vecdot(left @ direction[number].to(self.dtype), right))
        return out

    def examples(self, index: Rows) -> Routed:
        """The gradients of some of the examples."""
        return replace(self, left=self.left[index], right=self.right[index], expert=self.expert[index])

    def to(self, dtype: torch.dtype) -> Routed:
        """The same factors in another precision."""
        return replace(self, left=self.left.to(dtype), right=self.right.to(dtype))

    def _gather(self, side: Tensor, slots: Int[Tensor, "batch some"]) -> Tensor:
        places = slots // (self.expert.shape[1] // side.shape[1])
        return side.gather(1, places[:, :, None].expand(-1, -1, side.shape[2]))

    def _by_expert(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Every expert that was reached, with the examples of its slots and both sides of them."""
        for number in self.support().tolist():
            example, slot = (self.expert == number).nonzero(as_tuple=True)
            sides = (side[example, slot // (self.expert.shape[1] // side.shape[1])] for side in (self.left, self.right))
            yield number, example, *sides
