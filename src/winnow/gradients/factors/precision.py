"""The precision that sums of gradients are kept in."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision products are taken in: float32, or float64 if the factors are.

    Args:
        dtype: precision of the factors.

    Returns:
        ``torch.float32`` or ``torch.float64``.
    """
    return torch.promote_types(dtype, torch.float32)


def wide(tensor: Tensor) -> Tensor:
    """A tensor of an optimizer's state in the precision products are taken in.

    Args:
        tensor: any floating-point tensor.

    Returns:
        The tensor in float32 or float64.
    """
    return tensor.to(accumulation_dtype(tensor.dtype))
