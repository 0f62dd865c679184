"""P of every parameter, read from a torch optimizer's param groups and state."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.geometry.base import Group, Preconditioner, State, UpdateRule
from winnow.geometry.preconditioners import scaled
from winnow.lm.shards import here, in_rows


class StateGeometry:
    """P of every parameter from an optimizer's state; everything is read from param groups at every call.

    P carries the step size of its own parameter relative to that of the first parameter of the first
    group with a learning rate above zero: groups whose learning rates, betas or step counts differ
    make updates of different size from the same gradient. Of a parameter in rows (FSDP2) P and momentum are those
    of the rows that are here.

    Args:
        optimizer: the optimizer.
        rule: its update rule, or a function from a param group to the rule of the group.
        first_step: P of a parameter that has no state yet: ``pool`` takes it from the pool's mean
            gradient, which is what the optimizer's own first step does; ``identity`` takes I.

    Raises:
        ValueError: ``first_step`` is neither.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rule: Callable[[Group], UpdateRule],
        first_step: str = "pool",
    ) -> None:
        if first_step not in ("pool", "identity"):
            raise ValueError(f"first_step must be 'pool' or 'identity' (scoring.first_step), got {first_step!r}")
        self.optimizer, self.rule, self.first_step = optimizer, rule, first_step

    def preconditioner(
        self,
        parameter: torch.nn.Parameter,
        name: str,
        mean: Callable[[], Float[Tensor, "*shape"]],
    ) -> Preconditioner:
        """P of one parameter, its relative step size included."""
        group = self._group(parameter, name)
        first = mean if self.first_step == "pool" else None
        found = self.rule(group).preconditioner(parameter, group, self._state(parameter), first)
        return self._relative(found, parameter, group, self._rates())

    def ready(self, parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, Preconditioner]:
        """P of those parameters that can have it ahead: it takes little memory, and no gradient."""
        members: list[dict[str, torch.nn.Parameter]] = [{} for _ in self.optimizer.param_groups]
        for name, parameter in parameters.items():
            members[self._place(self._group(parameter, name))][name] = parameter
        found, rates = {}, self._rates()
        for group, own in zip(self.optimizer.param_groups, members, strict=True):
            made = self.rule(group).ready(list(own.values()), group, [self._state(held) for held in own.values()])
            for (name, parameter), preconditioner in zip(own.items(), made, strict=True):
                if preconditioner is not None:
                    found[name] = self._relative(preconditioner, parameter, group, rates)
        return found

    def momentum(self, parameter: torch.nn.Parameter, name: str) -> Float[Tensor, "*shape"] | None:
        """What momentum adds to the coming update, in units of the gradient."""
        group = self._group(parameter, name)
        term = self.rule(group).momentum(group, self._state(parameter))
        ones = [1.0] * len(self.optimizer.param_groups)
        # P holds the share of the gradient relative to the first group's; momentum has a share of its own.
        share = self._reference(ones) / self._size(parameter, group, ones)
        return term if term is None or share == 1 else term * share

    def _group(self, parameter: torch.nn.Parameter, name: str) -> Group:
        for group in self.optimizer.param_groups:
            if any(held is parameter for held in group["params"]):
                if group.get("maximize"):
                    raise ValueError("maximize=True is not supported: the target loss is to go down")
                return group
        raise ValueError(
            f"trainable parameter {name!r} is not in the optimizer: freeze it, or leave it out with scoring.layers"
        )

    def _state(self, parameter: torch.nn.Parameter) -> State:
        state: State = self.optimizer.state.get(parameter, {})
        if not in_rows(parameter):
            return state
        return {key: here(value) if isinstance(value, Tensor) else value for key, value in state.items()}

    def _rates(self) -> list[float]:
        """Learning rates by group; at the foot of a warm-up, where all are zero, those it will lead to."""
        groups = self.optimizer.param_groups
        for key in ("lr", "initial_lr"):
            rates = [float(group.get(key, 0.0)) for group in groups]
            if any(rate > 0 for rate in rates):
                return rates
        return [1.0] * len(groups)

    def _place(self, group: Group) -> int:
        return next(at for at, other in enumerate(self.optimizer.param_groups) if other is group)

    def _size(self, parameter: torch.nn.Parameter, group: Group, rates: list[float]) -> float:
        return self.rule(group).step_size(group, self._state(parameter), rates[self._place(group)])

    def _relative(
        self, found: Preconditioner, parameter: torch.nn.Parameter, group: Group, rates: list[float]
    ) -> Preconditioner:
        return scaled(found, self._size(parameter, group, rates) / self._reference(rates))

    def _reference(self, rates: list[float]) -> float:
        groups = self.optimizer.param_groups
        at = next(at for at, rate in enumerate(rates) if rate > 0 and groups[at]["params"])
        return self._size(groups[at]["params"][0], groups[at], rates)
