"""Adafactor, linearised: a second moment of rank one, frozen at the value in the state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.geometry.base import Group, Preconditioner, State, UpdateRule, steps
from winnow.geometry.preconditioners import Diagonal, Identity, RankOne
from winnow.gradients.factors.precision import wide


class AdafactorRule(UpdateRule):
    """``torch.optim.Adafactor``: P = max(eps2, rms(parameter)) / sqrt(v), v = row column^T / mean(row).

    The clipping of an update's root mean square at ``d`` is frozen at no clipping: its divisor is one
    number per parameter that depends on what is selected, and is one where the update is small. There
    is no momentum.
    """

    elementwise = False

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
        """P from the frozen row and column moments."""
        if steps(state) == 0:
            if mean is None:
                return Identity()
            square = mean().square()
            state = {"variance": square}
            if square.ndim > 1:
                state = {"row_var": square.mean(-1, keepdim=True), "col_var": square.mean(-2, keepdim=True)}
        floor, smallest_scale = _eps(group, parameter)
        known = self._rank_one([parameter], group, [state])[0] if _is_matrix(state) else None
        if known is not None:
            return known
        moment = state["variance"] if "variance" in state else _product(state, floor)
        return Diagonal(_size(parameter, smallest_scale) / wide(moment).clamp_min(floor**2).sqrt())

    def ready(
        self, parameters: Sequence[torch.nn.Parameter], group: Group, states: Sequence[State]
    ) -> Sequence[Preconditioner | None]:
        """P of matrices that have a state, in a few operations for all of a kind."""
        kinds: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
        for at, (parameter, state) in enumerate(zip(parameters, states, strict=True)):
            if steps(state) > 0 and _is_matrix(state):
                kinds[parameter.device, parameter.dtype].append(at)
        found: list[Preconditioner | None] = [None] * len(parameters)
        for places in kinds.values():
            made = self._rank_one([parameters[at] for at in places], group, [states[at] for at in places])
            for at, preconditioner in zip(places, made, strict=True):
                found[at] = preconditioner
        return found

    @staticmethod
    def _rank_one(
        parameters: Sequence[torch.nn.Parameter], group: Group, states: Sequence[State]
    ) -> list[RankOne | None]:
        """P of matrices of one device and dtype; None where ``eps1`` holds some entry up."""
        rows = [wide(state["row_var"]).flatten() for state in states]
        columns = [wide(state["col_var"]).flatten() for state in states]
        of_each = [
            [torch.linalg.vector_norm(parameter.detach()).to(rows[0].dtype) for parameter in parameters],
            [row.mean() for row in rows],
            [row.min() for row in rows],
            [column.min() for column in columns],
        ]
        # One wait for a GPU, however many they are.
        numbers = torch.stack([value for values in of_each for value in values]).view(len(of_each), -1).tolist()
        roots = [torch.cat(sides).rsqrt().split([len(side) for side in sides]) for sides in (rows, columns)]
        found: list[RankOne | None] = []
        for parameter, row, column, norm, mean, low_row, low_column in zip(parameters, *roots, *numbers, strict=True):
            floor, smallest_scale = _eps(group, parameter)
            mean = max(mean, floor)
            free = low_row / mean * low_column >= floor**2
            size = _size(parameter, smallest_scale, norm)
            found.append(RankOne(row * (size * mean**0.5), column) if free else None)
        return found

    def momentum(self, group: Group, state: State) -> None:
        """Nothing: Adafactor has no momentum."""


def _eps(group: Group, parameter: torch.nn.Parameter) -> tuple[float, float]:
    floor, smallest_scale = group["eps"]
    return torch.finfo(parameter.dtype).eps if floor is None else float(floor), float(smallest_scale)


def _is_matrix(state: State) -> bool:
    return "row_var" in state and state["row_var"].ndim == 2


def _product(state: State, floor: float) -> Tensor:
    row, column = wide(state["row_var"]), wide(state["col_var"])
    return row / row.mean(-2, keepdim=True).clamp_min(floor) @ column


def _size(parameter: torch.nn.Parameter, smallest: float, norm: float | None = None) -> float:
    norm = float(torch.linalg.vector_norm(parameter.detach())) if norm is None else norm
    return max(smallest, norm / parameter.numel() ** 0.5)
