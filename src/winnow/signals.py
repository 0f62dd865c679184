"""What a selector may ask for, and what it is given: pure data between scoring and choosing."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

POWERS = (0, 1, 2)


@dataclass(frozen=True)
class Needs:
    """What a selector asks the scorer to compute; the scorer computes exactly that.

    Powers are powers of the optimizer's preconditioner P (docs/METHOD.md): 0 is raw gradients,
    1 is P, 2 is P squared. ``None`` means the quantity is not needed.

    Args:
        losses: per-example losses of the pool (a forward pass).
        alignment: a in b_i = <g_i, P^a tau>, tau the target gradient.
        gram: p in K_ij = <g_i, P^p g_j>.
        norms: p in ||P^(p/2) g_i||; cheaper than ``gram`` where only its diagonal is used.
        momentum: subtract from tau what the optimizer's momentum already brings.

    Raises:
        ValueError: a power is not 0, 1 or 2.
    """

    losses: bool = False
    alignment: int | None = None
    gram: int | None = None
    norms: int | None = None
    momentum: bool = False

    def __post_init__(self) -> None:
        for name in ("alignment", "gram", "norms"):
            power = getattr(self, name)
            if power is not None and power not in POWERS:
                raise ValueError(f"Needs.{name} is a power of P, one of {POWERS}; got {power!r}")

    @property
    def backward(self) -> bool:
        """Whether per-example gradients are needed at all; False never pays for a backward."""
        return any(power is not None for power in (self.alignment, self.gram, self.norms))

    @property
    def target(self) -> bool:
        """Whether a target batch is needed."""
        return self.alignment is not None

    @property
    def forward(self) -> bool:
        """Whether the pool has to be scored at all."""
        return self.losses or self.backward


@dataclass(frozen=True)
class Signals:
    """What scoring one pool gave. Only what was asked for is set; selectors see nothing else.

    Args:
        valid: candidates that may be chosen: response tokens present, loss finite.
        tokens: response tokens of each candidate, those its loss averages over.
        losses: per-example losses, NaN where the candidate has no response token.
        alignment: b, the first-order utility of each candidate.
        gram: K, the inner products of the candidates.
        norms: the gradient norms.
    """

    valid: Bool[Tensor, " pool"]
    tokens: Int[Tensor, " pool"]
    losses: Float[Tensor, " pool"] | None = None
    alignment: Float[Tensor, " pool"] | None = None
    gram: Float[Tensor, "pool pool"] | None = None
    norms: Float[Tensor, " pool"] | None = None

    def __len__(self) -> int:
        """Size of the pool, B."""
        return len(self.valid)
