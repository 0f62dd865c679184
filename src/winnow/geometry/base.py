"""The interface between an optimizer's state and the products taken of gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.gradients.factors.base import Factor

Group = dict[str, Any]
"""Options of a param group."""

State = dict[str, Any]
"""An optimizer's state of one parameter; empty before its first step."""


@runtime_checkable
class Preconditioner(Protocol):
    """P of one parameter: symmetric, positive semi-definite, linear in the gradient."""

    def tensor(self, gradient: Float[Tensor, "*shape"], power: float) -> Float[Tensor, "*shape"]:
        """P^power applied to one gradient."""

    def factor(self, factor: Factor, power: float) -> Factor:
        """P^power applied to the gradient of every example, factorised where P allows it."""


@runtime_checkable
class Geometry(Protocol):
    """What an optimizer's state says about every parameter."""

    def preconditioner(
        self,
        parameter: torch.nn.Parameter,
        name: str,
        mean: Callable[[], Float[Tensor, "*shape"]],
    ) -> Preconditioner:
        """P of one parameter.

        Args:
            parameter: the parameter, as the optimizer holds it.
            name: its name, for errors.
            mean: the pool's mean gradient, computed when called: used before the state exists.
        """

    def ready(self, parameters: Mapping[str, torch.nn.Parameter]) -> Mapping[str, Preconditioner]:
        """P of those parameters that can have it ahead: it takes little memory, and no gradient. Of none by default.

        Args:
            parameters: those that take part, by name.
        """
        return {}

    def momentum(self, parameter: torch.nn.Parameter, name: str) -> Float[Tensor, "*shape"] | None:
        """What momentum will add to the next update, in units of the gradient; None if nothing."""


@runtime_checkable
class UpdateRule(Protocol):
    """One optimizer's update rule, linearised: update = const - P (step_size * gradient + rate * momentum)."""

    elementwise: bool = True
    """Whether P and momentum of some rows of a parameter are in the state of those rows alone."""

    def step_size(self, group: Group, state: State, rate: float) -> float:
        """What multiplies P g in the coming update, at a learning rate."""

    def preconditioner(
        self, parameter: torch.nn.Parameter, group: Group, state: State, mean: Callable[[], Tensor] | None
    ) -> Preconditioner:
        """P, without the step size. ``mean`` is None where P before the first step is to be the identity."""

    def ready(
        self, parameters: Sequence[torch.nn.Parameter], group: Group, states: Sequence[State]
    ) -> Sequence[Preconditioner | None]:
        """P of many parameters of a group; None where it takes the memory of a parameter, or a gradient.

        Args:
            parameters: the parameters.
            group: options of their group.
            states: their states.
        """
        return [None] * len(parameters)

    def momentum(self, group: Group, state: State) -> Tensor | None:
        """What momentum adds to the gradient's own share of the update, before P."""


def steps(state: State) -> float:
    """How many steps a parameter has made.

    Args:
        state: its state.

    Returns:
        The count; 0 before the first.
    """
    return float(state.get("step", 0))
