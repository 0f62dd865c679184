"""From an optimizer's state to the preconditioner P its next update applies to a gradient."""

from __future__ import annotations

from typing import Any

import torch

from winnow.geometry.adam import AdamGeometry
from winnow.geometry.base import Diagonal, Geometry, Identity, Preconditioner
from winnow.geometry.sgd import IdentityGeometry, SGDGeometry

__all__ = [
    "AdamGeometry",
    "Diagonal",
    "Geometry",
    "Identity",
    "IdentityGeometry",
    "Preconditioner",
    "SGDGeometry",
    "geometry_of",
]


def geometry_of(optimizer: Any, geometry: str | Geometry = "auto", first_step: str = "pool") -> Geometry:
    """The geometry of an optimizer.

    Args:
        optimizer: a torch optimizer, or a wrapper that holds it as ``.optimizer``.
        geometry: ``auto`` reads the optimizer, ``identity`` is P = I, or a ``Geometry`` of one's own.
        first_step: what P is before a state exists, for optimizers that need one: ``pool`` or ``identity``.

    Returns:
        The geometry.

    Raises:
        ValueError: the optimizer's geometry is unknown, or ``geometry`` is another word.
    """
    if not isinstance(geometry, str):
        return geometry
    if geometry == "identity":
        return IdentityGeometry()
    if geometry != "auto":
        raise ValueError(f"geometry must be 'auto', 'identity' or a Geometry (scoring.geometry), got {geometry!r}")
    while not isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return AdamGeometry(optimizer, first_step)
    if isinstance(optimizer, torch.optim.SGD):
        return SGDGeometry(optimizer)
    raise ValueError(
        f"no geometry is known for the optimizer {type(optimizer).__name__}: supported are Adam, AdamW and SGD of "
        f"torch.optim; scoring.geometry=identity scores with plain gradients instead"
    )
