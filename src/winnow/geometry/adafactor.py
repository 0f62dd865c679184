"""Adafactor, linearised: a second moment of rank one, frozen at the value in the state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.geometry.base import Group, Preconditioner, Rule, State, steps, wide
from winnow.geometry.preconditioners import Diagonal, Identity, RankOne


class AdafactorRule(Rule):
    """``torch.optim.Adafactor``: P = max(eps2, rms(parameter)) / sqrt(v), v = row column^T / mean(row).

    The clipping of an update's root mean square at ``d`` is frozen at no clipping: its divisor is one
    number per parameter that depends on what is selected, and is one where the update is small. There
    is no momentum.
    """

    def step_size(self, group: Group, state: State, rate: float) -> float:
        """min(rate, 1 / sqrt(t)), t counting the coming step.

        Args:
            group: options of the parameter's group.
            state: its state.
            rate: learning rate.

        Returns:
            What multiplies P g in the update.
        """
        return float(min(rate, (steps(state) + 1) ** -0.5))

    def preconditioner(
        self,
        parameter: torch.nn.Parameter,
        group: Group,
        state: State,
        mean: Callable[[], Float[Tensor, "*shape"]] | None,
    ) -> Preconditioner:
        """P from the frozen row and column moments.

        Args:
            parameter: the parameter.
            group: options of its group.
            state: its state.
            mean: the pool's mean gradient, for the first step; the moments are then those of its square.

        Returns:
            A rank-one P for a matrix. A diagonal for other shapes, and for a matrix some of whose
            entries are held up by ``eps1``, which is no longer of rank one. The identity at the first
            step without ``mean``.
        """
        if steps(state) == 0:
            if mean is None:
                return Identity()
            square = mean().square()
            state = {"variance": square}
            if square.ndim > 1:
                state = {"row_var": square.mean(-1, keepdim=True), "col_var": square.mean(-2, keepdim=True)}
        floor, smallest_scale = group["eps"]
        floor = torch.finfo(parameter.dtype).eps if floor is None else floor
        norm = torch.linalg.vector_norm(parameter.detach())
        if "variance" in state:
            return Diagonal(_size(float(norm), parameter, smallest_scale) / _clamped(state["variance"], floor).sqrt())
        row, column = wide(state["row_var"]), wide(state["col_var"])
        if row.ndim > 2:
            row = row / row.mean(-2, keepdim=True).clamp_min(floor)
            return Diagonal(_size(float(norm), parameter, smallest_scale) / _clamped(row @ column, floor).sqrt())
        # One wait for a GPU.
        found = torch.stack([norm.to(row.dtype), row.mean(), row.min(), column.min()]).tolist()
        size, mean_row = _size(found[0], parameter, smallest_scale), max(found[1], floor)
        if not found[2] / mean_row * found[3] >= floor**2:
            return Diagonal(size / _clamped(row / mean_row @ column, floor).sqrt())
        return RankOne(row.squeeze(-1).rsqrt() * (size * mean_row**0.5), column.squeeze(-2).rsqrt())

    def small(self, state: State) -> bool:
        """Rows and columns of a matrix that has a state.

        Args:
            state: a parameter's state.

        Returns:
            Whether they are in it.
        """
        return steps(state) > 0 and "row_var" in state and state["row_var"].ndim == 2

    def momentum(self, group: Group, state: State) -> None:
        """Nothing: Adafactor has no momentum.

        Args:
            group: ignored.
            state: ignored.
        """


def _size(norm: float, parameter: torch.nn.Parameter, smallest: float) -> float:
    return max(float(smallest), norm / parameter.numel() ** 0.5)


def _clamped(moment: Tensor, floor: float) -> Tensor:
    return wide(moment).clamp_min(floor**2)
