"""Dates, units and simple logic."""

from __future__ import annotations

import random
from dataclasses import dataclass

from winnow.data.families.arithmetic import NAMES, wrong_number
from winnow.data.families.draft import Draft, check_range, conclude, replace_answer

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
UNITS = (
    ("metres", "centimetres", 100),
    ("kilometres", "metres", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("years", "months", 12),
    ("feet", "inches", 12),
    ("yards", "feet", 3),
    ("kilograms", "grams", 1000),
)


def wrong_choice(draft: Draft, rng: random.Random, choices: tuple[str, ...]) -> str:
    """The response with another of the possible answers.

    Args:
        draft: the task.
        rng: source of randomness.
        choices: possible answers.

    Returns:
        The spoilt response.
    """
    return replace_answer(draft, rng.choice([choice for choice in choices if choice != draft.answer]))


@dataclass(frozen=True)
class Dates:
    """Weekdays and months some way off.

    Args:
        days: largest distance in days.
    """

    days: int = 20

    def __post_init__(self) -> None:
        check_range("Dates.days", 1, self.days)

    def __call__(self, rng: random.Random) -> Draft:
        """Draw a date question."""
        if rng.random() < 0.6:
            at, by, ahead = rng.randrange(7), rng.randint(1, self.days), rng.random() < 0.7
            answer = DAYS[(at + by if ahead else at - by) % 7]
            left = f"{by} days are {by // 7} weeks and {by % 7} days."
            when = f"in {by} days" if ahead else f"{by} days ago"
            verb = "will it be" if ahead else "was it"
            return Draft(f"Today is {DAYS[at]}. What day {verb} {when}?", conclude(answer, left), answer)
        at, by = rng.randrange(12), rng.randint(1, 11)
        answer = MONTHS[(at + by) % 12]
        return Draft(f"It is {MONTHS[at]}. Which month is it in {by} months?", conclude(answer), answer)

    def wrong(self, draft: Draft, rng: random.Random) -> str:
        """Another day or month."""
        return wrong_choice(draft, rng, DAYS if draft.answer in DAYS else MONTHS)


@dataclass(frozen=True)
class Units:
    """Conversions between units, both ways.

    Args:
        high: largest amount of the larger unit.
    """

    high: int = 20

    def __post_init__(self) -> None:
        check_range("Units.high", 2, self.high)

    def __call__(self, rng: random.Random) -> Draft:
        """Draw a conversion."""
        large, small, factor = rng.choice(UNITS)
        amount = rng.randint(2, self.high)
        if rng.random() < 0.6:
            steps, result = f"{amount} * {factor} = {amount * factor}.", amount * factor
            return Draft(f"How many {small} are {amount} {large}?", conclude(result, steps), str(result))
        total = amount * factor
        return Draft(
            f"How many {large} are {total} {small}?", conclude(amount, f"{total} / {factor} = {amount}."), str(amount)
        )

    def wrong(self, draft: Draft, rng: random.Random) -> str:
        """A wrong number."""
        return wrong_number(draft, rng)


@dataclass(frozen=True)
class Logic:
    """Truth values, who is taller, which is the odd one out.

    Args:
        depth: most connectives in an expression.
    """

    depth: int = 3

    def __post_init__(self) -> None:
        check_range("Logic.depth", 1, self.depth)

    def __call__(self, rng: random.Random) -> Draft:
        """Draw a small piece of reasoning."""
        kind = rng.randrange(3)
        if kind == 0:
            value = rng.random() < 0.5
            words = [str(value)]
            for _ in range(rng.randint(1, self.depth)):
                other, join = rng.random() < 0.5, rng.choice(("and", "or"))
                words += [join, str(other)]
                value = (value and other) if join == "and" else (value or other)
            return Draft(f"Read from left to right: what is {' '.join(words)}?", conclude(value), str(value))
        if kind == 1:
            a, b, c = rng.sample(NAMES, 3)
            facts = [f"{a} is taller than {b}.", f"{b} is taller than {c}."]
            rng.shuffle(facts)
            most = rng.random() < 0.5
            answer = a if most else c
            steps = f"From tall to small: {a}, {b}, {c}."
            return Draft(
                f"{' '.join(facts)} Who is the {'tallest' if most else 'smallest'}?", conclude(answer, steps), answer
            )
        odd = rng.random() < 0.5
        numbers = [2 * rng.randint(1, 40) + (not odd) for _ in range(3)]
        stranger = 2 * rng.randint(1, 40) + odd
        numbers.insert(rng.randrange(4), stranger)
        listed = ", ".join(map(str, numbers))
        return Draft(
            f"Which of these numbers is {'odd' if odd else 'even'}: {listed}?", conclude(stranger), str(stranger)
        )

    def wrong(self, draft: Draft, rng: random.Random) -> str:
        """Another name, number or truth value."""
        if draft.answer in ("True", "False"):
            return replace_answer(draft, draft.answer != "True")
        # One of the other names or numbers in the question: a wrong answer should look like a right one.
        asked = draft.prompt.replace(".", " ").replace(",", " ").replace("?", " ").split()
        others = {word for word in asked if (word.isdigit() if draft.answer.isdigit() else word in NAMES)}
        return wrong_choice(draft, rng, tuple(sorted(others)))
