"""What a step takes up: the pool as it comes, or what a gate passes on of more; scored, or trained on as it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.data.steps import Drawn, StepData
from winnow.gates.base import Draw, Gate, Passed
from winnow.gates.cadence import Cadence
from winnow.lm.layout import Batch, take
from winnow.selection import Selection
from winnow.selectors.abilities import Sized
from winnow.selectors.base import Selector
from winnow.signals import Needs, Signals
from winnow.training.chance import GATE, step_seed
from winnow.training.cheaper import Cheaper

BETWEEN = ("uniform", "predicted")


@dataclass
class Taken:
    """A step's pool, and how it came about.

    Args:
        pool: token batch.
        meta: facts and texts of the pool.
        truncated: candidates of it that were cut.
        scored: whether it is scored; else it is trained on as it is.
        drawn: the raw candidates, behind a gate.
        passed: which of them the gate passed on.
        labels: what the gate has learned of each, once it has; NaN for nothing.
    """

    pool: Batch
    meta: dict[str, list[Any]]
    truncated: int
    scored: bool
    drawn: Drawn | None = None
    passed: Passed | None = None
    labels: Float[Tensor, " pool"] | None = None


class Intake:
    """Stage 0 in a training loop: lets the gate pass on candidates, and says which pools are scored.

    Args:
        gate: None for pools as they come.
        cadence: which steps' pools are scored; every one's by default.
        between: weights of what is trained on without scoring: ``uniform`` | ``predicted``, in proportion to the
            gate's predictions as far as they are positive.
        cheaper: how pools are scored, where not exactly.

    Raises:
        ValueError: ``between`` is neither, or goes by predictions without a gate.
    """

    def __init__(
        self,
        gate: Gate | None = None,
        cadence: Cadence | None = None,
        between: str = "uniform",
        cheaper: Cheaper | None = None,
    ) -> None:
        if between not in BETWEEN:
            raise ValueError(f"scoring.between must be one of {', '.join(BETWEEN)}; got {between!r}")
        if between == "predicted" and gate is None:
            raise ValueError(
                "scoring.between=predicted weighs by a gate's predictions, and there is no gate: set gate="
            )
        self.gate, self.cadence, self.between = gate, cadence or Cadence(), between
        self.cheaper = cheaper or Cheaper()
        if self.cadence.adaptive and gate is None:
            raise ValueError("scoring.period=adaptive goes by a gate's predictions, and there is no gate: set gate=")

    @property
    def always(self) -> bool:
        """Whether every pool is scored."""
        return self.cadence.period == 1 and not self.cadence.adaptive

    @property
    def plain(self) -> bool:
        """Whether pools are scored as they come, at every step."""
        return self.gate is None and self.always

    def check(self, selector: Selector) -> None:
        """Refuse a selector that cannot be passed over now and then, or that the gate learns nothing from.

        Args:
            selector: chooses from the pools that are scored.

        Raises:
            ValueError: it has no number of candidates to keep.
        """
        self.needs(selector.needs)
        if selector.needs.predicted and self.gate is None:
            raise ValueError(
                f"{type(selector).__name__} goes by a gate's predictions, and there is no gate: set gate=ngrams"
            )
        if not self.always and not isinstance(selector, Sized):
            raise ValueError(
                f"scoring.period={self.cadence.period}: between two scorings as many are trained on as the selector "
                f"keeps, and {type(selector).__name__} has no filter_size; set scoring.period=1"
            )

    def needs(self, asked: Needs) -> Needs:
        """What is computed of a scored pool.

        Args:
            asked: what the selector asks for.

        Returns:
            That, and what the gate learns from.
        """
        return asked if self.gate is None else self.gate.needs(asked)

    def __call__(self, batch: dict[str, Any], size: int, count: int, seed: int, step: int) -> Taken:
        """Take up a step.

        Args:
            batch: as :class:`winnow.data.steps.StepData` makes it.
            size: candidates that a gate passes on to be scored.
            count: candidates that are trained on where the pool is not scored.
            seed: of the run.
            step: pools seen.

        Returns:
            The pool; what a gate has passed on is no token batch yet, see :func:`filled`.
        """
        scored = self.cadence.due
        chance = torch.Generator().manual_seed(step_seed(seed, step, GATE))
        if self.gate is None:
            taken = Taken(batch["pool"], batch["meta"], int(batch["truncated"].sum()), scored)
            return taken if scored else _some(taken, batch["truncated"], count, chance)
        drawn: Drawn = batch["draw"]
        draw: Draw = drawn.seen
        passed = self.gate.admit(draw, size, chance) if scored else self.gate.best(draw, count, chance)
        return Taken({}, {}, 0, scored, drawn, passed)

    def told(self, taken: Taken, signals: Signals) -> Signals:
        """Signals with what the gate predicted of each candidate.

        Args:
            taken: the pool.
            signals: of it.

        Returns:
            The same without a gate.
        """
        if taken.passed is None:
            return signals
        return replace(signals, predicted=taken.passed.predicted[taken.passed.index].to(signals.valid.device))

    def unscored(self, signals: Signals) -> Selection:
        """What a pool that is not scored is trained on: all of it that has a response.

        Args:
            signals: of the pool, without scores.

        Returns:
            The selection.
        """
        index = signals.valid.nonzero().squeeze(1).cpu()
        weight = torch.ones(len(index))
        if self.between == "predicted" and signals.predicted is not None and len(index):
            hopes = signals.predicted.cpu()[index].clamp_min(0).float()
            if float(hopes.sum()) > 0:
                weight = hopes / hopes.mean()
        return Selection(index, weight)

    def learn(self, taken: Taken, signals: Signals, selection: Selection) -> dict[str, float]:
        """A step's choice is made: the gate learns from it where it was scored.

        Args:
            taken: the pool; gets the labels.
            signals: of the pool.
            selection: made from them.

        Returns:
            Metrics; none where pools are scored as they come.
        """
        if self.plain:
            return {}
        metrics = {"select/scored": float(taken.scored)}
        if self.gate is not None and taken.scored and taken.drawn is not None and taken.passed is not None:
            if "target_not_finite" not in selection.diagnostics:
                taken.labels = self.gate.learn(taken.drawn.seen, taken.passed, signals, selection)
            metrics |= self.gate.metrics()
        self.cadence.count(lambda: (float("nan"),) * 2 if self.gate is None else self.gate.correlation)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint.

        Returns:
            That of gate, cadence and proxy.
        """
        proxy = self.cheaper.proxy
        return {
            "gate": {} if self.gate is None else self.gate.state_dict(),
            "cadence": self.cadence.state_dict(),
            "proxy": {} if proxy is None else proxy.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Args:
            state: what ``state_dict`` gave.
        """
        if self.gate is not None and state["gate"]:
            self.gate.load_state_dict(state["gate"])
        self.cadence.load_state_dict(state["cadence"])
        if self.cheaper.proxy is not None and state["proxy"]:
            self.cheaper.proxy.load_state_dict(state["proxy"])


def filled(taken: Taken, steps: StepData, device: torch.device) -> Taken:
    """What was passed on, as a token batch.

    Args:
        taken: from :class:`Intake`.
        steps: makes token batches of examples.
        device: where the batch is to be.

    Returns:
        The same where it is one already.
    """
    if taken.passed is None or taken.drawn is None:
        return taken
    made = steps.pool([taken.drawn.examples[at] for at in taken.passed.index.tolist()], drawn=True)
    pool = {key: value.to(device) for key, value in made["pool"].items()}
    return replace(taken, pool=pool, meta=made["meta"], truncated=int(made["truncated"].sum()))


def _some(taken: Taken, truncated: Tensor, count: int, chance: torch.Generator) -> Taken:
    """Candidates of a pool drawn at random."""
    size = len(taken.pool["labels"])
    index = torch.randperm(size, generator=chance)[:count].sort().values
    meta = {name: [values[at] for at in index.tolist()] for name, values in taken.meta.items()}
    pool = take(taken.pool, index.to(taken.pool["labels"].device))
    return replace(taken, pool=pool, meta=meta, truncated=int(truncated[index.to(truncated.device)].sum()))
