"""Closed forms that go by a class's name: used only where they give what the module's own gradient gives."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor


class Checked:
    """Compares a closed form with the generic rule on a sample, once for every key, and remembers the answer."""

    def __init__(self) -> None:
        self.answers: dict[Hashable, bool] = {}

    def holds(self, key: Hashable, own: Callable[[], Sequence[Tensor]], closed: Callable[[], Sequence[Tensor]]) -> bool:
        """Whether the closed form holds.

        Args:
            key: what the answer depends on: the class, its options, precisions.
            own: gradients of a sample by calling the module again.
            closed: the same by the closed form.

        Returns:
            False as well where the module cannot be called on the sample.
        """
        if key not in self.answers:
            try:
                expected = own()
            except (RuntimeError, TypeError, ValueError):
                self.answers[key] = False
            else:
                self.answers[key] = all(map(close, closed(), expected))
        return self.answers[key]


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors agree up to rounding of the larger entries.

    Args:
        found: a tensor.
        expected: another.

    Returns:
        False where there is a NaN.
    """
    tolerance = 32 * torch.finfo(expected.dtype).eps * max(float(expected.abs().max()), 1e-30)
    return bool((found - expected).abs().max() <= tolerance)
