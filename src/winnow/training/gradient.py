"""The gradient of an update: its norm is bounded, and it is finite and not zero, or that is said."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from torch import nn

from winnow.lm.shards import number
from winnow.selection import Selection

log = logging.getLogger(__name__)


def check_clip_norm(bound: object) -> None:
    """Refuse a bound that is none.

    Args:
        bound: ``clip_norm``.

    Raises:
        ValueError: it is neither None nor a finite number above zero.
    """
    number = isinstance(bound, int | float) and not isinstance(bound, bool)
    if bound is not None and not (number and 0 < cast(float, bound) < math.inf):
        raise ValueError(f"clip_norm must be a number > 0 and finite, or null for none; got {bound!r}")


def clipped(parameters: Mapping[str, nn.Parameter], bound: float | None, selection: Selection, step: int) -> Selection:
    """Clip the gradient of a pool's choice, and say what it is worth.

    Args:
        parameters: by name; a gradient that is not finite is dropped.
        bound: of the norm; None to leave it.
        selection: what the gradient is of.
        step: pools seen, for the log.

    Returns:
        The same; emptied, with ``update_not_finite`` in its diagnostics, where the gradient is not finite; with
        ``update_zero`` where all of it is zero.
    """
    norm = _clip(parameters, bound)
    if norm == 0:
        return replace(selection, diagnostics={**selection.diagnostics, "update_zero": 1.0})
    if math.isfinite(norm):
        return selection
    log.warning("pool %d: the gradient of the update is not finite; no update", step)
    for parameter in parameters.values():
        parameter.grad = None
    return Selection(selection.index[:0], selection.weight[:0], {"update_not_finite": 1.0})


def clip(parameters: Mapping[str, nn.Parameter], bound: float | None) -> bool:
    """Clip the norm of all gradients together.

    Args:
        parameters: by name.
        bound: of the norm; None to leave it.

    Returns:
        Whether the norm is finite.
    """
    return math.isfinite(_clip(parameters, bound))


def _clip(parameters: Mapping[str, nn.Parameter], bound: float | None) -> float:
    return number(nn.utils.clip_grad_norm_(list(parameters.values()), float("inf") if bound is None else bound))
