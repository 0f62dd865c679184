"""At which steps a pool is scored: at every n-th, or the more often the less the gate's predictions are worth."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ADAPTIVE = "adaptive"


class Calibration:
    """Predictions beside what was then found, of candidates that were scored irrespective of their prediction.

    Args:
        window: pairs that are remembered.
    """

    def __init__(self, window: int = 64) -> None:
        self._pairs: deque[tuple[float, float]] = deque(maxlen=window)

    def add(self, predicted: Float[Tensor, " examples"], found: Float[Tensor, " examples"]) -> None:
        """Take in pairs.

        Args:
            predicted: before the scores were known.
            found: the labels; NaN ones are passed over.
        """
        pairs = zip(predicted.tolist(), found.tolist(), strict=True)
        self._pairs.extend((mine, real) for mine, real in pairs if real == real)

    @property
    def correlation(self) -> float:
        """Spearman's rank correlation over the window; NaN with fewer than eight pairs, or where all are equal."""
        return self._rank(list(self._pairs))

    @property
    def recent(self) -> float:
        """The same over the later half."""
        pairs = list(self._pairs)
        return self._rank(pairs[len(pairs) // 2 :])

    def _rank(self, pairs: list[tuple[float, float]]) -> float:
        if len(pairs) < 8:
            return float("nan")
        mine, real = (_ranks(side) for side in zip(*pairs, strict=True))
        scale = math.sqrt((mine @ mine) * (real @ real))
        return float(mine @ real) / scale if scale else float("nan")

    def state_dict(self) -> dict[str, Any]:
        """The pairs.

        Returns:
            A tensor.
        """
        return {"pairs": torch.tensor(list(self._pairs), dtype=torch.float64).reshape(-1, 2)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved pairs.

        Args:
            state: what ``state_dict`` gave.
        """
        self._pairs.clear()
        self._pairs.extend((mine, real) for mine, real in state["pairs"].tolist())


class Cadence:
    """Says whether a step's pool is scored.

    Adaptively, the time between two scorings doubles, up to ``longest``, while the rank correlation of predictions
    with what is found at random candidates is at least ``trusted`` and not falling, and halves where it is not.

    Args:
        period: steps from one scoring to the next, 1 for every step; or ``adaptive``.
        longest: with ``adaptive``.
        trusted: rank correlation from which on predictions may stand alone, with ``adaptive``.
        falling: how much lower the correlation of the later half may be than of the whole.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, period: float | int | str = 1, longest: int = 16, trusted: float = 0.3, falling: float = 0.1
    ) -> None:
        whole = isinstance(period, int) and not isinstance(period, bool)
        if period != ADAPTIVE and not (whole and int(period) >= 1):
            raise ValueError(f"scoring.period must be a whole number >= 1, or {ADAPTIVE}; got {period!r}")
        self.adaptive = period == ADAPTIVE
        self.period = 1 if self.adaptive else int(period)
        self.longest, self.trusted, self.falling = longest, trusted, falling
        self._since = 0

    @property
    def due(self) -> bool:
        """Whether the coming step's pool is scored; the first one always is."""
        return self._since == 0

    def count(self, correlation: Callable[[], tuple[float, float]]) -> None:
        """A step is done.

        Args:
            correlation: of the gate, over its window and over the later half; where a pool was just scored, it decides
                when the next one is.
        """
        if self.adaptive and self._since == 0:
            whole, recent = correlation()
            if whole == whole:
                good = whole >= self.trusted and not recent < whole - self.falling
                self.period = min(2 * self.period, self.longest) if good else max(self.period // 2, 1)
        self._since = (self._since + 1) % self.period

    def state_dict(self) -> dict[str, Any]:
        """Where it is.

        Returns:
            Plain numbers.
        """
        return {"since": self._since, "period": self.period}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; a period that was given stays as given.

        Args:
            state: what ``state_dict`` gave.
        """
        if self.adaptive:
            self.period = int(state["period"])
        self._since = int(state["since"]) % self.period


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks about their mean, the middle one where values are equal: SciPy's tests of significance take far longer."""
    ordered = np.sort(values)
    return (ordered.searchsorted(values, "left") + ordered.searchsorted(values, "right") - len(ordered)) / 2
