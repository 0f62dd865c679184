"""The processes of a run, and the few things they tell one another."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from winnow.lm.shards import rows_of

reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)  # its name of torch 2.13

WIRES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def check_wire(wire: str | None) -> None:
    """Refuse a precision that gradients are not sent in.

    Args:
        wire: ``fp32`` | ``bf16``; None for the one they are in.

    Raises:
        ValueError: it is neither.
    """
    if wire is not None and wire not in WIRES:
        raise ValueError(f"parallel.wire must be fp32, bf16 or null for the gradients' own; got {wire!r}")


class Ranks:
    """A group of processes. Every method is called by all of them, in the same order.

    Args:
        wire: precision per-example gradients are sent in, ``fp32`` | ``bf16``; None for the one they are in.
        group: of ``torch.distributed``; the whole world by default.

    Raises:
        ValueError: ``wire`` is neither.
    """

    def __init__(self, wire: str | None = None, group: Any = None) -> None:
        check_wire(wire)
        self.wire = None if wire is None else WIRES[wire]
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        # Of a group of both, what has no device of its own goes over gloo.
        device = f"cuda:{torch.cuda.current_device()}" if dist.get_backend(group) == "nccl" else "cpu"
        self.device = torch.device(device)
        """Where what has no device of its own is sent from."""
        self.bytes = 0
        """Sent by this process so far, by FSDP2 of a model that :func:`winnow.parallel.base.shard_model` split, too."""

    @classmethod
    def alone(cls, wire: str | None = None, seconds: float = 1800) -> Ranks:
        """A group of their own, so that nothing interleaves with another library's collectives.

        Args:
            wire: as of the class.
            seconds: after which a process that waits for another gives up.

        Returns:
            All processes of the world.
        """
        return cls(wire, dist.new_group(timeout=timedelta(seconds=seconds)))

    def share(self, total: int) -> int:
        """Rows of a batch that a process takes; the last ones may have fewer.

        Args:
            total: rows of the batch.

        Returns:
            The same number for every process.
        """
        return -(-total // self.size)

    def rows(self, total: int) -> slice:
        """This process's rows.

        Args:
            total: rows of the batch.

        Returns:
            A range that may be empty.
        """
        return rows_of(self.rank, self.size, total)

    def sum(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum over all processes.

        Args:
            tensor: of the same shape everywhere.

        Returns:
            A new tensor, the same bits everywhere.
        """
        out = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out, group=self.group)
        self.sent(2 * (self.size - 1) / self.size, out)
        return out

    def sums(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Several sums for the price of one.

        Args:
            tensors: of one precision.

        Returns:
            Their sums over all processes.
        """
        if not tensors:
            return []
        flat = self.sum(torch.cat([one.reshape(-1) for one in tensors]))
        parts = flat.split([one.numel() for one in tensors])
        return [part.view(one.shape) for part, one in zip(parts, tensors, strict=True)]

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """Sums of plain numbers over all processes, in float64.

        Args:
            numbers: as many everywhere.

        Returns:
            The same everywhere.
        """
        found: list[float] = self.sum(torch.tensor(numbers, dtype=torch.float64, device=self.device)).tolist()
        return found

    def sum_rows(self, tensor: Float[Tensor, " height *rest"]) -> Float[Tensor, " rows *rest"]:
        """The rows of a sum over all processes that are this one's.

        Args:
            tensor: of the same shape everywhere.

        Returns:
            ``rows(height)`` of the sum.
        """
        return self.sums_rows([tensor])[0]

    def sums_rows(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The rows of several sums for the price of one.

        Args:
            tensors: of one precision, with a first dimension; each as of :meth:`sum_rows`.

        Returns:
            ``rows(height)`` of each sum.
        """
        if not tensors:
            return []
        sent = torch.cat([self._parts(tensor.detach()) for tensor in tensors], 1).contiguous()
        out = sent.new_empty(sent.shape[1])
        reduce_scatter(out, sent.flatten(), group=self.group)
        self.sent((self.size - 1) / self.size, sent)
        found = []
        for tensor, part in zip(tensors, out.split([self._width(tensor) for tensor in tensors]), strict=True):
            mine = self.rows(len(tensor))
            found.append(part.view(self.share(len(tensor)), *tensor.shape[1:])[: mine.stop - mine.start])
        return found

    def _width(self, tensor: Tensor) -> int:
        return self.share(len(tensor)) * tensor.shape[1:].numel()

    def _parts(self, tensor: Tensor) -> Float[Tensor, "ranks numbers"]:
        """A process's rows in each row, zeros where it has no more."""
        missing = self.share(len(tensor)) * self.size - len(tensor)
        whole = torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor
        return whole.reshape(self.size, self._width(tensor))

    def join_rows(self, own: Float[Tensor, " rows *rest"], height: int) -> Float[Tensor, " height *rest"]:
        """The rows of all processes, of a tensor of which each has its own.

        Args:
            own: ``rows(height)`` of it.
            height: rows of the whole.

        Returns:
            The whole.
        """
        missing = self.share(height) - len(own)
        return self.gather(torch.cat([own, own.new_zeros(missing, *own.shape[1:])]) if missing else own, height)

    def gather(self, own: Shaped[Tensor, " share *shape"], total: int) -> Shaped[Tensor, " total *shape"]:
        """Rows of all processes, in order.

        Args:
            own: ``share(total)`` rows.
            total: rows of the batch.

        Returns:
            All rows.
        """
        own = own.detach().contiguous()
        sent = own.to(torch.uint8) if own.dtype == torch.bool else own
        found = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(found, sent, group=self.group)
        self.sent(self.size - 1, sent)
        return torch.cat(found)[:total].to(own.dtype)

    def exchange(self, parts: Shaped[Tensor, "ranks share *shape"]) -> Shaped[Tensor, "ranks share *shape"]:
        """Part r goes to process r.

        Args:
            parts: one for each process.

        Returns:
            What each process sent to this one.
        """
        sent = parts.contiguous() if self.wire is None else parts.to(self.wire).contiguous()
        out = torch.empty_like(sent)
        dist.all_to_all_single(out, sent, group=self.group)
        self.sent((self.size - 1) / self.size, sent)
        return out.to(parts.dtype)

    def everywhere(self, text: str) -> str:
        """What the first process says, for all.

        Args:
            text: the others' is not looked at.

        Returns:
            The first process's.
        """
        said = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.device)
        length = torch.tensor([len(said)], device=self.device)
        dist.broadcast(length, group=self.group, group_src=0)
        said = said if self.rank == 0 else said.new_empty(int(length))
        dist.broadcast(said, group=self.group, group_src=0)
        return bytes(said.tolist()).decode()

    def anywhere(self, flag: bool) -> bool:
        """Whether a flag is up in any process.

        Args:
            flag: this process's.

        Returns:
            The same everywhere.
        """
        up = torch.tensor([int(flag)], device=self.device)
        dist.all_reduce(up, group=self.group)  # of no account among what is sent
        return bool(up > 0)

    def sent(self, times: float, tensor: Shaped[Tensor, "*shape"]) -> None:
        """Count what this process sends.

        Args:
            times: how often it sends the tensor, over all the others.
            tensor: what is sent.
        """
        self.bytes += int(times * tensor.numel() * tensor.element_size())
