"""Stage 1: which k of B candidates to keep, as pure functions of (K, b) (docs/METHOD.md, "Stage 1, filter").

Each returns distinct positions, best first; ties go to the earlier position. Inputs are finite: candidates
without a usable score are left out before. Work is in float64.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.choice.quadratic import minimise
from winnow.choice.weights import nnls as nnls_weights
from winnow.choice.weights import ridged

FILTERS = ("top", "cosine", "omp", "nnls", "greedy")
SOLVED = ("omp", "nnls", "greedy")
"""Filters that need K, and not only its diagonal."""
NO_GAIN = 1e-10
"""Residual correlations below this share of the first one are rounding."""


def top(scores: Float[Tensor, " pool"], k: int) -> Int[Tensor, " kept"]:
    """The k highest scores.

    Args:
        scores: one number per candidate, for example b.
        k: how many to keep.

    Returns:
        min(k, B) positions.
    """
    return scores.sort(descending=True, stable=True).indices[:k]


def cosine(alignment: Float[Tensor, " pool"], norms: Float[Tensor, " pool"], k: int) -> Int[Tensor, " kept"]:
    """The k highest b_i / ||u_i||: the largest angles' cosines with the target, whose norm is common.

    Args:
        alignment: b.
        norms: sqrt(K_ii); a candidate without a gradient has cosine zero.
        k: how many to keep.

    Returns:
        min(k, B) positions.
    """
    return top(per_norm(alignment, norms), k)


def per_norm(alignment: Float[Tensor, " pool"], norms: Float[Tensor, " pool"]) -> Float[Tensor, " pool"]:
    """b_i / ||u_i||, zero where there is no gradient.

    Args:
        alignment: b.
        norms: sqrt(K_ii), >= 0.

    Returns:
        The quotients in float64.
    """
    norms = norms.double()
    return torch.where(norms > 0, alignment.double() / torch.where(norms > 0, norms, 1), 0)


def omp(
    gram: Float[Tensor, "pool pool"],
    alignment: Float[Tensor, " pool"],
    k: int,
    ridge: float = 0.0,
    fill: bool = True,
    normalised: bool = True,
) -> Int[Tensor, " kept"]:
    """Non-negative orthogonal matching pursuit (Pati et al. 1993; the non-negative form: Bruckstein et al. 2008).

    Repeats: pick the largest residual correlation (b_i - K_iS w_S) / sqrt(K_ii), refit w_S >= 0 by NNLS.

    Args:
        gram: K.
        alignment: b.
        k: how many to keep.
        ridge: relative ridge of the refits, >= 0 (selector.ridge).
        fill: when no residual correlation is positive any more, go on with the largest ones all the same.
        normalised: divide by sqrt(K_ii); GRAD-MATCH does not.

    Returns:
        min(k, B) positions; fewer if not ``fill``.
    """
    gram, alignment = gram.double(), alignment.double()
    size, k = len(alignment), min(k, len(alignment))
    norms = gram.diagonal().clamp_min(0).sqrt()
    shrink = ridge * gram.diagonal().mean() if size else 0.0
    small, rows = gram.new_zeros(k, k), gram.new_zeros(k, size)
    taken = torch.zeros(size, dtype=torch.bool, device=gram.device)
    picked: list[int] = []
    weight, scores, floor = gram.new_zeros(0), alignment, 0.0
    for count in range(k):
        scores = alignment - rows[:count].T @ weight
        scores = per_norm(scores, norms) if normalised else scores
        scores = torch.where(taken, -math.inf, scores)
        best = int(scores.argmax())
        if count == 0:
            floor = NO_GAIN * max(float(scores[best]), 0.0)
        if not scores[best] > floor:
            break
        rows[count] = gram[best]
        picked.append(best)
        taken[best] = True
        small[count, : count + 1] = gram[best, picked]
        small[: count + 1, count] = gram[best, picked]
        small[count, count] += shrink
        weight = torch.cat([weight, weight.new_zeros(1)])
        weight = minimise(small[: count + 1, : count + 1], alignment[picked], start=weight)
    chosen = torch.tensor(picked, dtype=torch.long, device=gram.device)
    return _filled(chosen, scores, taken, k) if fill else chosen


def nnls(
    gram: Float[Tensor, "pool pool"], alignment: Float[Tensor, " pool"], k: int, ridge: float = 0.0, fill: bool = True
) -> Int[Tensor, " kept"]:
    """The k largest coefficients of NNLS over the whole pool.

    Args:
        gram: K.
        alignment: b.
        k: how many to keep.
        ridge: relative ridge, >= 0 (selector.ridge).
        fill: if fewer than k coefficients are positive, go on with the largest residual correlations.

    Returns:
        min(k, B) positions; fewer if not ``fill``.
    """
    gram, alignment = gram.double(), alignment.double()
    weight = nnls_weights(gram, alignment, ridge)
    order = weight.sort(descending=True, stable=True).indices
    chosen = order[: min(k, int((weight > 0).sum()))]
    if not fill:
        return chosen
    taken = torch.zeros(len(alignment), dtype=torch.bool, device=gram.device)
    taken[chosen] = True
    residual = per_norm(alignment - gram @ weight, gram.diagonal().clamp_min(0).sqrt())
    return _filled(chosen, torch.where(taken, -math.inf, residual), taken, k)


def greedy(
    gram: Float[Tensor, "pool pool"], alignment: Float[Tensor, " pool"], k: int, ridge: float = 0.0, fill: bool = True
) -> Int[Tensor, " kept"]:
    """Greedy growth of the set whose sum, at its best scale, comes closest to the target.

    With one coefficient s for all of S, min_s 1/2 s^2 1'K1 - s 1'b = -(1'b)^2 / (2 1'K1): each step adds the
    candidate with the largest 1'b / sqrt(1'K1), the cosine of the set's sum with the target.

    Args:
        gram: K.
        alignment: b.
        k: how many to keep.
        ridge: relative ridge, >= 0 (selector.ridge).
        fill: go on to k when no candidate improves the set any more.

    Returns:
        min(k, B) positions; fewer if not ``fill``.
    """
    gram, alignment = ridged(gram, ridge), alignment.double()
    size, square = len(alignment), gram.diagonal().clone()
    taken = torch.zeros(size, dtype=torch.bool, device=gram.device)
    cross = torch.zeros_like(alignment)
    gain, length, reached = 0.0, 0.0, 0.0
    picked: list[int] = []
    for _ in range(min(k, size)):
        lengths = (length + 2 * cross + square).clamp_min(0)
        # Below rounding of its own terms the sum's length is zero: opposite gradients that cancel.
        lengths = torch.where(lengths > NO_GAIN * (length + square), lengths, 0)
        scores = torch.where(taken, -math.inf, per_norm(alignment + gain, lengths.sqrt()))
        best = int(scores.argmax())
        if not fill and not scores[best] > reached * (1 + NO_GAIN):
            break
        picked.append(best)
        taken[best] = True
        gain, length = gain + float(alignment[best]), float(lengths[best])
        cross, reached = cross + gram[best], max(float(scores[best]), 0.0)
    return torch.tensor(picked, dtype=torch.long, device=gram.device)


def _filled(chosen: Tensor, scores: Tensor, taken: Tensor, k: int) -> Tensor:
    """``chosen`` and then the highest of the other scores, up to k."""
    order = torch.where(taken, -math.inf, scores).sort(descending=True, stable=True).indices
    return torch.cat([chosen, order[: max(min(k, len(scores)) - len(chosen), 0)]])
