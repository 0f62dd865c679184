"""Adam and AdamW of bitsandbytes: moments kept in eight bits, or in 32 for small parameters."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor

from winnow.geometry.adam import AdamRule
from winnow.geometry.base import Group, State
from winnow.gradients.factors.precision import wide

BLOCK = 256
"""Numbers that share one scale in bitsandbytes' optimizer states."""


class Adam8bitRule(AdamRule):
    """AdamW's rule on dequantised moments."""

    elementwise = False  # blocks of a quantised moment end where they like

    def first_moment(self, state: State) -> Float[Tensor, "*shape"]:
        """m, without bias correction.

        Args:
            state: a parameter's state.

        Returns:
            The moment in float32.
        """
        return _moment(state, 1)

    def second_moment(self, group: Group, state: State) -> Float[Tensor, "*shape"]:
        """v, without bias correction.

        Args:
            group: options of the parameter's group.
            state: its state.

        Returns:
            The moment in float32.
        """
        return _moment(state, 2)


def is_adam8bit(optimizer: Any) -> bool:
    """Whether an optimizer is an Adam or AdamW of bitsandbytes; the package is not imported for it.

    Args:
        optimizer: any object.

    Returns:
        True for its Adam family, paged or not, 8 or 32 bits.
    """
    ours = any(kind.__module__.split(".")[0] == "bitsandbytes" for kind in type(optimizer).__mro__)
    return ours and getattr(optimizer, "optimizer_name", None) == "adam"


def _moment(state: State, number: int) -> Tensor:
    stored = state[f"state{number}"]
    if f"qmap{number}" not in state:
        return wide(stored)
    return dequantise(stored, state[f"qmap{number}"], state[f"absmax{number}"])


def dequantise(
    codes: UInt8[Tensor, "*shape"], levels: Float[Tensor, " 256"], largest: Float[Tensor, " blocks"]
) -> Float[Tensor, "*shape"]:
    """Numbers from blockwise eight-bit codes.

    Args:
        codes: index of each number's level.
        levels: the levels, within [-1, 1].
        largest: scale of each block of 256 consecutive numbers.

    Returns:
        The numbers in float32.
    """
    scale = largest.repeat_interleave(BLOCK)[: codes.numel()]
    return (levels[codes.flatten().long()] * scale).view(codes.shape).float()
