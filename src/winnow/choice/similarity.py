"""How alike two sets of vectors are."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def cosines(first: Float[Tensor, "one width"], second: Float[Tensor, "other width"]) -> Float[Tensor, "one other"]:
    """Cosines of all pairs, zero where a vector is zero.

    Args:
        first: vectors.
        second: vectors.

    Returns:
        One row per vector of ``first``; NaN where a vector is not finite.
    """

    def unit(vectors: Tensor) -> Tensor:
        # By the largest entry first: squares of huge or tiny entries would overflow or vanish.
        vectors = vectors / vectors.abs().amax(1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
        return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)

    return unit(first) @ unit(second).T
