"""Parameters of which every process holds some rows (FSDP2's ``DTensor``), and what goes with them."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Shaped
from torch import Tensor


def in_rows(tensor: Tensor) -> bool:
    """Whether a process holds some rows of it alone.

    Args:
        tensor: any.

    Returns:
        True of a ``DTensor``.
    """
    return hasattr(tensor, "to_local")


def here(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor.

    Args:
        tensor: any.

    Returns:
        Its own rows, or the tensor itself.
    """
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; called by every process that holds rows of it.

    Args:
        tensor: any.

    Returns:
        All rows, or the tensor itself.
    """
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


def rows_of(rank: int, size: int, total: int) -> slice:
    """A process's rows of a parameter or a batch: ceil(rows / processes) for each, as torch's ``Shard(0)`` has it.

    Args:
        rank: of the process.
        size: how many there are.
        total: rows.

    Returns:
        A range that may be empty.
    """
    share = -(-total // size)
    return slice(min(rank * share, total), min((rank + 1) * share, total))


def rows_here(parameter: Tensor) -> slice:
    """Which rows this process holds.

    Args:
        parameter: in rows.

    Returns:
        A range that may be empty.
    """
    mesh: Any = parameter.device_mesh  # type: ignore[attr-defined]
    return rows_of(mesh.get_local_rank(), mesh.size(), parameter.shape[0])


def from_rows(rows: Float[Tensor, " rows *rest"], parameter: Float[Tensor, " height *rest"]) -> Tensor:
    """A tensor of which every process has its rows.

    Args:
        rows: those of this process.
        parameter: is held in the same way.

    Returns:
        The tensor, held as the parameter is.
    """
    from torch.distributed.tensor import DTensor

    mesh: Any = parameter.device_mesh  # type: ignore[attr-defined]
    placements: Any = parameter.placements  # type: ignore[attr-defined]
    return DTensor.from_local(rows, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride())


def held_as(tensor: Shaped[Tensor, "*shape"], parameter: Shaped[Tensor, "*shape"]) -> Tensor:
    """A tensor that every process has whole, held as a parameter is.

    Args:
        tensor: the same everywhere.
        parameter: of the same shape.

    Returns:
        Of a parameter in rows, the tensor in rows; otherwise the tensor itself.
    """
    if not in_rows(parameter) or in_rows(tensor):
        return tensor
    return from_rows(tensor[rows_here(parameter)].to(parameter.device), parameter)


def number(tensor: Tensor) -> float:
    """A sum or a norm as a number; called by every process.

    Args:
        tensor: of one element.

    Returns:
        Its value over all rows.
    """
    return float(whole(tensor))


def gathered(state: Any) -> Any:
    """Everything in rows made whole, for what is saved; called by every process, in the same order.

    Args:
        state: plain containers and tensors.

    Returns:
        The same, with tensors that were in rows whole and on the CPU.
    """
    if isinstance(state, Tensor):
        return whole(state).detach().cpu() if in_rows(state) else state
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value) for value in state)
    return state
