"""The target gradient over time: averaged over steps, reused between them, saved in checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

TASK = "@"
"""Stands between a parameter's name and a task's number where gradients are kept by task."""


class TargetNotFinite(RuntimeError):
    """The target batch has no usable gradient at this step and none is stored to reuse."""


def task_key(name: str, number: int) -> str:
    """Where a parameter's gradient on one task is held, in memory and in checkpoints.

    Args:
        name: the parameter.
        number: the task.

    Returns:
        A name that no parameter has.
    """
    return f"{name}{TASK}{number}"


class TargetGradient:
    """Holds g* by parameter when it has to outlive a step.

    With ``ema`` = beta, the gradient used is the bias-corrected average
    (1 - beta) sum_s beta^(t-s) g*_s / (1 - beta^t) over the steps at which it was computed.

    Args:
        ema: beta in [0, 1); 0 uses each gradient as it is.
        every: a new gradient is due every ``every``-th call that needs one; None for one that is held for good.
        keep: keep the last gradient even if neither of the above asks for it.

    Raises:
        ValueError: ``ema`` or ``every`` is out of range.
    """

    def __init__(self, ema: float = 0.0, every: int | None = 1, keep: bool = False) -> None:
        if not 0 <= ema < 1:
            raise ValueError(f"target_ema must be in [0, 1) (scoring.target_ema), got {ema}")
        if every is not None and every < 1:
            raise ValueError(f"every must be >= 1 (scoring.every), got {every}")
        self.ema, self.every, self.keep = ema, every, keep or every != 1 or ema > 0
        self.tasks = 0
        """Number of target tasks of the last gradient that was taken by task."""
        self.updates = 0
        self.age = 0
        self._average: dict[str, Tensor] = {}
        self._staged: dict[str, Tensor] = {}

    @property
    def due(self) -> bool:
        """Whether the coming call has to compute a new gradient."""
        return not self.stored or (self.every is not None and self.age >= self.every)

    @property
    def stored(self) -> bool:
        """Whether there is a gradient to reuse."""
        return self.updates > 0

    def hold(self, gradients: Mapping[str, Tensor], by_task: Sequence[Mapping[str, Tensor]] = ()) -> None:
        """Take gradients that were computed elsewhere; they count as the first.

        Args:
            gradients: g* by parameter.
            by_task: the gradient on every target task by parameter, where they are asked for one by one.
        """
        named = {task_key(name, number): value for number, one in enumerate(by_task) for name, value in one.items()}
        self._average, self._staged = {**gradients, **named}, {}
        self.updates, self.age, self.tasks = 1, 0, len(by_task)

    def stage(self, name: str, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Take a parameter's new gradient; it counts from ``commit`` on.

        Args:
            name: the parameter.
            gradient: its gradient on the target batch.

        Returns:
            What to use now: the average, with this gradient in it.
        """
        if not self.keep:
            return gradient
        if self.ema:
            gradient = gradient * (1 - self.ema)
            if name in self._average:
                gradient = gradient.add_(self._average[name], alpha=self.ema)
        self._staged[name] = gradient
        return self._corrected(gradient, self.updates + 1)

    def read(self, name: str) -> Float[Tensor, "*shape"] | None:
        """The stored gradient of a parameter.

        Args:
            name: the parameter.

        Returns:
            The gradient, or None if the target did not reach this parameter.
        """
        return self._corrected(self._average[name], self.updates) if name in self._average else None

    def commit(self) -> None:
        """Make the staged gradients the stored ones."""
        if self.keep:
            self._average, self._staged = self._staged, {}
            self.updates += 1
        self.age = 1

    def discard(self) -> None:
        """Forget the staged gradients."""
        self._staged = {}

    def reuse(self) -> None:
        """Count a call that used the stored gradient."""
        self.age += 1

    def _corrected(self, average: Tensor, updates: int) -> Tensor:
        return average / (1 - self.ema**updates) if self.ema else average

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint.

        Returns:
            ``updates`` and ``age`` as integers, ``gradients`` as tensors by parameter.
        """
        return {
            "updates": self.updates,
            "age": self.age,
            "gradients": dict(self._average),
        }

    def load_state_dict(self, state: dict[str, Any], parameters: Collection[str]) -> None:
        """Restore a state.

        Args:
            state: what ``state_dict`` gave.
            parameters: names of those that take part.

        Raises:
            ValueError: the state belongs to other parameters.
        """
        unknown = {name.split(TASK)[0] for name in state["gradients"]} - set(parameters)
        if unknown:
            raise ValueError(
                f"the checkpoint's target gradient has parameters that are not scored here: {sorted(unknown)[:3]}; "
                f"was scoring.layers changed?"
            )
        self.updates, self.age = int(state["updates"]), int(state["age"])
        self._average = {name: gradient.clone() for name, gradient in state["gradients"].items()}
