"""Lightning's part of a model in shards: nothing is wrapped, and what is saved is whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from winnow.lm.shards import gathered, held_as


class ShardedStrategy(DDPStrategy):
    """Processes that share a model which FSDP2 has split already, and that reduce gradients by themselves.

    A checkpoint is one file of whole tensors, as one process writes it, and goes on with any number of processes. The
    first process has all of it in its memory while it is written.
    """

    def configure_ddp(self) -> None:
        """Leave the module as it is."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Parameters and buffers, whole.

        Returns:
            The module's state; called by every process.
        """
        state: dict[str, Any] = gathered(dict(super().lightning_module_state_dict()))
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """An optimizer's state, whole.

        Args:
            optimizer: one of the trainer's.

        Returns:
            Its state; called by every process.
        """
        state: dict[str, Any] = gathered(super().optimizer_state(optimizer))
        return state

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take up this process's rows.

        Args:
            checkpoint: with whole tensors.
            strict: whether all names have to be there.
        """
        assert self.lightning_module is not None
        held = cut(checkpoint["state_dict"], self.lightning_module)
        super().load_model_state_dict({**checkpoint, "state_dict": held}, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take up the state of this process's rows.

        Args:
            checkpoint: with whole tensors.
        """
        states = [
            _cut_state(state, optimizer)
            for state, optimizer in zip(checkpoint["optimizer_states"], self.optimizers, strict=True)
        ]
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})


def cut(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Whole parameters as a module holds them.

    Args:
        state: by name.
        module: some of whose parameters may be in rows.

    Returns:
        The same, those in rows cut to this process's.
    """
    held = dict(module.named_parameters(remove_duplicate=False))
    return {name: held_as(value, held[name]) if name in held else value for name, value in state.items()}


def _cut_state(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    of = dict(zip(numbers, held, strict=True))
    each = {
        number: {
            key: held_as(value, of[number]) if isinstance(value, Tensor) and value.shape == of[number].shape else value
            for key, value in one.items()
        }
        for number, one in state["state"].items()
    }
    return {**state, "state": each}
