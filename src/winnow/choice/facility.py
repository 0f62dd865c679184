"""Medoids by facility location: k candidates so that every candidate has one of them near by."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def distances(gram: Float[Tensor, "pool pool"]) -> Float[Tensor, "pool pool"]:
    """Euclidean distances of vectors from their inner products.

    Args:
        gram: K.

    Returns:
        sqrt(K_ii + K_jj - 2 K_ij) in float64, zero on the diagonal.
    """
    gram = gram.double()
    square = gram.diagonal()
    apart = (square[:, None] + square - 2 * gram).clamp_min(0).sqrt()
    return apart.fill_diagonal_(0)


def medoids(distance: Float[Tensor, "pool pool"], k: int) -> Int[Tensor, " kept"]:
    """Greedy facility location: k times the candidate that brings all candidates closest to their nearest medoid.

    Maximises sum_i max_{j in S} (c - d_ij), c the largest distance, which is monotone and submodular: the greedy
    set reaches at least 1 - 1/e of the best (Nemhauser et al. 1978).

    Args:
        distance: d, symmetric and >= 0.
        k: how many to take.

    Returns:
        min(k, B) positions in the order taken; ties go to the earlier position.
    """
    size = len(distance)
    if size == 0:
        return torch.zeros(0, dtype=torch.long, device=distance.device)
    similarity = distance.max() - distance
    covered = torch.zeros_like(similarity[0])
    taken = torch.zeros(size, dtype=torch.bool, device=distance.device)
    picked: list[int] = []
    for _ in range(min(k, size)):
        gain = (similarity - covered[:, None]).clamp_min(0).sum(0)
        best = int(torch.where(taken, -math.inf, gain).argmax())
        picked.append(best)
        taken[best] = True
        covered = torch.maximum(covered, similarity[:, best])
    return torch.tensor(picked, dtype=torch.long, device=distance.device)


def cluster_sizes(distance: Float[Tensor, "pool pool"], chosen: Int[Tensor, " kept"]) -> Int[Tensor, " kept"]:
    """How many candidates have each medoid as their nearest.

    Args:
        distance: d.
        chosen: positions of the medoids.

    Returns:
        Counts that sum to B if there is a medoid; of equally near medoids the first one counts.
    """
    if len(chosen) == 0:
        return torch.zeros(0, dtype=torch.long, device=distance.device)
    return torch.bincount(distance[:, chosen].argmin(1), minlength=len(chosen))
