"""A corpus as a model meets it: every row checked, what cannot be used left out, and what carries loss said."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from winnow.data.example import Corpus, Example, Target
from winnow.data.look import Glass, Looked
from winnow.data.rows import Listed
from winnow.data.settled import narrowed, settle
from winnow.data.unread import say_unread

log = logging.getLogger(__name__)


def prepared(corpus: Corpus, glass: Glass) -> Corpus:
    """Look at every row of the targets and of a finite stream, once.

    Validation examples without a response token are left out: a target batch must not hold rows without one, or its
    tasks would no longer have the shares that their weights give them. Test splits stay whole; their NLL skips such
    rows.

    Args:
        corpus: stream and targets.
        glass: looks at examples.

    Returns:
        The corpus without the rows that cannot be used.

    Raises:
        ValueError: a split has no example with a response token.
        BadRows: rows cannot be used, and ``data.on_bad_row`` is ``error``.
    """
    say_unread(corpus.turns, glass.tokenizer, glass.encoding.date)
    targets = [_target(target, corpus, glass) for target in corpus.targets]
    if not isinstance(corpus.stream, Listed):
        return replace(corpus, targets=targets)
    stream, looked = _usable(corpus.stream.examples, "data.corpus.stream", corpus, glass)
    _tell("data.corpus.stream", looked, glass)
    if glass.encoding.truncate == "drop":
        stream, looked = _short(stream, looked, "data.corpus.stream", glass)
    _check_answered(stream, looked, glass.max_length)
    return replace(corpus, stream=Listed(stream), targets=targets)


def _usable(examples: Sequence[Example], key: str, corpus: Corpus, glass: Glass) -> tuple[Sequence[Example], Looked]:
    looked = glass.look(examples, key)
    return narrowed(examples, looked, settle(examples, looked, key, corpus.rejects))


def _target(target: Target, corpus: Corpus, glass: Glass) -> Target:
    splits = {}
    for split in ("val", "test"):
        key = f"data.corpus.targets.{target.name}.{split}"
        examples = getattr(target, split)
        if not len(examples):
            splits[split] = examples
            continue
        examples, looked = _usable(examples, key, corpus, glass)
        answered = looked.columns["answered"] > 0
        lost = int((~answered).sum())
        if lost == len(examples):
            raise ValueError(
                f"{key}: none of its {lost} examples has a response token within data.max_length={glass.max_length} "
                "tokens; raise it"
            )
        cut = int((answered & (looked.columns["kept"] < looked.columns["length"])).sum())
        for count, what in ((lost, "have no response token left and do not count"), (cut, "are cut")):
            if count:
                log.warning(
                    "%s: %d of %d examples %s (data.max_length=%d)", key, count, len(examples), what, glass.max_length
                )
        splits[split] = narrowed(examples, looked, answered)[0] if split == "val" else examples
    return replace(target, val=splits["val"], test=splits["test"])


def _short(examples: Sequence[Example], looked: Looked, key: str, glass: Glass) -> tuple[Sequence[Example], Looked]:
    short = looked.columns["length"] <= glass.max_length
    if not short.any():
        raise ValueError(f"{key}: all rows are longer than data.max_length={glass.max_length}; raise it")
    if not short.all():
        log.warning(
            "%s: %d of %d rows are longer than data.max_length=%d and are left out (data.truncate=drop)",
            key, int((~short).sum()), len(short), glass.max_length,
        )  # fmt: skip
    return narrowed(examples, looked, short)


def _tell(key: str, looked: Looked, glass: Glass) -> None:
    """What carries loss of a split, and what was cut of it."""
    rows = len(looked.columns["length"])
    cut = looked.columns["kept"] < looked.columns["length"]
    log.info(
        "%s: %s rows, %s turns of the assistant's, %s of them trained on (data.loss_on=%s); %s of its %s tokens carry "
        "loss, of %s in all",
        key, *(f"{number:,}" for number in (rows, looked.total("turns"), looked.total("trained"))),
        glass.encoding.loss_on, *(f"{looked.total(name):,}" for name in ("loss", "said", "length")),
    )  # fmt: skip
    if cut.any():
        lost = looked.total("length") - looked.total("kept")
        log.warning(
            "%s: %s of %s rows are longer than data.max_length=%d and lose %s tokens (data.truncate=%s)",
            key, f"{int(cut.sum()):,}", f"{rows:,}", glass.max_length, f"{lost:,}", glass.encoding.truncate,
        )  # fmt: skip
    if parted := looked.total("parted"):
        log.warning(
            "%s: in %d of %d rows the chat template opens a generation otherwise than it writes before the reply: "
            "loss begins where they part, and a generation begins further on",
            key, parted, rows,
        )  # fmt: skip


def _check_answered(examples: Sequence[Example], looked: Looked, max_length: int) -> None:
    """Say how much of a stream has no token with loss left within ``max_length``."""
    answered = looked.columns["answered"] > 0
    if answered.all():
        return
    total, lost = len(examples), np.flatnonzero(~answered).tolist()
    if len(lost) == total:
        raise ValueError(
            f"data.max_length={max_length} leaves no response token in any of {total} examples of the stream: their "
            "prompts alone are as long; raise it"
        )
    seen = Counter(examples[at].source for at in lost)
    worst = ", ".join(f"{source!r} {count}" for source, count in seen.most_common(3))
    log.warning(
        "data.max_length=%d: %d of %d examples of the stream (%.0f %%) have no response token left and can never be "
        "chosen (by source: %s); raise it to have them",
        max_length, len(lost), total, 100 * len(lost) / total, worst,
    )  # fmt: skip
