"""The interface between an optimizer's state and the products taken of gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.gradients.factors import Factor, Scaled


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

    def momentum(self, parameter: torch.nn.Parameter, name: str) -> Float[Tensor, "*shape"] | None:
        """What momentum will add to the next update, in units of the gradient; None if nothing."""


@dataclass(frozen=True)
class Identity:
    """P = I."""

    def tensor(self, gradient: Float[Tensor, "*shape"], power: float) -> Float[Tensor, "*shape"]:
        """The gradient itself.

        Args:
            gradient: any tensor.
            power: ignored.

        Returns:
            The same tensor.
        """
        return gradient

    def factor(self, factor: Factor, power: float) -> Factor:
        """The gradients themselves.

        Args:
            factor: gradients of a batch.
            power: ignored.

        Returns:
            The same factor.
        """
        return factor


@dataclass(frozen=True)
class Diagonal:
    """P = diag(diagonal).

    Args:
        diagonal: positive entries, of the parameter's shape.
    """

    diagonal: Float[Tensor, "*shape"]

    def power(self, power: float) -> Float[Tensor, "*shape"]:
        """Entries of P^power.

        Args:
            power: any real.

        Returns:
            A tensor of the parameter's shape.
        """
        if power == 0.5:
            return self.diagonal.sqrt()
        return self.diagonal if power == 1 else self.diagonal**power

    def tensor(self, gradient: Float[Tensor, "*shape"], power: float) -> Float[Tensor, "*shape"]:
        """P^power o gradient.

        Args:
            gradient: a tensor of the parameter's shape.
            power: any real; 0 is the identity.

        Returns:
            The scaled gradient.
        """
        return gradient if power == 0 else gradient * self.power(power).to(gradient.dtype)

    def factor(self, factor: Factor, power: float) -> Factor:
        """P^power o G_i.

        Args:
            factor: gradients of a batch.
            power: any real; 0 is the identity.

        Returns:
            The scaled gradients, still factorised below the scale.
        """
        return factor if power == 0 else Scaled(factor, self.power(power).to(factor.dtype))


class OptimizerState:
    """Param groups and state of a torch optimizer, by parameter.

    Args:
        optimizer: a ``torch.optim.Optimizer``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def group(self, parameter: torch.nn.Parameter, name: str) -> dict[str, Any]:
        """Options of the group a parameter is in.

        Args:
            parameter: the parameter.
            name: its name, for the error.

        Returns:
            The param group.

        Raises:
            ValueError: the optimizer does not hold the parameter, or maximizes.
        """
        for group in self.optimizer.param_groups:
            if any(held is parameter for held in group["params"]):
                if group.get("maximize"):
                    raise ValueError("maximize=True is not supported: the target loss is to go down")
                return group
        raise ValueError(
            f"trainable parameter {name!r} is not in the optimizer: freeze it, or leave it out with scoring.layers"
        )

    def state(self, parameter: torch.nn.Parameter) -> dict[str, Any]:
        """State of a parameter.

        Args:
            parameter: the parameter.

        Returns:
            Its state; empty before its first step.
        """
        state: dict[str, Any] = self.optimizer.state.get(parameter, {})
        return state


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision products are taken in: float32, or float64 if the factors are.

    Args:
        dtype: precision of the factors.

    Returns:
        ``torch.float32`` or ``torch.float64``.
    """
    return torch.promote_types(dtype, torch.float32)
