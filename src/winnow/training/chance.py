"""Chance as a pure function of (seed, step), so that a resumed run needs no generator's state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

DROPOUT, SELECTION, GATE = 0, 1, 2
"""What a step draws for."""


def step_seed(seed: int, step: int, purpose: int) -> int:
    """A seed of its own for every run, step and purpose.

    Args:
        seed: of the run.
        step: pools seen.
        purpose: ``DROPOUT``, ``SELECTION`` or ``GATE``.

    Returns:
        A seed of 63 bits.
    """
    # The first two lie side by side, as they did before there was a third.
    return (seed * 1_000_003 + step * 2 + purpose % 2 + (purpose // 2) * 2**50) % (2**63 - 1)


@contextmanager
def forked_rng(device: torch.device, seed: int) -> Iterator[None]:
    """Global generators seeded inside, and outside as they were.

    Args:
        device: whose generator is used beside the CPU's.
        seed: of both.

    Yields:
        Nothing.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
