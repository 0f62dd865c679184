"""The gate: ridge regression of exact scores on text, and what is passed on by its predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from winnow.gates.base import Draw, Passed
from winnow.gates.cadence import Calibration
from winnow.gates.coverage import Coverage
from winnow.gates.features import Features
from winnow.gates.labels import check_label, label_needs, labels_of
from winnow.gates.ridge import OnlineRidge
from winnow.selection import Selection
from winnow.signals import Needs, Signals

EXPLORATIONS = ("thompson", "ucb", "none")


class LinearGate:
    """Predicts the score of a raw candidate from its vector, and passes on those that promise most.

    Needs: nothing of a model beyond what the selector asks for; with ``label`` cosine or utility alignment and norms
        under P, where the selector asks for neither.
    Cost: a hash per word of a draw, and a d x d triangular system per scored step; no pass through a model.
    Rule: w by ridge regression with forgetting of y_i on phi(x_i). A scored pool is ``random_share`` of candidates
        drawn from the whole draw irrespective of their prediction, then those of the rest with the highest phi^T w~,
        w~ from N(w, sigma^2 A^-1) (thompson), or phi^T w + width sigma sqrt(phi^T A^-1 phi) (ucb), or phi^T w (none).
        Between two scorings the k with the highest phi^T w are trained on as they are. Exact copies within a draw, and
        candidates of a source over its bound, come last.
    Knobs:
        features: NGrams | Embeddings | Fields, or any :class:`winnow.gates.features.Features`.
        label: cosine | utility | weight.
        explore: thompson | ucb | none.
        width: of the confidence bound, with ucb; >= 0.
        random_share: of a scored pool; 0 to 1. These alone measure calibration without bias.
        ridge: > 0.
        forgetting: in (0, 1]; how much of the past is left after another scored pool.
        most_of_a_source: share of what is passed on that may be of one source; 1 for no bound.
    Source: linear bandits (Li et al. 2010, arXiv 1003.0146; Agrawal and Goyal 2013, arXiv 1209.3352) on exact scores.
    Departures: a bandit's reward is what the chosen arm pays; here every scored candidate is a label, kept or not.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        features: Features,
        label: str = "cosine",
        explore: str = "thompson",
        width: float = 1.0,
        random_share: float = 0.25,
        ridge: float = 1.0,
        forgetting: float = 0.98,
        most_of_a_source: float = 1.0,
    ) -> None:
        check_label(label)
        if explore not in EXPLORATIONS:
            raise ValueError(f"gate.explore must be one of {', '.join(EXPLORATIONS)}; got {explore!r}")
        if not 0 <= random_share <= 1:
            raise ValueError(f"gate.random_share must be in [0, 1], got {random_share}")
        if not 0 <= width < float("inf"):
            raise ValueError(f"gate.width must be >= 0 and finite, got {width}")
        self.features, self.label, self.explore, self.width = features, label, explore, width
        self.random_share = random_share
        self.model = OnlineRidge(features.dim, ridge, forgetting)
        self.calibration = Calibration()
        self.coverage = Coverage(features.dim, most=most_of_a_source)

    @property
    def correlation(self) -> tuple[float, float]:
        """Rank correlation over the window, and over its later half; NaN where it is not known."""
        return self.calibration.correlation, self.calibration.recent

    def needs(self, asked: Needs) -> Needs:
        """The selector's needs, and what the label is made of.

        Args:
            asked: the selector's.

        Returns:
            What has to be computed.
        """
        return label_needs(self.label, asked)

    def admit(self, draw: Draw, count: int, generator: torch.Generator) -> Passed:
        """Choose a pool to be scored.

        Args:
            draw: the raw candidates.
            count: how many are passed on.
            generator: on the CPU; the only source of randomness.

        Returns:
            What is passed on.
        """
        last = self.coverage.last(draw.sources, draw.texts)
        order = _shuffled(last, generator)
        at_random = np.zeros(len(draw), dtype=bool)
        at_random[order[: round(self.random_share * count)]] = True
        predicted = self.model.predict(draw.vectors)
        hopes = predicted
        if self.explore == "thompson":
            hopes = draw.vectors.double() @ self.model.draw(generator)
        elif self.explore == "ucb":
            hopes = predicted + self.width * self.model.deviation(draw.vectors)
        return self._passed(draw, np.where(at_random, np.inf, hopes.numpy()), predicted, at_random, last, order, count)

    def best(self, draw: Draw, count: int, generator: torch.Generator) -> Passed:
        """Choose what is trained on as it is.

        Args:
            draw: the raw candidates.
            count: how many.
            generator: decides among equal predictions.

        Returns:
            The highest predictions, none at random.
        """
        last = self.coverage.last(draw.sources, draw.texts)
        predicted, order = self.model.predict(draw.vectors), _shuffled(last, generator)
        return self._passed(draw, predicted.numpy(), predicted, np.zeros_like(last), last, order, count)

    def learn(self, draw: Draw, passed: Passed, signals: Signals, selection: Selection) -> Float[Tensor, " passed"]:
        """Take in the scores of what was passed on.

        Args:
            draw: the raw candidates.
            passed: which of them were scored.
            signals: of those.
            selection: made from them.

        Returns:
            The labels; NaN for candidates that say nothing.
        """
        labels = labels_of(self.label, signals, selection)
        self.calibration.add(passed.predicted[passed.index][passed.at_random], labels[passed.at_random])
        usable = labels.isfinite()
        if bool(usable.any()):
            self.model.learn(draw.vectors[passed.index][usable], labels[usable])
        return labels

    def metrics(self) -> dict[str, float]:
        """Rank correlation, noise, and what :meth:`winnow.gates.coverage.Coverage.metrics` gives.

        Returns:
            Numbers by name.
        """
        found = {"gate/correlation": self.calibration.correlation, "gate/noise": self.model.noise}
        return {**found, **self.coverage.metrics()}

    def state_dict(self) -> dict[str, Any]:
        """What was learned, and what was passed on of late.

        Returns:
            Tensors, lists and plain values.
        """
        return {
            "made_of": self._made_of,
            "model": self.model.state_dict(),
            "calibration": self.calibration.state_dict(),
            "coverage": self.coverage.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Args:
            state: what ``state_dict`` gave.

        Raises:
            ValueError: it was learned from other features or another label, which would mean nothing here.
        """
        if state["made_of"] != self._made_of:
            raise ValueError(
                f"the gate's state was learned of {' and '.join(state['made_of'])}, and this gate learns of "
                f"{' and '.join(self._made_of)}: go on with the gate it began with, or begin anew"
            )
        self.model.load_state_dict(state["model"])
        self.calibration.load_state_dict(state["calibration"])
        self.coverage.load_state_dict(state["coverage"])

    @property
    def _made_of(self) -> list[str]:
        return [type(self.features).__name__, self.label]

    def _passed(
        self,
        draw: Draw,
        hopes: Float[np.ndarray, " draw"],
        predicted: Float[Tensor, " draw"],
        at_random: Bool[np.ndarray, " draw"],
        last: Bool[np.ndarray, " draw"],
        order: Int[np.ndarray, " draw"],
        count: int,
    ) -> Passed:
        """The highest hopes, in the order given where they are equal.

        In NumPy, whose calls take a third of the time of torch's at so few numbers.
        """
        hopes = np.where(last & ~at_random, -np.inf, hopes)
        index = order[(-hopes[order]).argsort(kind="stable")[:count]]
        index.sort()
        self.coverage.add(draw.vectors, draw.sources, draw.texts, index.tolist())
        return Passed(torch.from_numpy(index), predicted, torch.from_numpy(at_random[index]))


def _shuffled(last: Bool[np.ndarray, " draw"], generator: torch.Generator) -> Int[np.ndarray, " draw"]:
    order = torch.randperm(len(last), generator=generator).numpy()
    return order[last[order].argsort(kind="stable")]
