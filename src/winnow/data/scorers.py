"""Scorers by name: a generation and its example to 1.0 or 0.0.

In a config: ``score: final_number``, or ``auto`` to go by the references (:mod:`winnow.data.scoring`).
"""

from __future__ import annotations

import re

from winnow.data.example import Example

# A minus sign is one only where no operand stands before it: the last number of "5-3" is 3.
NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
MARK = re.compile(r"the answer is|####", re.IGNORECASE)


def wanted_answer(example: Example) -> str:
    """What a generation is compared with: the example's ``answer``, or else its response.

    Args:
        example: the example.

    Returns:
        The text.
    """
    return example.response if example.answer is None else example.answer


def number_in(text: str) -> float | None:
    """The final number of a worked answer: the first after the last "The answer is" or "####", or else the last.

    Args:
        text: a response or a generation.

    Returns:
        The number, without currency sign and thousands separators; None if there is none.
    """
    marks = list(MARK.finditer(text))
    if marks:
        found = NUMBER.search(text, marks[-1].end())
        # A mark that no number follows ("the answer is unclear") is no answer.
        return None if found is None else _number(found.group())
    numbers = NUMBER.findall(text)
    return _number(numbers[-1]) if numbers else None


def _number(text: str) -> float:
    return float(text.replace("$", "").replace(",", ""))


def final_number(generation: str, example: Example) -> float:
    """Whether the final number is right, as for GSM8K ("The answer is 18.").

    Args:
        generation: what the model wrote.
        example: its answer or response ends in a number.

    Returns:
        1.0 or 0.0.
    """
    wanted = number_in(wanted_answer(example))
    return float(wanted is not None and number_in(generation) == wanted)


def exact(generation: str, example: Example) -> float:
    """Whether the generation is the answer, white space around it aside.

    Args:
        generation: what the model wrote.
        example: the example.

    Returns:
        1.0 or 0.0.
    """
    return float(generation.strip() == wanted_answer(example).strip())


def first_line(generation: str, example: Example) -> float:
    """Whether the first line is the answer, case, white space and a full stop aside.

    Args:
        generation: what the model wrote.
        example: the example.

    Returns:
        1.0 or 0.0.
    """
    lines = generation.strip().splitlines()
    return float(bool(lines) and _plain(lines[0]) == _plain(wanted_answer(example)))


def contains(generation: str, example: Example) -> float:
    """Whether the answer occurs in the generation as whole words, case aside.

    Args:
        generation: what the model wrote.
        example: the example; an empty answer is never contained.

    Returns:
        1.0 or 0.0.
    """
    wanted = re.escape(_plain(wanted_answer(example)))
    return float(bool(wanted) and re.search(rf"(?<!\w){wanted}(?!\w)", _plain(generation)) is not None)


SCORERS = {function.__name__: function for function in (final_number, exact, first_line, contains)}
"""Scorers by name."""


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")
