"""Factors held from scoring until the weights are known: the update without a second backward."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from winnow.gradients.factors import Factor
from winnow.selection import Selection


class KeptFactors:
    """Per-example gradients of a pool, as factors, for every trainable parameter.

    Args:
        parameters: the parameters, by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self._factors: dict[str, Factor] = {}

    def add(self, name: str, factor: Factor) -> None:
        """Hold a parameter's gradients.

        Args:
            name: the parameter.
            factor: gradients of the pool's candidates.
        """
        self._factors[name] = factor

    def weighted(self, selection: Selection) -> dict[str, Tensor]:
        """The update's gradient (1/k) sum_i w_i g_i.

        A parameter that the loss did not reach is missing, as autograd would leave its ``.grad`` None.

        Args:
            selection: kept candidates and their weights.

        Returns:
            Gradients by name, in the parameters' own precision; empty for an empty selection.
        """
        share = _share(selection)
        return {name: self._combine(name, share, selection) for name in self._factors} if len(selection) else {}

    def assign(self, selection: Selection, accumulate: bool = False) -> None:
        """Write the update's gradient to ``.grad`` and let go of the factors one by one.

        Args:
            selection: kept candidates and their weights; nothing is written if it is empty.
            accumulate: add to a gradient that is there, instead of replacing it.
        """
        if not accumulate:
            for parameter in self.parameters.values():
                parameter.grad = None
        share = _share(selection)
        # The last to come are the likeliest to be in the cache.
        for name in reversed(list(self._factors)) if len(selection) else []:
            gradient = self._combine(name, share, selection)
            del self._factors[name]
            parameter = self.parameters[name]
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self._factors.clear()

    def _combine(self, name: str, share: Tensor, selection: Selection) -> Tensor:
        return self._factors[name].combine(share, selection.index).to(self.parameters[name].dtype)


def _share(selection: Selection) -> Tensor:
    return selection.weight / max(1, len(selection))
