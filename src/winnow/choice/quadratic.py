"""A small convex quadratic programme, solved exactly: the solver behind every weighting that is optimal.

A primal active-set method (Nocedal & Wright 2006, algorithm 16.3; for bounds alone it is that of Lawson & Hanson 1974,
chapter 23), in float64. It holds a feasible w, moves to the minimum over the free entries, stops at the first bound
met, and frees the entry whose multiplier is most wrong until none is: the KKT conditions then hold up to rounding. K
may be singular; along a direction without curvature it moves to the next bound.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDING = 1e-12
"""Slopes below this share of the terms they are a difference of count as zero."""
SINGULAR = 1e-11
"""Squared pivots and eigenvalues of a unit-diagonal matrix below this count as zero."""


def minimise(
    gram: Float[Tensor, "k k"],
    linear: Float[Tensor, " k"],
    upper: float = math.inf,
    total: float | None = None,
    start: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, " k"]:
    """Minimise 1/2 w'Kw - b'w over 0 <= w <= upper, optionally with sum(w) = total.

    Args:
        gram: K, symmetric positive semi-definite.
        linear: b. Without ``upper`` and ``total`` the problem is bounded only if b lies in K's range, as it
            does where K and b are inner products with the same vectors.
        upper: bound on every entry; ``math.inf`` for none. Not to be combined with ``total``.
        total: what the entries must sum to, > 0; None for no such condition.
        start: a feasible point to start from, for a problem that grew by a candidate.

    Returns:
        The minimiser in float64, exact zeros (and exact ``upper``) at the bounds. If K is singular,
        one of them.

    Raises:
        ValueError: the bounds leave nothing to choose from.
    """
    if not upper > 0 or (total is not None and (not total > 0 or upper != math.inf)):
        raise ValueError(f"upper must be > 0, total > 0 and without upper; got upper={upper}, total={total}")
    gram, linear = gram.double(), linear.double()
    if len(linear) == 0:
        return linear.clone()
    weight = _beginning(gram, linear, total) if start is None else start.double().clone()
    free = (weight > 0) & (weight < upper)
    magnitude, norm = gram.abs(), gram.diagonal().clamp_min(0).sqrt()
    norm = torch.where(norm > 0, norm, 1)
    barred = torch.zeros_like(free)  # freed without any progress since the last progress
    freed: int | None = None
    settled = (start is None or total is not None) and bool(free.sum() <= (total is not None))
    for _ in range(50 + 20 * len(linear)):
        slope = linear - gram @ weight
        rounding = ROUNDING * (linear.abs() + magnitude @ weight)
        if not settled and total is None:
            settled = bool((slope[free].abs() <= rounding[free]).all())
        if settled:
            level = slope[free].mean() if total is not None else slope.new_zeros(())
            wrong = torch.where(weight >= upper, level - slope, slope - level)
            freed = _most_wrong(wrong, rounding + ROUNDING * level.abs(), free | barred, norm)
            if freed is None:
                break
            free[freed], settled = True, False
        index = free.nonzero().squeeze(1)
        move, curved = _direction(gram[index][:, index], slope[index], total is not None)
        room = _room(weight[index], move, upper)
        first = int(room.argmin())
        step = min(1.0 if curved else math.inf, float(room[first]))
        step = 0.0 if step == math.inf else step  # no curvature and no bound that way: leave the entry where it was
        progress = step * float(move @ slope[index]) > 0
        weight[index] = (weight[index] + step * move).clamp(0, upper)
        if step == float(room[first]):
            weight[index[first]] = upper if float(move[first]) > 0 else 0.0
            free[index[first]] = False
        else:
            if not progress and freed is not None and free[freed]:
                free[freed] = False
            settled = True
        if progress:
            barred.zero_()
        elif freed is not None:
            barred[freed] = True
        if not bool(free.any()):
            settled = True
    return weight if total is None else weight * (total / weight.sum())


def _beginning(gram: Tensor, linear: Tensor, total: float | None) -> Tensor:
    """A feasible point: nothing, or all of ``total`` on the entry that is best alone."""
    weight = torch.zeros_like(linear)
    if total is not None:
        weight[(0.5 * total * gram.diagonal() - linear).argmin()] = total
    return weight


def _most_wrong(wrong: Tensor, rounding: Tensor, barred: Tensor, norm: Tensor) -> int | None:
    """The entry whose multiplier is most wrong, by more than rounding; None where none is."""
    worst = torch.where(barred | (wrong - rounding <= 0), -math.inf, wrong / norm)
    found = int(worst.argmax())
    return None if worst[found] == -math.inf else found


def _room(weight: Tensor, move: Tensor, upper: float) -> Tensor:
    """How far along ``move`` every entry can go before a bound."""
    room = torch.where(move < 0, -weight / move, math.inf)
    return torch.where(move > 0, (upper - weight) / move, room) if upper < math.inf else room


def _direction(gram: Tensor, slope: Tensor, balanced: bool) -> tuple[Tensor, bool]:
    """The move to the minimum over free entries, or one along which there is no curvature.

    ``balanced`` keeps the sum. The second value says whether the full move is the minimum.
    """
    scale = gram.diagonal().clamp_min(0).sqrt()
    scale = torch.where(scale > 0, scale, 1)
    unit, right = gram / (scale[:, None] * scale), slope / scale
    normal = 1 / scale / (1 / scale).norm()
    matrix = unit + torch.outer(normal, normal) if balanced else unit
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not failed and bool(factor.diagonal().square().min() > SINGULAR):
        if not balanced:
            return torch.cholesky_solve(right[:, None], factor).squeeze(1) / scale, True
        both = torch.cholesky_solve(torch.stack([right, normal], dim=1), factor)
        along, across = both[:, 0], both[:, 1]
        return (along - across * (normal @ along) / (normal @ across)) / scale, True
    if balanced:
        right = right - normal * (normal @ right)
        unit = unit - torch.outer(normal, normal @ unit)
        unit = unit - torch.outer(unit @ normal, normal)
    values, vectors = torch.linalg.eigh((unit + unit.T) / 2)
    part = vectors.T @ right
    flat = values <= SINGULAR * len(values)
    slide = torch.where(flat, part, 0)
    if float(slide.norm()) > 1e-8 * float((slope / scale).norm()):
        return vectors @ slide / scale, False
    return vectors @ torch.where(flat, 0, part / torch.where(flat, 1, values)) / scale, True
