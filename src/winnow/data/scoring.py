"""Which scorer a target's generations are held against: only one that its references can match."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from winnow.data.example import Example, Score
from winnow.data.scorers import MARK, NUMBER, SCORERS, final_number, first_line, wanted_answer

log = logging.getLogger(__name__)

AUTO = "auto"
SHORT = 60
"""Most characters of an answer that a generation can be expected to repeat word for word."""
SHARE = 0.9
"""References that have to be of one kind for a scorer to be chosen for it."""
BEFORE = re.compile(r"(?:\\boxed\{|[(\[{\"'*_$\u20ac\u00a3+:])*")
AFTER = re.compile(r"[)\]}\"'*_$\u20ac\u00a3%.,;!?]*")
"""What may stand around a number in the same word."""


def scorer_for(score: Score | str | None, examples: Sequence[Example], key: str) -> Score | None:
    """The scorer of a target.

    Args:
        score: a function; a name of ``winnow.data.scorers``; ``auto``, to go by the references; or None.
        examples: the target's test split, whose answers are the references.
        key: config key of the target, for messages.

    Returns:
        The function; None where the NLL alone is to be measured.

    Raises:
        ValueError: the name is unknown, or the scorer gives zero to every reference itself.
    """
    if score == AUTO:
        return _chosen(examples, key)
    if isinstance(score, str):
        if score not in SCORERS:
            raise ValueError(f"{key}.score={score}: no such scorer; give one of {AUTO}, {', '.join(SCORERS)}, or null")
        score = SCORERS[score]
    if score is None:
        return None
    # A scorer of the user's own may be dear: it is asked only until it finds a reference right.
    own = score not in SCORERS.values()
    right = len(examples) if own and any(_right(score, one) for one in examples) else 0
    if not own:
        right = sum(_right(score, one) for one in examples)
    name = getattr(score, "__name__", None) or getattr(getattr(score, "func", None), "__name__", type(score).__name__)
    if not right:
        raise ValueError(
            f"{key}.score: {name} gives zero to all {len(examples)} references themselves, so that no generation could "
            f"be right; choose another ({AUTO}, {', '.join(SCORERS)}), or null for the NLL alone"
        )
    if right < len(examples):
        log.warning(
            "%s.score: %s gives zero to %d of %d references themselves", key, name, len(examples) - right, len(examples)
        )
    return score


def _right(score: Score, example: Example) -> bool:
    return any(score(text, example) > 0 for text in (example.response, wanted_answer(example)))


def _chosen(examples: Sequence[Example], key: str) -> Score | None:
    wanted = [wanted_answer(one).strip() for one in examples]
    numbers = sum(compares(text) for text in wanted)
    short = sum(len(text) <= SHORT and "\n" not in text for text in wanted)
    if numbers >= SHARE * len(wanted):
        log.info("%s.score=%s: the references end in a number, which is compared (final_number)", key, AUTO)
        return final_number
    if short >= SHARE * len(wanted):
        log.info("%s.score=%s: the references are short, so first lines are compared (first_line)", key, AUTO)
        return first_line
    log.info("%s.score=%s: the references are long texts without a final number; the NLL alone is measured", key, AUTO)
    return None


def compares(text: str) -> bool:
    """Whether the number that ``final_number`` compares is all that a reference says.

    It is not in ``3/4``, ``10:30``, ``2024-05-01``, ``1.5e3``, ``1, 2, 3`` and ``May 5, 2024``, of which it would
    compare a part. A currency sign, a percent sign, brackets, emphasis and a full stop are no part of a number.

    Args:
        text: the reference.

    Returns:
        Whether it is a single plain number, or a worked answer that ends in one.
    """
    marks, numbers = list(MARK.finditer(text)), list(NUMBER.finditer(text))
    if marks:
        found = NUMBER.search(text, marks[-1].end())
        return found is not None and _alone(text, found, marks[-1].end())
    worked = "=" in text or len(text) > SHORT or "\n" in text
    if not numbers or any(char.isalnum() for char in text[numbers[-1].end() :]):
        return False
    return (worked or len(numbers) == 1) and _alone(text, numbers[-1], 0)


def _alone(text: str, number: re.Match[str], start: int) -> bool:
    """Whether nothing is joined to a number: the word it stands in, after an equals sign, is the number."""
    before = re.split(r"[\s=]|(?<=[^\W\d]):", text[start : number.start()])[-1]
    after = re.split(r"\s", text[number.end() :], maxsplit=1)[0]
    joined = re.search(r"(?:[/^*\u00d7\u00f7]|\d\s*:)\s*$", text[start : number.start()].removesuffix(before))
    return BEFORE.fullmatch(before) is not None and AFTER.fullmatch(after) is not None and joined is None
