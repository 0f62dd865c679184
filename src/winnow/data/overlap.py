"""Nothing that a target is measured on may be trained on, or selected by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from winnow.data.example import Example, Target
from winnow.data.splits import normalise
from winnow.records.shown import shown

SHOWN = 5


def check_disjoint(
    stream: Sequence[Example], targets: Sequence[Target], on_overlap: str = "error"
) -> tuple[list[Example], list[Target], dict[str, int]]:
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
    kept_stream, kept_targets = list(stream), list(targets)
    dropped: dict[str, int] = {}
    for test_of in targets:
        held_out = _prompts(test_of.test)
        for position, target in enumerate(kept_targets):
            val, here = f"data.corpus.targets.{target.name}.val", f"data.corpus.targets.{test_of.name}.test"
            kept = _without(target.val, held_out, val, here, on_overlap, dropped)
            kept_targets[position] = replace(target, val=kept)
    for target in targets:
        for split in ("val", "test"):
            key = f"data.corpus.targets.{target.name}.{split}"
            found = _prompts(getattr(target, split))
            kept_stream = _without(kept_stream, found, "data.corpus.stream", key, on_overlap, dropped)
    return kept_stream, kept_targets, dropped


def _content(example: Example) -> str:
    return normalise(example.prompt or example.response)


def _prompts(examples: Sequence[Example]) -> set[str]:
    return {_content(example) for example in examples}


def _without(
    examples: Sequence[Example], found: set[str], key: str, other: str, on_overlap: str, dropped: dict[str, int]
) -> list[Example]:
    """The examples that are not found elsewhere; counts the others, or raises."""
    kept = [example for example in examples if _content(example) not in found]
    count = len(examples) - len(kept)
    if not count:
        return kept
    if on_overlap == "error":
        ids = [example.id for example in examples if _content(example) in found]
        some = ", ".join(shown(one) for one in ids[:SHOWN]) + (", ..." if count > SHOWN else "")
        raise ValueError(
            f"{count} of {len(examples)} prompts of {key} are also in {other} ({some}): remove them, "
            "or have them left out and counted with data.corpus.on_overlap=drop"
        )
    if not kept:
        raise ValueError(f"every prompt of {key} is also in {other}; data.corpus.on_overlap=drop leaves nothing")
    dropped[f"{key}: also in {other}"] = count
    return kept
