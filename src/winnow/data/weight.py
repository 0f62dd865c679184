"""Weights of rows: what an example's loss is multiplied by, wherever its gradient is taken."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from winnow.data.example import Example
from winnow.data.rejects import BadRow, Rejects
from winnow.data.table import ExampleTable
from winnow.lm.layout import WEIGHT

log = logging.getLogger(__name__)


def row_weight(record: Mapping[str, Any]) -> float:
    """The ``weight`` of a record.

    Args:
        record: its fields.

    Returns:
        A number >= 0; 1 where there is none.

    Raises:
        BadRow: it is none.
    """
    value = record.get("weight")
    if value is None:
        return 1.0
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf:
        raise BadRow(
            "`weight` of a row must be a number of 0 or more, by which its loss is multiplied",
            f"got {value!r:.40}; rename the column if it means another",
        )
    return float(value)


def weights_of(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Weights of a pool's examples, as a token batch has them.

    Args:
        examples: the pool.

    Returns:
        Nothing where all of them are 1.
    """
    weights = [example.weight for example in examples]
    return {} if all(weight == 1 for weight in weights) else {WEIGHT: torch.tensor(weights, dtype=torch.float32)}


def say_weights(table: ExampleTable, key: str) -> None:
    """Say how many rows have a weight: the column may have meant something else.

    Args:
        table: the examples.
        key: their config key.
    """
    weights = table.numbers("weight")
    other = weights[weights != 1]
    if len(other):
        log.info(
            "%s: %d of %d rows have a `weight` other than 1, from %g to %g, by which their loss is multiplied",
            key, len(other), len(weights), other.min(), other.max(),
        )  # fmt: skip


def unweighted(table: ExampleTable, key: str, rejects: Rejects) -> ExampleTable:
    """The rows of a target that have no weight, which are drawn and measured alike.

    Args:
        table: the examples.
        key: their config key.
        rejects: takes the others.

    Returns:
        The table without them.
    """
    plain = table.numbers("weight") == 1
    for position in np.flatnonzero(~plain).tolist():
        rejects.add(key, table.where(position), BadRow(
            "`weight` of a target's row must be 0 or 1",
            f"got {table[position].weight:g}; weigh targets by data.corpus.targets.NAME.weight, or rename the column",
        ))  # fmt: skip
    return table if plain.all() else table.chosen(np.flatnonzero(plain))
