"""Drawing k candidates without replacement, as pure functions of scores and a generator."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.choice.weights import standardise


def without_replacement(log_chance: Float[Tensor, " pool"], k: int, generator: torch.Generator) -> Int[Tensor, " kept"]:
    """Draws one after the other, each in proportion to its chance among those left.

    The k largest of log p_i plus Gumbel noise are such a sample (Vieira 2014; Kool et al. 2019, arXiv 1903.06059).

    Args:
        log_chance: logarithms of chances, up to a constant; -inf for what is drawn only when nothing else is left.
        k: how many to draw.
        generator: on the CPU; the source of randomness.

    Returns:
        min(k, B) positions in the order drawn.
    """
    keys = log_chance.double() + _gumbel(len(log_chance), generator).to(log_chance.device)
    return keys.sort(descending=True, stable=True).indices[:k]


def boltzmann(
    scores: Float[Tensor, " pool"],
    interaction: Float[Tensor, "pool pool"],
    k: int,
    temperature: float,
    generator: torch.Generator,
    standardised: bool = True,
) -> Int[Tensor, " kept"]:
    """Repeats: draw i with chance proportional to exp(score_i / temperature), subtract its interactions from all.

    Args:
        scores: first-order utilities.
        interaction: what taking one costs the others.
        k: how many to take.
        temperature: > 0; in standard deviations of the scores of those left if ``standardised``.
        generator: on the CPU; the source of randomness.
        standardised: bring the scores of those left to mean zero and deviation one before every draw.

    Returns:
        min(k, B) positions in the order drawn.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0 (selector.temperature), got {temperature}")
    scores, left = scores.double().clone(), list(range(len(scores)))
    picked: list[int] = []
    for _ in range(min(k, len(scores))):
        now = scores[left]
        now = standardise(now) if standardised else now
        keys = now / temperature + _gumbel(len(left), generator).to(now.device)
        best = left.pop(int(keys.argmax()))
        picked.append(best)
        scores = scores - interaction[best]
    return torch.tensor(picked, dtype=torch.long, device=scores.device)


def _gumbel(size: int, generator: torch.Generator) -> Float[Tensor, " size"]:
    uniform = torch.rand(size, generator=generator, dtype=torch.float64)
    tiny = math.ldexp(1, -60)  # rand may give an exact zero
    return -(-(uniform.clamp_min(tiny)).log()).log()
