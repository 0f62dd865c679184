"""Nothing that a target is measured on may be trained on, or selected by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from winnow.data.alike import content_of
from winnow.data.example import Example, Target
from winnow.data.parts import contents, only
from winnow.records.shown import shown

SHOWN = 5


def check_disjoint(
    stream: Sequence[Example], targets: Sequence[Target], on_overlap: str = "error"
) -> tuple[Sequence[Example], list[Target], dict[str, int]]:
    """Look for prompts that stand in two places, case and white space aside.

    A prompt of a target (val or test) must not be in the stream, and a prompt of any target's test
    split must not be in any target's val split, which decides what is trained on. Plain text, which
    has no prompt, is compared by its response.

    Args:
        stream: the candidates of a finite stream.
        targets: the targets.
        on_overlap: ``error``, or ``drop`` to leave the example out of the stream, or out of val where
            it is in a test split. Test splits stay whole.

    Returns:
        Stream and targets, and how many examples were dropped by reason.

    Raises:
        ValueError: there is overlap and ``on_overlap`` is ``error``, it is neither ``error`` nor
            ``drop``, or dropping leaves nothing.
    """
    if on_overlap not in ("error", "drop"):
        raise ValueError(f"data.corpus.on_overlap must be error or drop, got {on_overlap!r}")
    kept_stream, kept_targets = stream, list(targets)
    dropped: dict[str, int] = {}
    for test_of in targets:
        for position, target in enumerate(kept_targets):
            val, here = f"data.corpus.targets.{target.name}.val", f"data.corpus.targets.{test_of.name}.test"
            kept = _without(target.val, test_of.test, val, here, on_overlap, dropped)
            kept_targets[position] = replace(target, val=kept)
    for target in targets:
        for split in ("val", "test"):
            key = f"data.corpus.targets.{target.name}.{split}"
            kept_stream = _without(kept_stream, getattr(target, split), "data.corpus.stream", key, on_overlap, dropped)
    return kept_stream, kept_targets, dropped


def _without(
    examples: Sequence[Example],
    others: Sequence[Example],
    key: str,
    other: str,
    on_overlap: str,
    dropped: dict[str, int],
) -> Sequence[Example]:
    """The examples that are not found elsewhere; counts the others, or raises."""
    alike = np.flatnonzero(np.isin(contents(examples), contents(others))).tolist()
    texts = {content_of(one) for one in others} if alike else set()
    found = [position for position in alike if content_of(examples[position]) in texts]
    if not found:
        return examples
    if on_overlap == "error":
        ids = [examples[position].id for position in found[:SHOWN]]
        some = ", ".join(shown(one) for one in ids) + (", ..." if len(found) > SHOWN else "")
        raise ValueError(
            f"{len(found)} of {len(examples)} prompts of {key} are also in {other} ({some}): remove them, "
            "or have them left out and counted with data.corpus.on_overlap=drop"
        )
    if len(found) == len(examples):
        raise ValueError(f"every prompt of {key} is also in {other}; data.corpus.on_overlap=drop leaves nothing")
    dropped[f"{key}: also in {other}"] = len(found)
    keep = np.ones(len(examples), dtype=bool)
    keep[found] = False
    return only(examples, keep)
