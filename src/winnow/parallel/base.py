"""A model in shards: every process holds some rows of its parameters, and adapters whole (FSDP2)."""

from __future__ import annotations

import logging
import warnings
from typing import Any, cast

from torch import nn

from winnow.geometry import Geometry, StateGeometry
from winnow.lm.shards import gathered, in_rows
from winnow.parallel.ranks import Ranks
from winnow.parallel.traffic import count_traffic

log = logging.getLogger(__name__)


def shard_model(model: nn.Module, mesh: Any, ranks: Ranks) -> None:
    """Split parameters among the processes by rows, block by block; what trains a frozen base stays whole everywhere.

    A block is gathered when it runs and let go again, so that a process holds its share of the model and one block.
    Where more is trained than is frozen, that is split too, and gradients and optimizer state with it.

    Args:
        model: changed in place, before any optimizer or scorer is made.
        mesh: a ``DeviceMesh`` of one dimension, over the processes.
        ranks: the same processes; counts what FSDP2 sends from now on.
    """
    from torch.distributed.fsdp import fully_shard

    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    numbers = [sum(one.numel() for one in model.parameters() if (one in trained) is held) for held in (True, False)]
    kept = trained if numbers[0] <= numbers[1] else set[nn.Parameter]()
    log.info(
        "parallel.base=sharded: %d parameters in rows over %d processes, %d whole in each",
        sum(numbers) - numbers[0] * bool(kept), mesh.size(), numbers[0] * bool(kept),
    )  # fmt: skip
    # Nothing here changes a model's output in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    lists: list[Any] = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    # Let go after every forward, the outermost too: what is gathered is another object than what is trained.
    for block in max(lists, key=len, default=[]):
        fully_shard(block, mesh=mesh, ignored_params=kept, reshard_after_forward=True)
    # Generation calls what peft has wrapped, past the wrapper.
    outermost = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    fully_shard(outermost, mesh=mesh, ignored_params=kept, reshard_after_forward=True)
    count_traffic(model, ranks)


def in_shards(model: nn.Module) -> bool:
    """Whether a process holds a part of the model alone, so that all have to run it together.

    Args:
        model: any.

    Returns:
        True where a parameter is in rows.
    """
    return any(map(in_rows, model.parameters()))


def whole_state(model: nn.Module) -> dict[str, Any]:
    """What ``save_pretrained`` needs of a model whose trained parameters are in rows; called by every process.

    Args:
        model: any.

    Returns:
        ``state_dict``, whole and on the CPU; nothing of a model that can be saved as it is.
    """
    if not any(in_rows(parameter) for parameter in model.parameters() if parameter.requires_grad):
        return {}
    return {"state_dict": gathered(model.state_dict())}


def check_elementwise(geometry: Geometry) -> None:
    """Refuse optimizers whose state says nothing about some rows of a parameter by themselves.

    Args:
        geometry: of the optimizer.

    Raises:
        ValueError: it is such a one.
    """
    if not isinstance(geometry, StateGeometry):
        return
    for group in geometry.optimizer.param_groups:
        if not geometry.rule(group).elementwise:
            raise ValueError(
                f"{type(geometry.optimizer).__name__} looks at whole matrices (or blocks) of a parameter, of which "
                "parallel.base=sharded leaves each process some rows: take optimizer=adamw or sgd, train an adapter "
                "(model/lora=default), or leave parallel.base=whole"
            )
