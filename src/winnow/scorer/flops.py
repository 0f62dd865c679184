"""What passes through a model cost, in floating-point operations of matrix products, from their shapes.

The number of operations of a pass is linear in its tokens, in the squared length of its rows (attention) and in the
positions that logits are computed at. How many of each is counted once, by torch's own counter on a few tiny batches,
for whatever layers, adapters and attention the model has; every batch is then counted from its shape. Elementwise
operations are left out, as in torch's counter.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from winnow.lm.forward import Forward
from winnow.lm.passes import FORWARD, TRAINED, Pass
from winnow.lm.quiet import quiet
from winnow.scorer.flop_counter import counted
from winnow.scorer.probes import INPUTS, probe

log = logging.getLogger(__name__)

PROBES = ((1, 8, 2), (1, 16, 2), (1, 16, 6), (2, 12, 4))
"""Rows, length and logit positions of the batches that are counted; the last one checks the others."""
DOUBT = 0.01


@dataclass(frozen=True)
class Rate:
    """Operations of a pass by what they are in proportion to.

    Args:
        token: of every cell of the batch.
        square: of every pair of cells of a row.
        column: of every position that logits are computed at.
    """

    token: float = 0.0
    square: float = 0.0
    column: float = 0.0

    def of(self, one: Pass) -> tuple[float, float]:
        """Operations of a pass.

        Args:
            one: its shape.

        Returns:
            Those of the layers and the logits, and those of attention.
        """
        return (
            one.rows * (one.length * self.token + one.columns * self.column),
            float(one.rows * (one.length**2 if one.pairs is None else one.pairs)) * self.square,
        )

    def __sub__(self, other: Rate) -> Rate:
        """Of this pass beyond another one."""
        return Rate(self.token - other.token, self.square - other.square, self.column - other.column)


@dataclass
class Flops:
    """Floating-point operations, by what they are for.

    Args:
        forward: of layers and logits, without attention.
        backward: to the inputs, without attention.
        weights: gradients of weights in an update.
        attention: forward and backward.
        products: K, b, norms and the target's gradient.
        optimizer: the step.
    """

    forward: float = 0.0
    backward: float = 0.0
    weights: float = 0.0
    attention: float = 0.0
    products: float = 0.0
    optimizer: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return sum(vars(self).values())


class Rates:
    """How much a model's passes cost; each kind is counted when it is first asked for.

    Args:
        forward: the model.
        parameters: those that take part in the geometry, by name.
    """

    def __init__(self, forward: Forward, parameters: Mapping[str, nn.Parameter]) -> None:
        self._forward, self._parameters = forward, parameters
        self._known: dict[str, Rate] = {}

    def add(self, flops: Flops, passes: Sequence[Pass]) -> None:
        """Count passes.

        Args:
            flops: takes them.
            passes: their shapes.
        """
        for one in passes:
            layers, attention = self[FORWARD].of(one)
            flops.forward += layers
            if one.kind != FORWARD:
                back, more = self[INPUTS if one.kind == TRAINED else one.kind].of(one)
                flops.backward += back
                attention += more
            if one.kind == TRAINED:
                flops.weights += sum((self[TRAINED] - self[INPUTS]).of(one))
            flops.attention += attention

    def forward(self, one: Pass) -> float:
        """Operations of a forward pass, attention included.

        Args:
            one: its shape.

        Returns:
            All of them.
        """
        return sum(self[FORWARD].of(one))

    def __getitem__(self, kind: str) -> Rate:
        """Of a forward, or of the backward of another kind alone.

        Args:
            kind: of a pass, or ``INPUTS``: the backward of an update without its weight gradients.

        Returns:
            The rate; NaN, with a warning, where a model cannot be counted.
        """
        if kind not in self._known:
            try:
                with quiet(self._forward.model):
                    whole = self._rate(probe(self._forward, self._parameters, kind))
            except Exception as error:  # training goes on whatever a model does with a batch of a few tokens
                log.warning("budget/flops is not known: the operations of this model cannot be counted: %s", error)
                whole = Rate(*[math.nan] * 3)
            self._known[kind] = whole if kind == FORWARD else whole - self[FORWARD]
        return self._known[kind]

    def _rate(self, run: Callable[[dict[str, Tensor]], Any]) -> Rate:
        run(self._batch(*PROBES[0]))  # what is looked at once, such as a layer's closed form, is no part of a pass
        found = [counted(lambda size=size: run(self._batch(*size))) for size in PROBES]  # type: ignore[misc]
        sizes = [(rows * length, rows * length**2, rows * columns) for rows, length, columns in PROBES]
        known = torch.tensor(sizes[:-1], dtype=torch.float64)
        rate = torch.linalg.solve(known, torch.tensor(found[:-1], dtype=torch.float64)).tolist()
        expected = sum(size * each for size, each in zip(sizes[-1], rate, strict=True))
        if abs(expected - found[-1]) > DOUBT * found[-1]:
            log.warning(
                "the operations of this model's passes do not follow from their shapes (%.4g expected, %.4g counted): "
                "budget/flops is off by as much",
                expected, found[-1],
            )  # fmt: skip
        return Rate(*rate)

    def _batch(self, rows: int, length: int, columns: int) -> dict[str, Tensor]:
        device = next(self._forward.model.parameters()).device
        ids = torch.zeros(rows, length, dtype=torch.long, device=device)
        labels = torch.full_like(ids, -100)
        labels[:, -columns:] = 0
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
