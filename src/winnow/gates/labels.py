"""What a gate learns from: a number per scored candidate."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.selection import Selection
from winnow.signals import Needs, Signals

LABELS = ("cosine", "utility", "weight")


def check_label(label: str) -> None:
    """Refuse an unknown label.

    Args:
        label: ``gate.label``.

    Raises:
        ValueError: it is none of ``LABELS``.
    """
    if label not in LABELS:
        raise ValueError(f"gate.label must be one of {', '.join(LABELS)}; got {label!r}")


def label_needs(label: str, asked: Needs) -> Needs:
    """What is computed of a pool where a gate learns from it.

    Args:
        label: what is learned.
        asked: what the selector asks for.

    Returns:
        The selector's needs, and where it does not compare gradients with the target, alignment and norms under the
        optimizer's P beside them.

    Raises:
        ValueError: gradients cannot be had beside what the selector asks for.
    """
    if label == "weight":
        return asked
    if asked.states:
        raise ValueError(
            f"gate.label={label} is made of gradients, and the selector reads hidden states, which come from a "
            "forward alone: set gate.label=weight"
        )
    if asked.alignment is None:
        asked = replace(asked, alignment=1)
    if asked.gram is None and asked.norms is None:
        asked = replace(asked, norms=1)
    return replace(asked, target_norm=label == "cosine")


def labels_of(label: str, signals: Signals, selection: Selection) -> Float[Tensor, " pool"]:
    """Labels of a scored pool.

    Args:
        label: ``cosine`` of a candidate's gradient with the target's, b_i / (||u_i|| ||tau||); ``utility``: b_i over
            the pool's root mean square of ||u||; ``weight``: what the selector gave.
        signals: of the pool.
        selection: made from them.

    Returns:
        In float64 on the CPU; NaN for candidates that say nothing: not valid, or without a gradient.
    """
    valid = signals.valid.cpu()
    if label == "weight":
        found = selection.dense(len(signals)).double().cpu()
        return torch.where(valid, found, torch.nan)
    assert signals.alignment is not None
    utility, lengths = signals.alignment.double().cpu(), _lengths(signals)
    usable = valid & (lengths > 0) & utility.isfinite()
    if label == "cosine":
        scale = torch.where(usable, lengths, 1.0) * _target(signals)
    else:
        scale = lengths[usable].square().mean().sqrt() if bool(usable.any()) else torch.ones((), dtype=torch.float64)
    return torch.where(usable, utility / scale, torch.nan)


def _target(signals: Signals) -> float:
    """Length of the target's gradient; 1, which is common to a pool, where the way of scoring does not give it."""
    length = 1.0 if signals.target_norm is None else float(signals.target_norm)
    return length if 0 < length < float("inf") else 1.0


def _lengths(signals: Signals) -> Float[Tensor, " pool"]:
    if signals.norms is not None:
        return signals.norms.double().cpu()
    assert signals.gram is not None
    return signals.gram.diagonal().double().cpu().clamp_min(0).sqrt()
