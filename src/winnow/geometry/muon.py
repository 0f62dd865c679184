"""Muon, linearised: the Newton-Schulz matrix is frozen at that of the momentum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.geometry.base import Group, Preconditioner, State, UpdateRule
from winnow.geometry.preconditioners import Identity, OneSided
from winnow.gradients.factors.precision import wide
from winnow.optim import shape_factor


class MuonRule(UpdateRule):
    """``torch.optim.Muon``: P G = r q(U U^T) G, or r G q(U^T U) for a tall matrix.

    Newton-Schulz turns a matrix X into q(X X^T) X, with a polynomial q over its norm. P freezes q at U,
    what the momentum brings to the coming update, and r is the learning rate's factor for the shape. The
    polynomial is taken in full precision, where torch's optimizer itself works in bfloat16; on a CPU
    :class:`winnow.optim.MuonWithAdamW` does not.
    """

    elementwise = False

    def step_size(self, group: Group, state: State, rate: float) -> float:
        """Rate times the gradient's own share of the update: 1 - momentum, with Nesterov 1 - momentum^2.

        Args:
            group: options of the parameter's group.
            state: its state.
            rate: learning rate.

        Returns:
            What multiplies P g in the update.
        """
        return float(rate * (1 - group["momentum"] ** (2 if group["nesterov"] else 1)))

    def preconditioner(
        self,
        parameter: torch.nn.Parameter,
        group: Group,
        state: State,
        mean: Callable[[], Float[Tensor, "rows columns"]] | None,
    ) -> Preconditioner:
        """The frozen Newton-Schulz matrix."""
        frozen = self.momentum(group, state)
        if frozen is None or not bool(frozen.any()):
            if mean is None:
                return Identity()
            frozen = mean() * self.step_size(group, state, 1.0)
        values, vectors = newton_schulz(frozen, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = frozen.shape
        return OneSided(values * shape_factor(group["adjust_lr_fn"], rows, columns), vectors, right=rows > columns)

    def momentum(self, group: Group, state: State) -> Float[Tensor, "rows columns"] | None:
        """The momentum times the buffer; with Nesterov, momentum squared * buffer."""
        buffer = state.get("momentum_buffer")
        if buffer is None or group["momentum"] == 0:
            return None
        return wide(buffer) * group["momentum"] ** (2 if group["nesterov"] else 1)


def newton_schulz(
    matrix: Float[Tensor, "rows columns"], coefficients: tuple[float, float, float], count: int, eps: float
) -> tuple[Float[Tensor, " side"], Float[Tensor, "side side"]]:
    """The matrix A on the shorter side such that Newton-Schulz of X is A X, or X A if X is tall.

    Args:
        matrix: X.
        coefficients: a, b, c of a step X <- a X + b (X X^T) X + c (X X^T)^2 X.
        count: number of steps.
        eps: least norm that X is divided by.

    Returns:
        Eigenvalues and eigenvectors of A.

    Raises:
        ValueError: A is not positive semi-definite, which coefficients other than the usual may bring about.
    """
    a, b, c = coefficients
    norm = matrix.norm().clamp_min(eps)
    unit = matrix / norm
    squares, vectors = torch.linalg.eigh(unit.T @ unit if matrix.shape[0] > matrix.shape[1] else unit @ unit.T)
    singular = squares.clamp_min(0).sqrt()
    gain = torch.ones_like(singular)
    for _ in range(count):
        factor = a + b * singular**2 + c * singular**4
        gain, singular = gain * factor, singular * factor
    if not bool((gain >= 0).all()):
        raise ValueError(
            f"Newton-Schulz with ns_coefficients={tuple(coefficients)} and ns_steps={count} is not positive "
            f"semi-definite, so it defines no geometry; use torch's own optimizer.ns_coefficients, or "
            f"scoring.geometry=identity"
        )
    return gain / norm, vectors
