"""Whether the numbers of a step can be believed, judged by what K, b and the losses must satisfy."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SLACK = 64
"""Rounding that an inner product in float32 may pick up, in units of the precision."""


def doubts(
    finite_loss: Bool[Tensor, " pool"],
    gram: Float[Tensor, "pool pool"] | None,
    alignment: Float[Tensor, " pool"] | None,
    target_square: Float[Tensor, ""] | None,
    precision: torch.dtype,
) -> str | None:
    """The first thing that exact products could not show, or that leaves nothing to rank by.

    In order: gradients that are not finite though the loss is; K with an eigenvalue below zero, after
    K_ij / sqrt(K_ii K_jj), by more than rounding; b_i^2 > K_ii tau^2 (Cauchy-Schwarz); cosines
    b_i / (sqrt(K_ii) |tau|) of all candidates that differ by less than the factors are rounded. A
    Cholesky factorisation of K is the largest cost.

    Args:
        finite_loss: candidates with response tokens and a finite loss.
        gram: K.
        alignment: b.
        target_square: tau^2 in the geometry in which K_ii is a candidate's square; NaN if it is not known.
        precision: of the factors.

    Returns:
        What is wrong, in words; None if nothing is.
    """
    finite = torch.ones_like(finite_loss)
    if gram is not None:
        finite = finite & torch.diagonal(gram).isfinite()
    if alignment is not None:
        finite = finite & alignment.isfinite()
    lost = int((finite_loss & ~finite).sum())
    if lost:
        return f"{lost} of {int(finite_loss.sum())} candidates of finite loss have gradients that are not finite"
    if gram is None:
        return None
    squares = torch.diagonal(gram)
    used = (finite_loss & (squares > 0)).nonzero().squeeze(1)
    if not len(used):
        return None
    length = squares[used].sqrt()
    cosines = gram[used][:, used] / length / length[:, None]
    tolerance = SLACK * len(used) * torch.finfo(gram.dtype).eps
    shifted = cosines + tolerance * torch.eye(len(used), dtype=gram.dtype, device=gram.device)
    if int(torch.linalg.cholesky_ex(shifted).info):
        return "the Gram matrix K has a negative eigenvalue beyond rounding"
    if alignment is None or target_square is None:
        return None
    b, bound = alignment[used], length * target_square.sqrt()
    if bool((b.abs() > bound * (1 + tolerance)).any()):
        return "an alignment b_i exceeds the product of the two gradients' lengths"
    rounding = max(torch.finfo(precision).eps / 2, 16 * torch.finfo(gram.dtype).eps)
    cosine = b / bound
    if len(used) > 1 and bool(cosine.max() - cosine.min() <= rounding):
        return (
            f"the candidates' cosines with the target differ by no more than {rounding:.1g}, the rounding of "
            f"{str(precision).removeprefix('torch.')}: their order says nothing"
        )
    return None
