"""Arithmetic: single facts, chains with worked steps, and word problems."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from winnow.data.families.draft import Draft, check_range, conclude, replace_answer

NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Frank",
    "Grace",
    "Henry",
    "Ida",
    "Jack",
    "Kate",
    "Leo",
    "Mia",
    "Noah",
)
THINGS = ("apples", "books", "coins", "eggs", "pens", "cards", "stamps", "cakes", "balls", "shells", "nuts", "keys")

STEP = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")


def wrong_number(draft: Draft, rng: random.Random) -> str:
    """The response with a final number that is off by 1 to 9.

    Args:
        draft: a task whose answer is a whole number.
        rng: source of randomness.

    Returns:
        The spoilt response.
    """
    return replace_answer(draft, other_number(int(draft.answer), rng))


def other_number(number: int, rng: random.Random) -> int:
    """A number >= 0 that is 1 to 9 away.

    Args:
        number: a whole number >= 0.
        rng: source of randomness.

    Returns:
        The other number.
    """
    away = rng.randint(1, 9)
    return number - away if away <= number and rng.random() < 0.5 else number + away


def wrong_steps(draft: Draft, rng: random.Random) -> str:
    """The response with a slip in one step, carried through the steps after it to the final answer.

    Args:
        draft: a task worked out in steps, each of which begins or ends with the running value.
        rng: source of randomness.

    Returns:
        The spoilt response.
    """
    steps = STEP.findall(draft.response)
    slip, seen, texts = rng.randrange(len(steps)), -1, []
    for number, (left, sign, right, result) in enumerate(steps):
        a, b, value = int(left), int(right), int(result)
        if number == slip:
            seen = other_number(value, rng)
        elif number > slip:
            # Where the running value stands on the right ("7 + 19"), the slip is carried there.
            before = int(steps[number - 1][3])
            a, b = (seen, b) if a == before else (a, seen)
            seen = a + b if sign == "+" else a - b
        texts.append(f"{a} {sign} {b} = {seen if number >= slip else value}.")
    worked = " ".join(texts)
    return wrong_number(draft, rng) if "-" in worked.replace(" - ", " ") else conclude(seen, worked)


@dataclass(frozen=True)
class Facts:
    """One addition, subtraction or multiplication.

    Args:
        high: largest operand of additions and subtractions.
        times: largest factor of multiplications.
    """

    high: int = 50
    times: int = 10

    def __post_init__(self) -> None:
        check_range("Facts.high", 0, self.high)
        check_range("Facts.times", 0, self.times)

    def __call__(self, rng: random.Random) -> Draft:
        """Draw a fact."""
        kind = rng.choice("++--*")
        if kind == "*":
            a, b = rng.randint(0, self.times), rng.randint(0, self.times)
            result = a * b
        else:
            a, b = rng.randint(0, self.high), rng.randint(0, self.high)
            a, b = (max(a, b), min(a, b)) if kind == "-" else (a, b)
            result = a + b if kind == "+" else a - b
        ask = rng.choice(("What is {} {} {}?", "Compute {} {} {}.", "{} {} {} = ?", "Work out {} {} {}."))
        return Draft(ask.format(a, kind, b), conclude(result, f"{a} {kind} {b} = {result}."), str(result))

    def wrong(self, draft: Draft, rng: random.Random) -> str:
        """A wrong result."""
        return wrong_number(draft, rng)


@dataclass(frozen=True)
class Chains:
    """A number changed in several steps, each step worked out.

    Args:
        steps: fewest and most steps.
        start: largest first number.
        change: largest number added or subtracted.
    """

    steps: Sequence[int] = (2, 3)
    start: int = 20
    change: int = 9

    def __post_init__(self) -> None:
        check_range("Chains.steps", 1, *self.steps)
        check_range("Chains.start", 1, self.start)
        check_range("Chains.change", 1, self.change)

    def __call__(self, rng: random.Random) -> Draft:
        """Draw a chain."""
        value = rng.randint(1, self.start)
        asked, worked = [f"Start with {value}."], []
        for _ in range(rng.randint(*self.steps)):
            by = rng.randint(1, self.change)
            if rng.random() < 0.5 and value >= by:
                asked.append(rng.choice(("Subtract {}.", "Take away {}.")).format(by))
                worked.append(f"{value} - {by} = {value - by}.")
                value -= by
            else:
                asked.append(rng.choice(("Add {}.", "Put {} more.")).format(by))
                worked.append(f"{value} + {by} = {value + by}.")
                value += by
        return Draft(f"{' '.join(asked)} What is left?", conclude(value, " ".join(worked)), str(value))

    def wrong(self, draft: Draft, rng: random.Random) -> str:
        """A slip in one step, carried to the result."""
        return wrong_steps(draft, rng)


@dataclass(frozen=True)
class WordProblems:
    """One or two steps of arithmetic told as a story.

    Args:
        high: largest number in the story.
    """

    high: int = 30

    def __post_init__(self) -> None:
        check_range("WordProblems.high", 2, self.high)

    def __call__(self, rng: random.Random) -> Draft:
        """Draw a story."""
        who, other = rng.sample(NAMES, 2)
        what = rng.choice(THINGS)
        a, b = rng.randint(2, self.high), rng.randint(2, self.high)
        kind = rng.randrange(5)
        if kind == 0:
            prompt = f"{who} has {a} {what}. {other} gives {who} {b} more. How many {what} does {who} have now?"
            steps, result = f"{a} + {b} = {a + b}.", a + b
        elif kind == 1:
            a, b = max(a, b), min(a, b)
            prompt = f"{who} had {a} {what} and sold {b} of them. How many {what} are left?"
            steps, result = f"{a} - {b} = {a - b}.", a - b
        elif kind == 2:
            a, b = rng.randint(2, 9), rng.randint(2, 9)
            prompt = f"There are {a} bags with {b} {what} in each. How many {what} are there in all?"
            steps, result = f"{a} * {b} = {a * b}.", a * b
        elif kind == 3:
            c = rng.randint(1, min(a, 9))
            prompt = f"{who} found {a} {what}, then {b} more, and gave {c} to {other}. How many {what} does {who} keep?"
            steps, result = f"{a} + {b} = {a + b}. {a + b} - {c} = {a + b - c}.", a + b - c
        else:
            prompt = f"{other} has {a} {what}. {who} has {b} more than {other}. How many do they have together?"
            steps, result = f"{a} + {b} = {a + b}. {a} + {a + b} = {2 * a + b}.", 2 * a + b
        return Draft(prompt, conclude(result, steps), str(result))

    def wrong(self, draft: Draft, rng: random.Random) -> str:
        """A slip in one step, carried to the result."""
        return wrong_steps(draft, rng)
