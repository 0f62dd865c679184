"""Target examples that ``data.max_length`` cuts: counted, and left out where nothing of the response is left."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from winnow.data.encode import encode
from winnow.data.example import Example, Target
from winnow.lm.losses import IGNORE

log = logging.getLogger(__name__)


def fit_targets(targets: Sequence[Target], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Target]:
    """Leave out validation examples whose prompt fills ``max_length``, and say how many were cut.

    A target batch must not hold rows without a response token: its tasks would no longer have the
    shares that their weights give them. Test splits stay whole; their NLL skips such rows.

    Args:
        targets: the targets.
        tokenizer: the model's tokenizer.
        max_length: longest sequence, in tokens; ``data.max_length``.

    Returns:
        The targets; only val splits are shorter.

    Raises:
        ValueError: a split has no example with a response token.
    """
    fitted = []
    for target in targets:
        val, _ = (_with_response(target, split, tokenizer, max_length) for split in ("val", "test"))
        fitted.append(replace(target, val=val))
    return fitted


def _with_response(target: Target, split: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Example]:
    """A split's examples that keep a response token; logs how many do not, and how many are cut."""
    examples = list(getattr(target, split))
    rows = [encode(example, tokenizer, max_length) for example in examples]
    # The first token of a row is predicted by nothing.
    answered = [any(label != IGNORE for label in row.labels[1:]) for row in rows]
    key, lost = f"data.corpus.targets.{target.name}.{split}", answered.count(False)
    if lost == len(rows):
        raise ValueError(
            f"{key}: none of its {lost} examples has a response token within data.max_length={max_length} tokens; "
            "raise it"
        )
    cut = sum(row.truncated and some for row, some in zip(rows, answered, strict=True))
    for count, what in ((lost, "have no response token left and do not count"), (cut, "are cut")):
        if count:
            log.warning("%s: %d of %d examples %s (data.max_length=%d)", key, count, len(rows), what, max_length)
    return [example for example, some in zip(examples, answered, strict=True) if some]
