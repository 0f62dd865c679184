"""What of a stream can never be chosen, and what of the references never be written: said before the first step."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from winnow.data.encode import encode
from winnow.data.example import Stream, Target
from winnow.lm.losses import IGNORE

log = logging.getLogger(__name__)

SAMPLE = 500
"""Most examples of a stream that are looked at."""


def check_stream_fits(stream: Stream, tokenizer: PreTrainedTokenizerBase, max_length: int, seed: int = 0) -> float:
    """Say how much of a stream has no response token left within ``max_length``.

    Args:
        stream: the candidates; a sample of more than 500 is looked at, the first 500 of an endless stream.
        tokenizer: the model's tokenizer.
        max_length: longest sequence, in tokens; ``data.max_length``.
        seed: of the sample.

    Returns:
        The share that can never be chosen.

    Raises:
        ValueError: that is all of it.
    """
    size = stream.size
    at = places(size, seed)
    seen: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for place in at:
        example = stream[place]
        seen[example.source] += 1
        # The first token of a row is predicted by nothing.
        if not any(label != IGNORE for label in encode(example, tokenizer, max_length).labels[1:]):
            lost[example.source] += 1
    total = sum(lost.values())
    looked = f"{len(at)} examples of the stream" if size in (None, len(at)) else f"a sample of {len(at)}"
    if total == len(at):
        raise ValueError(
            f"data.max_length={max_length} leaves no response token in any of {looked}: their prompts alone are as "
            "long; raise it"
        )
    if total:
        worst = ", ".join(f"{source!r} {count} of {seen[source]}" for source, count in lost.most_common(3))
        log.warning(
            "data.max_length=%d: %d of %s (%.0f %%) have no response token left and can never be chosen (by source: "
            "%s); raise it to have them",
            max_length, total, looked, 100 * total / len(at), worst,
        )  # fmt: skip
    return total / len(at)


def places(size: int | None, seed: int) -> list[int]:
    """Positions of a stream that are looked at.

    Args:
        size: of the stream; None where it is endless.
        seed: of the sample.

    Returns:
        At most ``SAMPLE`` of them, in order.
    """
    if size is None or size <= SAMPLE:
        return list(range(SAMPLE if size is None else size))
    return sorted(np.random.default_rng(seed).choice(size, SAMPLE, replace=False).tolist())


def check_references_fit(targets: Sequence[Target], tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn of references longer than what a generation may have: exact match cannot count them.

    Args:
        targets: the targets; those without a scorer are passed over.
        tokenizer: the model's tokenizer.
    """
    for target in targets:
        if target.score is None:
            continue
        responses = [example.response for example in list(target.test)[:SAMPLE]]
        lengths = [len(ids) for ids in tokenizer(responses, add_special_tokens=False)["input_ids"]]
        longer = sum(length > target.max_new_tokens for length in lengths)
        if longer:
            log.warning(
                "target %s: %d of %d references are longer than max_new_tokens=%d (the longest has %d tokens), and a "
                "generation that is cut before its answer cannot match; raise it (max_new_tokens of the target)",
                target.name, longer, len(lengths), target.max_new_tokens, max(lengths),
            )  # fmt: skip
