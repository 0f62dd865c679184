"""The sums over parameters that a pool's products are."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from winnow.gradients.factors.precision import accumulation_dtype
from winnow.signals import Needs


class Sums:
    """K_ij = <g_i, P^p g_j>, b_i = <g_i, P^a tau>, ||P^(q/2) g_i||^2 and what else is asked for, summed so far.

    Args:
        needs: the powers p (``gram``), a (``alignment``), q (``norms``), and what else is to be summed.
        size: number of candidates B.
        dtype: precision of the gradients; sums are kept in float32 at least.
        device: where the sums live.
        tasks: number of target tasks, for ``needs.per_task``.
    """

    def __init__(self, needs: Needs, size: int, dtype: torch.dtype, device: torch.device, tasks: int = 0) -> None:
        self.needs, self.precision = needs, dtype
        zeros = torch.zeros(size, dtype=accumulation_dtype(dtype), device=device)
        self.alignment = None if needs.alignment is None else zeros.clone()
        self.gram = None if needs.gram is None else zeros[:, None].repeat(1, size)
        # The diagonal of K serves when it is of the same power.
        self.squares = None if needs.norms is None or needs.norms == needs.gram else zeros.clone()
        self.power = needs.norms if needs.gram is None else needs.gram
        """Of P in K, or in the norms where there is no K."""
        both = self.alignment is not None and (self.gram is not None or (needs.target_norm and self.power is not None))
        self.target_square = zeros.new_zeros(()) if both else None
        """tau^2 in the geometry of K, so that b_i^2 <= K_ii tau^2; NaN where K and b are taken of different forms."""
        self.task_alignment = zeros.repeat(tasks, 1) if needs.per_task else None
        self.task_squares = zeros.new_zeros(tasks) if needs.per_task else None
        self.curvature = zeros.clone() if needs.curvature else None

    @property
    def norms(self) -> Float[Tensor, " pool"] | None:
        """||P^(q/2) g_i||."""
        if self.needs.norms is None:
            return None
        squares = self.squares if self.squares is not None else torch.diagonal(self.gram)  # type: ignore[arg-type]
        return squares.clamp_min(0).sqrt()

    def finite(self) -> Bool[Tensor, " pool"]:
        """Which candidates' own sums are finite numbers.

        Returns:
            Of b, the norms and the diagonal of K, those that are taken.
        """
        taken = [self.alignment, self.norms, None if self.gram is None else torch.diagonal(self.gram)]
        return torch.stack([values.isfinite() for values in taken if values is not None]).all(0)

    def first(self, total: int) -> Sums:
        """Let go of the last candidates.

        Args:
            total: how many stay.

        Returns:
            The same sums.
        """
        for name in ("alignment", "squares", "curvature"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[:total])
        self.gram = None if self.gram is None else self.gram[:total, :total]
        self.task_alignment = None if self.task_alignment is None else self.task_alignment[:, :total]
        return self
