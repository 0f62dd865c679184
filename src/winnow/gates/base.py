"""What a gate is: stage 0, which of the raw candidates of a step are worth scoring at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from winnow.gates.features import Candidate, Features
from winnow.selection import Selection
from winnow.signals import Needs, Signals


@dataclass(frozen=True)
class Draw:
    """The raw candidates of a step, as a gate sees them.

    Args:
        vectors: of the gate's features.
        sources: where each came from.
        texts: prompt and response of each.
    """

    vectors: Float[Tensor, "draw dim"]
    sources: Sequence[str]
    texts: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, candidates: Sequence[Candidate], features: Features) -> Draw:
        """A draw from its candidates.

        Args:
            candidates: at least one.
            features: candidates to vectors.

        Returns:
            The draw.
        """
        texts = [(one.prompt, one.response) for one in candidates]
        return cls(features(candidates), [one.source for one in candidates], texts)

    def __len__(self) -> int:
        """How many raw candidates."""
        return len(self.vectors)


@dataclass(frozen=True)
class Passed:
    """What a gate made of a draw.

    Args:
        index: positions in the draw of those passed on, strictly increasing.
        predicted: of every raw candidate.
        at_random: which of the passed were drawn irrespective of their prediction: they alone say without bias how
            good predictions are.

    Raises:
        ValueError: the positions are not strictly increasing, or have not a flag each.
    """

    index: Int[Tensor, " passed"]
    predicted: Float[Tensor, " draw"]
    at_random: Bool[Tensor, " passed"]

    def __post_init__(self) -> None:
        positions = self.index.tolist()
        if self.index.shape != self.at_random.shape or any(one >= other for one, other in pairwise(positions)):
            raise ValueError(f"positions must be strictly increasing, a flag each; got {positions}")

    def __len__(self) -> int:
        """How many are passed on."""
        return len(self.index)


@runtime_checkable
class Gate(Protocol):
    """Passes on some of a draw, and learns from the scores of those that were scored.

    It draws from no random generator but the one it is given, and what it remembers is in its state.
    """

    features: Features
    """Candidates to vectors."""

    def needs(self, asked: Needs) -> Needs:
        """What has to be computed of a pool for the gate to learn from it; ``asked`` is the selector's part."""

    def admit(self, draw: Draw, count: int, generator: torch.Generator) -> Passed:
        """Choose ``count`` to be scored."""

    def best(self, draw: Draw, count: int, generator: torch.Generator) -> Passed:
        """Choose ``count`` to be trained on as they are."""

    def learn(self, draw: Draw, passed: Passed, signals: Signals, selection: Selection) -> Float[Tensor, " passed"]:
        """Take in the scores of what was passed on; gives what was learned of each candidate, NaN for nothing."""

    def metrics(self) -> dict[str, float]:
        """How well it predicts and how even what it passes on is, by ``gate/`` name."""

    @property
    def correlation(self) -> tuple[float, float]:
        """Rank correlation, of late and of the later half of that; NaN where it is not known.

        It is of predictions with what was then found at candidates that were drawn at random.
        """

    def state_dict(self) -> dict[str, Any]:
        """What is remembered: tensors, lists and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
