"""What FSDP2 itself sends, counted where it sends it: parameters that are gathered, gradients that go to their rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn

from winnow.parallel.ranks import Ranks, reduce_scatter

log = logging.getLogger(__name__)

_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name of torch 2.13


class _Counting:
    """As FSDP2 allocates by default.

    Args:
        ranks: counts what is sent.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A buffer.

        Args:
            size: its shape.
            dtype: of its numbers.
            device: where it is.

        Returns:
            It, not filled in.
        """
        return torch.empty(*size, dtype=dtype, device=device)


class Gathers(_Counting):
    """FSDP2's all-gather, counted."""

    def __call__(
        self,
        output_tensor: Shaped[Tensor, " whole"],
        input_tensor: Shaped[Tensor, " share"],
        group: Any,
        async_op: bool = False,
    ) -> Any:
        """Gather parameters; every process sends its share to each of the others.

        Args:
            output_tensor: takes the shares of all.
            input_tensor: this process's.
            group: the processes.
            async_op: whether the caller waits by itself.

        Returns:
            What the caller waits for.
        """
        self.ranks.sent(dist.get_world_size(group) - 1, input_tensor)
        return _all_gather(output_tensor, input_tensor, group=group, async_op=async_op)


class Scatters(_Counting):
    """FSDP2's reduce-scatter, counted."""

    def __call__(
        self,
        output_tensor: Shaped[Tensor, " share"],
        input_tensor: Shaped[Tensor, " whole"],
        group: Any,
        op: Any,
        async_op: bool = False,
    ) -> Any:
        """Add up gradients; every process sends all but its own rows.

        Args:
            output_tensor: takes this process's rows of the sum.
            input_tensor: this process's gradients.
            group: the processes.
            op: sum or mean.
            async_op: whether the caller waits by itself.

        Returns:
            What the caller waits for.
        """
        size = dist.get_world_size(group)
        self.ranks.sent((size - 1) / size, input_tensor)
        return reduce_scatter(output_tensor, input_tensor, op=op, group=group, async_op=async_op)


def count_traffic(model: nn.Module, ranks: Ranks) -> None:
    """Count in ``ranks.bytes`` what FSDP2 sends of a model, in place of whatever counted it before.

    Args:
        model: split by FSDP2.
        ranks: the processes.
    """
    from torch.distributed.fsdp import FSDPModule

    for name, module in model.named_modules():
        if not isinstance(module, FSDPModule):
            continue
        counted: Any = module
        try:
            counted.set_custom_all_gather(Gathers(ranks))
            counted.set_custom_reduce_scatter(Scatters(ranks))
        except (AttributeError, ValueError) as error:  # an earlier torch, or groups of parameters on several meshes
            log.warning("what FSDP2 sends of %s is not counted in budget/bytes: %s", name or "the model", error)
