"""Factors held from scoring until the weights are known: the update without a second backward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from winnow.gradients.factors.base import Factor
from winnow.lm.layout import KEYS, Batch, weights_beside
from winnow.lm.shards import in_rows
from winnow.selection import Selection

ANOTHER = (
    "score a pool, choose and make its update before the next pool is scored and before the parameters move, or take "
    "update='two_pass' (scoring.update), which runs the chosen candidates again"
)


class HeldFactors:
    """Per-example gradients of a pool, as factors, for every trainable parameter.

    They hold for that pool and for the model as it was scored. Changes of either are seen as far as autograd counts
    them: in-place operations and new storage, but not what is written through ``parameter.data`` in place.

    Args:
        model: the model; its frozen parameters must not move either.
        parameters: the trainable parameters, by name.
        pool: the pool that is about to be scored.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], pool: Batch) -> None:
        self.parameters = parameters
        self.valid: Bool[Tensor, " pool"] | None = None
        """Which candidates may be chosen, once that is known; None for all."""
        self.stepped = False
        """Whether the optimizer has made a step since: fused ones move parameters without a trace in them."""
        self.factors: dict[str, Factor] = {}
        """By parameter, until they are used up."""
        self._pool = {key: pool[key] for key in KEYS} | weights_beside(pool)
        self._pool_stamps = _stamps(self._pool.values())
        # What is held in shards is gathered and let go of by whoever runs it, and has no storage of its own to look at.
        named = model.named_parameters()
        self._named = {name: held for name, held in named if not in_rows(held)}
        self._stamps = _stamps(self._named.values())

    def check(self, selection: Selection, pool: Batch | None = None) -> None:
        """Refuse an update that these factors would get wrong.

        Args:
            selection: kept candidates and their weights.
            pool: the pool that the caller means; None where it is not said.

        Raises:
            RuntimeError: ``pool`` is another one than was scored or has changed since, or a parameter has.
            ValueError: the selection names candidates that are not there or not valid.
        """
        changed = _stamps(self._pool.values()) != self._pool_stamps
        if changed or (pool is not None and not all(_same(pool.get(key), held) for key, held in self._pool.items())):
            what = "has changed since it was scored" if changed else "is not the one that was scored last"
            raise RuntimeError(f"the pool of this one-pass update {what}, whose gradients are held: {ANOTHER}")
        if self.stepped:
            raise RuntimeError(
                f"the parameters have changed since the pool was scored, by an optimizer step: {ANOTHER}"
            )
        for name, before, now in zip(self._named, self._stamps, _stamps(self._named.values()), strict=True):
            if before != now:
                raise RuntimeError(f"parameter {name} has changed since the pool was scored: {ANOTHER}")
        size = len(self._pool["labels"])
        index = selection.index
        outside = index[index >= size].tolist()
        if outside:
            raise ValueError(f"the selection names candidates {outside} of a pool of {size}")
        if self.valid is not None:
            bad = index[~self.valid[index.to(self.valid.device)].to(index.device)].tolist()
            if bad:
                raise ValueError(
                    f"the selection names candidates {bad}, which have no response token or no finite loss or "
                    "gradient: choose among Signals.valid"
                )

    def add(self, name: str, factor: Factor) -> None:
        """Hold a parameter's gradients.

        Args:
            name: the parameter.
            factor: gradients of the pool's candidates.
        """
        self.factors[name] = factor

    def cost(self, selection: Selection) -> float:
        """Multiplications that the update's gradient takes.

        Args:
            selection: kept candidates and their weights.

        Returns:
            k T d p, or k d p of gradients that are formed already, over all parameters.
        """
        each = sum(float(one.shape.numel()) * (one.length or 1) for one in self.factors.values())
        return len(selection) * each

    def weighted(self, selection: Selection) -> dict[str, Tensor]:
        """The update's gradient (1/k) sum_i w_i g_i.

        A parameter that the loss did not reach is missing, as autograd would leave its ``.grad`` None.

        Args:
            selection: kept candidates and their weights.

        Returns:
            Gradients by name, in the parameters' own precision; empty for an empty selection.
        """
        share = _share(selection)
        return {name: self._combine(name, share, selection) for name in self.factors} if len(selection) else {}

    def assign(self, selection: Selection, accumulate: bool = False) -> None:
        """Write the update's gradient to ``.grad`` and let go of the factors one by one.

        Args:
            selection: kept candidates and their weights; nothing is written if it is empty.
            accumulate: add to a gradient that is there, instead of replacing it.

        Raises:
            RuntimeError: parameters are held in rows by several processes.
        """
        if not accumulate:
            for parameter in self.parameters.values():
                parameter.grad = None
        share = _share(selection)
        # The last to come are the likeliest to be in the cache.
        for name in reversed(list(self.factors)) if len(selection) else []:
            gradient = self._combine(name, share, selection)
            del self.factors[name]
            parameter = self.parameters[name]
            if in_rows(parameter):  # torch would take it, and clip it by another norm in every process
                raise RuntimeError(
                    f"{name} is held in rows by several processes, and this update is of one process's candidates: "
                    "score with winnow.parallel.ParallelScorer, or take update='two_pass' (scoring.update)"
                )
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self.factors.clear()

    def _combine(self, name: str, share: Tensor, selection: Selection) -> Tensor:
        return self.factors[name].combine(share, selection.index).to(self.parameters[name].dtype)


def _stamps(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    return [(0 if tensor.is_inference() else tensor._version, tensor.data_ptr()) for tensor in tensors]


def _same(given: Tensor | None, held: Tensor) -> bool:
    return given is held or (
        given is not None and given.shape == held.shape and given.device == held.device and torch.equal(given, held)
    )


def _share(selection: Selection) -> Tensor:
    return selection.weight.double() / max(1, len(selection))  # rounded once, to the precision of the factors
