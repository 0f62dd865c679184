"""Examples cut to a window, for scores that are to be cheaper than exact."""

from __future__ import annotations

import torch
from torch import Tensor

from winnow.lm.layout import KEYS, Batch, right_padded, weights_beside
from winnow.lm.losses import IGNORE


def cropped(batch: Batch, max_tokens: int) -> dict[str, Tensor]:
    """At most so many tokens of every example, about where its response begins.

    The window holds the first half of it, or more, of response where the response is as long, and before it the end of
    the prompt: no example that has a response loses all of it.

    Args:
        batch: the examples, padded wherever.
        max_tokens: length of the window, at least 2.

    Returns:
        The batch, no longer than the window.

    Raises:
        ValueError: the window is too short.
    """
    if max_tokens < 2:
        raise ValueError(f"scoring.max_tokens must be at least 2, or null for whole examples, got {max_tokens}")
    batch = right_padded(batch)
    width = batch["input_ids"].shape[1]
    lengths = batch["attention_mask"].sum(1)
    labelled = batch["labels"] != IGNORE
    begins = torch.where(labelled.any(1), labelled.int().argmax(1), lengths)
    ends = torch.minimum(lengths, (begins + (max_tokens + 1) // 2).clamp_min(max_tokens))
    first = (ends - max_tokens).clamp_min(0)
    places = first[:, None] + torch.arange(min(max_tokens, width), device=lengths.device)
    inside = places < ends[:, None]
    kept = {key: batch[key].gather(1, places.clamp_max(width - 1)) for key in KEYS}
    blank = {"input_ids": 0, "attention_mask": 0, "labels": IGNORE}
    longest = max(int(inside.sum(1).max()), 1)
    short = {key: torch.where(inside, value, blank[key])[:, :longest] for key, value in kept.items()}
    return short | weights_beside(batch)
