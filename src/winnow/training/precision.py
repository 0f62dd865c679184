"""Precisions that training cannot be trusted in."""

from __future__ import annotations

from typing import Any

from winnow.lm.finite import HALF


def check_precision(precision: Any) -> None:
    """Refuse float16 in every form; on a CPU Lightning would take bfloat16 in its place.

    Args:
        precision: ``trainer.precision``.

    Raises:
        ValueError: it is one of float16.
    """
    if str(precision) in ("16", "16-mixed", "16-true", "transformer-engine-float16"):
        scaled = "float16 with scaled gradients, which would be clipped and scored at the wrong size"
        how = HALF if "true" in str(precision) else scaled
        raise ValueError(f"trainer.precision={precision}: {how}. Use bf16-mixed, bf16-true or 32-true")
