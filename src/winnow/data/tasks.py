"""The embedded corpora: a stream mixed from task families, and target tasks with their own splits."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from winnow.data.example import Corpus, Example, Target
from winnow.data.families.draft import Family, score
from winnow.data.mixture import Blend, Mixture, Part, draw
from winnow.data.text import TextPassages


def task_split(name: str, family: Family, split: str, size: int, seed: int = 0, source: str = "tasks") -> list[Example]:
    """Distinct examples of one family from one split.

    Args:
        name: of the family.
        family: what to draw from.
        split: ``val`` or ``test``.
        size: how many.
        seed: of the split.
        source: prefix of the examples' source.

    Returns:
        The examples, all prompts distinct.

    Raises:
        ValueError: the family has too few prompts in that split.
    """
    rng = random.Random(f"{split}-{seed}-{name}")
    found: dict[str, Example] = {}
    for _ in range(50 * size):
        draft = draw(family, rng, split)
        if draft.prompt not in found:
            number = len(found)
            found[draft.prompt] = Example(
                f"{split}-{name}-{seed}-{number}", f"{source}/{name}", draft.prompt, draft.response, answer=draft.answer
            )
            if len(found) == size:
                return list(found.values())
    raise ValueError(f"{name} has only {len(found)} distinct {split} prompts; {size} were asked for")


def task_corpus(
    mixture: Mapping[str, Part],
    targets: Mapping[str, float],
    noise: Mapping[str, float] | None = None,
    val_size: int = 128,
    test_size: int = 200,
    seed: int = 0,
    max_new_tokens: int = 48,
) -> Corpus:
    """A stream mixed from families, and some of those families as targets.

    The splits are disjoint from the stream by content (``winnow.data.splits``). Val and test do not
    depend on the seed of the run, so that runs are compared on the same examples.

    Args:
        mixture: families with weights and hidden groups, by name.
        targets: weight of each target, by the name of its family.
        noise: rates of ``wrong``, ``shuffled`` and ``duplicate`` examples in the stream.
        val_size: validation examples per target.
        test_size: test examples per target.
        seed: of the stream.
        max_new_tokens: length allowed to a generation.

    Returns:
        The corpus.

    Raises:
        ValueError: a target is not a family of the mixture.
    """
    unknown = set(targets) - set(mixture)
    if unknown:
        raise ValueError(
            f"data.corpus.targets: {sorted(unknown)} are not in data.corpus.mixture ({', '.join(mixture)})"
        )
    built = [
        Target(
            name,
            task_split(name, mixture[name].family, "val", val_size),
            task_split(name, mixture[name].family, "test", test_size),
            score,
            weight,
            max_new_tokens,
        )
        for name, weight in targets.items()
    ]
    return Corpus(Mixture(mixture, seed, noise), built)


def pretraining_corpus(
    mixture: Mapping[str, Part],
    targets: Mapping[str, float],
    text: Sequence[str],
    text_share: float = 0.3,
    val_size: int = 128,
    test_size: int = 200,
    seed: int = 0,
    max_new_tokens: int = 48,
) -> Corpus:
    """Clean task families blended with plain text; the targets are only watched.

    Args:
        mixture: families with weights.
        targets: families whose NLL is watched.
        text: jsonl(.gz) files with a ``text`` field.
        text_share: share of documents that are text passages.
        val_size: validation examples per target.
        test_size: test examples per target.
        seed: of the stream.
        max_new_tokens: length allowed to a generation.

    Returns:
        The corpus.
    """
    tasks = task_corpus(mixture, targets, None, val_size, test_size, seed, max_new_tokens)
    blend = Blend([tasks.stream, TextPassages(text, seed)], [1 - text_share, text_share], seed)
    return Corpus(blend, tasks.targets)
