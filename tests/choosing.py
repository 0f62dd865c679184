"""A selector's choice from a made-up pool, and what it looks like over seeds."""

from typing import Any

import torch
from torch import Tensor

from tests.cases import Pool
from winnow.selection import Selection


def generator(seed: int = 0) -> torch.Generator:
    """A generator of one's own."""
    return torch.Generator().manual_seed(seed)


def choose(selector: Any, pool: Pool, seed: int = 0, dtype: torch.dtype = torch.float64) -> Selection:
    """What a selector takes from a pool, given the signals it asks for."""
    found: Selection = selector(pool.signals(selector.needs, dtype), generator(seed))
    return found


def described(selection: Selection) -> tuple[list[int], list[float]]:
    """Positions and weights."""
    return selection.index.tolist(), selection.weight.tolist()


def chosen(selector: Any, pool: Pool, seed: int = 0) -> list[int]:
    """Positions that a selector without weights takes."""
    index, weight = described(choose(selector, pool, seed))
    assert weight == [1.0] * len(index)
    return index


def frequencies(selector: Any, pool: Pool, times: int = 250) -> Tensor:
    """Share of seeds under which each candidate is taken."""
    counts = torch.zeros(len(pool))
    for seed in range(times):
        counts[choose(selector, pool, seed).index] += 1
    return counts / times
