"""A frozen base in shards: every process holds a part of it, and whole adapters (FSDP2)."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor


def shard_base(model: nn.Module, device: str, size: int) -> None:
    """Split the frozen parameters among the processes by rows, block by block; trained ones stay whole everywhere.

    A block is gathered when it runs and let go again, so that a process holds its share of the base and one block.

    Args:
        model: with an adapter; changed in place, before any optimizer or scorer is made.
        device: ``cpu`` | ``cuda``.
        size: processes.

    Raises:
        ValueError: more than adapters is trained, so that whole copies would be no saving.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    numbers = [sum(one.numel() for one in model.parameters() if (one in trained) is whole) for whole in (True, False)]
    if numbers[0] > numbers[1]:
        raise ValueError(
            f"parallel.base=sharded splits a frozen base, and {numbers[0]} of {sum(numbers)} parameters are trained: "
            "train an adapter (model/lora=default), or leave parallel.base=whole"
        )
    mesh = init_device_mesh(device, (size,))
    lists: list[Any] = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for block in max(lists, key=len, default=[]):
        fully_shard(block, mesh=mesh, ignored_params=trained)
    fully_shard(model, mesh=mesh, ignored_params=trained)


def in_shards(model: nn.Module) -> bool:
    """Whether a process holds a part of the model alone, so that all have to run it together.

    Args:
        model: any.

    Returns:
        True where a parameter is a ``DTensor``.
    """
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def sharded_names(module: nn.Module) -> list[str]:
    """Names of what is held in shards.

    Args:
        module: any.

    Returns:
        Of parameters.
    """
    return [name for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)]
