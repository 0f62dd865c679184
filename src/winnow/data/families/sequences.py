"""Strings, lists and sorting."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from winnow.data.families.draft import Draft, check_range, conclude, replace_answer

_WORDS = (
    "apple bread chair cloud dance earth field glass green heart house juice knife lemon light money month mouse music "
    "night ocean paper peace piano plant queen river salt sheep stone sugar table tiger tower train uncle voice water "
    "wheel world youth zebra bird boat cake door fish frog gold hand king lake lion moon nest rain ring road rose ship "
    "snow star tree wind wolf"
)
WORDS = _WORDS.split()
PLACES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def wrong_text(draft: Draft, rng: random.Random) -> str:
    """The response with its final answer's parts in another order, or another answer of its kind.

    Args:
        draft: a task whose answer is text.
        rng: source of randomness.

    Returns:
        The spoilt response.
    """
    answer = draft.answer
    parts = answer.split(", ")
    if answer.isdigit():
        return replace_answer(draft, max(0, int(answer) + rng.choice((-1, 1, 2))) if answer != "0" else 1)
    if len(set(parts)) > 1:
        while ", ".join(parts) == answer:
            rng.shuffle(parts)
        return replace_answer(draft, ", ".join(parts))
    return replace_answer(draft, rng.choice([word for word in WORDS if word != answer]))


@dataclass(frozen=True)
class Strings:
    """Reversing, counting letters, first and last letters, capitals."""

    def __call__(self, rng: random.Random) -> Draft:
        """Draw a task about a word or two."""
        word, kind = rng.choice(WORDS), rng.randrange(5)
        if kind == 0:
            spelt = ", ".join(word)
            answer = ", ".join(reversed(word))
            return Draft(f"Spell the word {word} backwards.", conclude(answer, f"Forwards: {spelt}."), answer)
        if kind == 1:
            letter = rng.choice(word)
            answer = str(word.count(letter))
            return Draft(
                f"How often is the letter {letter} in the word {word}?", conclude(answer, f"{', '.join(word)}."), answer
            )
        if kind == 2:
            answer = str(len(word))
            return Draft(f"How many letters has the word {word}?", conclude(answer, f"{', '.join(word)}."), answer)
        if kind == 3:
            side = rng.choice(("first", "last"))
            words = rng.sample(WORDS, rng.randint(2, 4))
            answer = ", ".join(w[0] if side == "first" else w[-1] for w in words)
            return Draft(f"Give the {side} letters of: {', '.join(words)}.", conclude(answer), answer)
        words = rng.sample(WORDS, 2)
        answer = ", ".join(w.upper() for w in words)
        return Draft(f"Write in capitals: {', '.join(words)}.", conclude(answer), answer)

    def wrong(self, draft: Draft, rng: random.Random) -> str:
        """A wrong final answer."""
        return wrong_text(draft, rng)


@dataclass(frozen=True)
class Lists:
    """Picking from, measuring and turning round a list.

    Args:
        length: fewest and most entries.
    """

    length: Sequence[int] = (3, 6)

    def __post_init__(self) -> None:
        check_range("Lists.length", 2, *self.length)
        if self.length[1] > len(PLACES):
            raise ValueError(f"Lists.length goes up to {len(PLACES)}, got {list(self.length)}")

    def __call__(self, rng: random.Random) -> Draft:
        """Draw a list and a question about it."""
        size = rng.randint(*self.length)
        items = [str(rng.randint(1, 99)) for _ in range(size)] if rng.random() < 0.5 else [*rng.sample(WORDS, size)]
        listed, kind = ", ".join(items), rng.randrange(4)
        if kind == 0:
            at = rng.randrange(size)
            return Draft(f"What is the {PLACES[at]} item of this list: {listed}?", conclude(items[at]), items[at])
        if kind == 1:
            return Draft(f"How many items are in this list: {listed}?", conclude(size), str(size))
        if kind == 2:
            answer = ", ".join(reversed(items))
            return Draft(f"Turn this list round: {listed}.", conclude(answer), answer)
        gone = rng.choice(items)
        answer = ", ".join(item for item in items if item != gone)
        return Draft(f"Remove {gone} from this list: {listed}.", conclude(answer or "nothing"), answer or "nothing")

    def wrong(self, draft: Draft, rng: random.Random) -> str:
        """A wrong final answer."""
        return wrong_text(draft, rng)


@dataclass(frozen=True)
class Sorting:
    """Sorting numbers or words, up or down.

    Args:
        length: fewest and most entries.
        high: largest number.
    """

    length: Sequence[int] = (3, 5)
    high: int = 99

    def __post_init__(self) -> None:
        check_range("Sorting.length", 2, *self.length)
        check_range("Sorting.high", self.length[1], self.high)
        if self.length[1] > len(WORDS):
            raise ValueError(f"Sorting.length goes up to {len(WORDS)}, got {list(self.length)}")

    def __call__(self, rng: random.Random) -> Draft:
        """Draw a list to sort."""
        size, down = rng.randint(*self.length), rng.random() < 0.5
        if rng.random() < 0.6:
            numbers = rng.sample(range(1, self.high + 1), size)
            answer = ", ".join(map(str, sorted(numbers, reverse=down)))
            order = "from large to small" if down else "from small to large"
            return Draft(f"Sort {order}: {', '.join(map(str, numbers))}.", conclude(answer), answer)
        words = rng.sample(WORDS, size)
        answer = ", ".join(sorted(words, reverse=down))
        order = "in reverse alphabetical order" if down else "alphabetically"
        return Draft(f"Sort {order}: {', '.join(words)}.", conclude(answer), answer)

    def wrong(self, draft: Draft, rng: random.Random) -> str:
        """The entries in another order."""
        return wrong_text(draft, rng)
