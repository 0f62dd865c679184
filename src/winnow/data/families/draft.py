"""What a task family draws, and how every family is scored."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from winnow.data.example import Example

ANSWER = re.compile(r"[Tt]he answer is\s*(.+?)\s*\.?\s*$", re.DOTALL)


@dataclass(frozen=True)
class Draft:
    """One drawn task.

    Args:
        prompt: the question.
        response: worked answer, ending in "The answer is <answer>.".
        answer: what a generation has to end with.
    """

    prompt: str
    response: str
    answer: str


@runtime_checkable
class Family(Protocol):
    """A procedural task family: a pure function of the generator it is given."""

    def __call__(self, rng: random.Random) -> Draft:
        """Draw a task."""


@runtime_checkable
class Spoilable(Family, Protocol):
    """A family that can also answer wrongly."""

    def wrong(self, draft: Draft, rng: random.Random) -> str:
        """A response to the same prompt with a wrong final answer."""


def conclude(answer: object, steps: str = "") -> str:
    """A response: worked steps, if any, and the final answer.

    Args:
        answer: the final answer.
        steps: what comes before it.

    Returns:
        The text.
    """
    return f"{steps} The answer is {answer}." if steps else f"The answer is {answer}."


def final_answer(text: str) -> str | None:
    """The final answer a text gives: what follows its last "The answer is".

    Args:
        text: a response or a generation.

    Returns:
        The answer without its full stop; None if the text gives none.
    """
    at = text.lower().rfind("the answer is")
    found = ANSWER.match(text[at:].split("\n")[0]) if at >= 0 else None
    return found.group(1) if found else None


def score(generation: str, example: Example) -> float:
    """1 if the generation's final answer is the example's, else 0.

    Args:
        generation: what the model wrote.
        example: an example drawn from a family.

    Returns:
        1.0 or 0.0.
    """
    return float(final_answer(generation) == (example.answer or final_answer(example.response)))


def replace_answer(draft: Draft, answer: object) -> str:
    """The draft's response with another final answer.

    Args:
        draft: a drawn task.
        answer: what to say instead.

    Returns:
        The spoilt response.
    """
    head, _, _ = draft.response.rpartition("The answer is ")
    return f"{head}The answer is {answer}."


def check_range(name: str, lowest: int, *values: int) -> None:
    """Check a family's parameter: one value, or the fewest and the most.

    Args:
        name: the parameter, for the message.
        lowest: smallest value allowed.
        values: what was given.

    Raises:
        ValueError: a value is below ``lowest``, or the fewest exceeds the most.
    """
    if len(values) not in (1, 2) or values[0] < lowest or values[-1] < values[0]:
        given = values[0] if len(values) == 1 else list(values)
        wanted = f"at least {lowest}" if len(values) == 1 else f"[fewest, most] with {lowest} <= fewest <= most"
        raise ValueError(f"{name} must be {wanted}, got {given} (the family's node under data.corpus.mixture)")
