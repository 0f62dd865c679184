"""A convex quadratic programme over a simplex whose entries are bounded from above."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

GAP = 1e-10
"""Largest duality gap left, as a share of the objective's own terms."""


def minimise_bounded(
    gram: Float[Tensor, "k k"], linear: Float[Tensor, " k"], total: float, upper: float, steps: int = 20000
) -> Float[Tensor, " k"]:
    """Minimise 1/2 w'Kw - b'w over 0 <= w <= upper, sum(w) = total.

    Accelerated projected gradient with restarts (Beck & Teboulle 2009; O'Donoghue & Candes 2015), in float64. It
    stops at the Frank-Wolfe gap max_v (w - v)' grad, which bounds the distance to the minimum from above.

    Args:
        gram: K, symmetric positive semi-definite.
        linear: b.
        total: what the entries sum to, > 0.
        upper: bound on every entry, with upper * k >= total.
        steps: most gradient steps.

    Returns:
        The minimiser in float64.

    Raises:
        ValueError: the bounds leave nothing to choose from.
        RuntimeError: the gap is not closed after ``steps``.
    """
    size = len(linear)
    if not total > 0 or not upper * size >= total * (1 - 1e-12):
        raise ValueError(f"no {size} entries of at most {upper} sum to {total}: raise selector.w_max")
    gram, linear = gram.double(), linear.double()
    curvature = float(torch.linalg.matrix_norm(gram, 2))
    weight = project(linear, total, upper)
    if curvature == 0:
        return _lowest(-linear, total, upper)
    ahead, momentum = weight, 1.0
    for _ in range(steps):
        slope = gram @ weight - linear
        gap = float(slope @ (weight - _lowest(slope, total, upper)))
        scale = float(weight @ (gram @ weight)) + float(linear.abs() @ weight)
        if gap <= GAP * scale:
            return weight
        moved = project(ahead - (gram @ ahead - linear) / curvature, total, upper)
        if float((ahead - moved) @ (moved - weight)) > 0:  # the momentum points uphill
            momentum = 1.0
            moved = project(weight - slope / curvature, total, upper)
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = moved + (momentum - 1) / following * (moved - weight)
        weight, momentum = moved, following
    raise RuntimeError(f"the weights of {size} candidates did not converge in {steps} steps; raise selector.ridge")


def project(point: Float[Tensor, " k"], total: float, upper: float) -> Float[Tensor, " k"]:
    """The nearest point with 0 <= w <= upper and sum(w) = total.

    It is clamp(point - level, 0, upper) for the one level at which the sum is right; between two neighbouring
    breakpoints the sum is linear in the level.

    Args:
        point: any point.
        total: what the entries sum to, > 0.
        upper: bound on every entry, with upper * k >= total.

    Returns:
        The projection in float64.
    """
    point = point.double()
    if upper * len(point) <= total:
        return torch.full_like(point, total / len(point))
    if upper == math.inf:
        upper = total  # no entry can be larger
    breaks = torch.cat([point, point - upper]).sort().values
    sums = (point[None, :] - breaks[:, None]).clamp(0, upper).sum(1)  # falls as the level rises
    at = min(max(int((sums > total).sum()), 1), len(breaks) - 1)
    high, low = float(sums[at - 1]), float(sums[at])
    share = (high - total) / (high - low) if high > low else 0.0
    level = breaks[at - 1] + share * (breaks[at] - breaks[at - 1])
    return (point - level).clamp(0, upper)


def _lowest(slope: Tensor, total: float, upper: float) -> Tensor:
    """The feasible point that a linear objective is smallest at."""
    corner = torch.zeros_like(slope)
    left = total
    for at in slope.sort(stable=True).indices.tolist():
        corner[at] = min(upper, left)
        left -= float(corner[at])
        if left <= 0:
            break
    return corner
