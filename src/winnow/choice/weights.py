"""Stage 2: coefficients of the candidates that the filter kept, as pure functions of (K, b).

All of them return coefficients >= 0 in float64: 1/2 w'Kw - b'w is what they lower (docs/METHOD.md, "The subset
objective"). ``ridge`` adds ridge * mean(diag K) to the diagonal, so it has no unit.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.choice.quadratic import minimise

WEIGHTS = ("uniform", "proportional", "softmax", "nnls", "simplex", "box")
SOLVED = ("nnls", "simplex", "box")
"""Weightings that need K."""
SAME = 1e-5
"""Two gradients closer than this share of their squared norm are the same, up to float32 rounding."""


def uniform(alignment: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """1/k for each.

    Args:
        alignment: b; only its length matters.

    Returns:
        Coefficients that sum to one.
    """
    size = len(alignment)
    return torch.full((size,), 1 / max(size, 1), dtype=torch.float64, device=alignment.device)


def proportional(alignment: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Proportional to max(b_i, 0).

    Args:
        alignment: b.

    Returns:
        Coefficients that sum to one, or zeros if no b_i is positive.
    """
    positive = alignment.double().clamp_min(0)
    largest = positive.max() if len(positive) else positive.new_zeros(())
    if not largest > 0:
        return torch.zeros_like(positive)
    positive = positive / largest  # the sum of subnormals, or of huge numbers, would not divide
    return positive / positive.sum()


def softmax(alignment: Float[Tensor, " k"], temperature: float = 1.0) -> Float[Tensor, " k"]:
    """Softmax of the standardised b: at raw scale every temperature would be uniform or a maximum.

    Args:
        alignment: b.
        temperature: in standard deviations of b over these k, > 0; towards 0 the best takes all.

    Returns:
        Coefficients that sum to one.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0 (selector.temperature), got {temperature}")
    return torch.softmax(standardise(alignment) / temperature, dim=0)


def standardise(scores: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Scores with mean zero and (population) standard deviation one; all zero where they are all equal.

    Args:
        scores: any finite numbers.

    Returns:
        Standardised scores in float64.
    """
    scores = scores.double()
    if len(scores) == 0:
        return scores
    size = scores.abs().max()
    scores = scores / torch.where(size > 0, size, 1)  # squares of tiny gradients must not underflow
    centred = scores - scores.mean()
    deviation = centred.square().mean().sqrt()
    return centred / deviation if deviation > 1e-12 else torch.zeros_like(centred)


def nnls(gram: Float[Tensor, "k k"], alignment: Float[Tensor, " k"], ridge: float = 0.0) -> Float[Tensor, " k"]:
    """Non-negative least squares: minimise 1/2 w'Kw - b'w over w >= 0.

    Args:
        gram: K, positive semi-definite.
        alignment: b, inner products of the same vectors with the target.
        ridge: relative ridge, >= 0.

    Returns:
        Coefficients; a candidate without a gradient (K_ii = 0) gets zero.
    """
    moving = gram.diagonal() > 0
    weight = torch.zeros(len(alignment), dtype=torch.float64, device=alignment.device)
    weight[moving] = minimise(ridged(gram, ridge)[moving][:, moving], alignment[moving])
    return weight


def simplex(gram: Float[Tensor, "k k"], alignment: Float[Tensor, " k"], ridge: float = 0.0) -> Float[Tensor, " k"]:
    """Minimise 1/2 w'Kw - b'w over w >= 0, sum(w) = 1.

    Args:
        gram: K, positive semi-definite.
        alignment: b.
        ridge: relative ridge, >= 0.

    Returns:
        Coefficients that sum to one, even where every b_i is negative.
    """
    return minimise(ridged(gram, ridge), alignment, total=1.0)


def box(
    gram: Float[Tensor, "k k"], alignment: Float[Tensor, " k"], w_max: float = 1.0, ridge: float = 0.0
) -> Float[Tensor, " k"]:
    """Minimise 1/2 w'Kw - b'w over 0 <= w <= w_max.

    Args:
        gram: K, positive semi-definite.
        alignment: b.
        w_max: largest coefficient, > 0; at 1 a candidate's gradient may enter once against the target's mean.
        ridge: relative ridge, >= 0.

    Returns:
        Coefficients; a candidate without a gradient (K_ii = 0) gets zero.

    Raises:
        ValueError: ``w_max`` is not positive.
    """
    if not w_max > 0:
        raise ValueError(f"w_max must be > 0 (selector.w_max), got {w_max}")
    moving = gram.diagonal() > 0
    weight = torch.zeros(len(alignment), dtype=torch.float64, device=alignment.device)
    weight[moving] = minimise(ridged(gram, ridge)[moving][:, moving], alignment[moving], upper=w_max)
    return weight


def ridged(gram: Float[Tensor, "k k"], ridge: float) -> Float[Tensor, "k k"]:
    """K + ridge * mean(diag K) I.

    Args:
        gram: K.
        ridge: relative ridge, >= 0 and finite.

    Returns:
        The matrix in float64.

    Raises:
        ValueError: ``ridge`` is negative or not finite.
    """
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge must be >= 0 and finite (selector.ridge), got {ridge}")
    gram = gram.double()
    if ridge == 0 or len(gram) == 0:
        return gram
    return gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def distinct(gram: Float[Tensor, "k k"]) -> Int[Tensor, " distinct"]:
    """Positions without later copies of earlier candidates.

    A ridge, or a bound on each weight, would otherwise reward copies: two of them pay less ridge for the
    same sum, so the pair would get more weight than one alone.

    Args:
        gram: K.

    Returns:
        Increasing positions; of candidates with the same gradient only the first.
    """
    square = gram.diagonal()
    apart = square[:, None] + square - 2 * gram
    same = apart <= SAME * torch.minimum(square[:, None], square)
    same &= (square > 0)[:, None] & (square > 0)
    return (~same.tril(-1).any(1)).nonzero().squeeze(1)
