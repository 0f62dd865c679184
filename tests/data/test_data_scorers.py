"""Scorers read a generation as a person marking it would."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.data import Example
from winnow.data.scorers import contains, exact, final_number, first_line, number_in, wanted_answer
from winnow.data.scoring import scorer_for


def answered(answer: str | None, response: str = "") -> Example:
    return Example("id", "source", "prompt", response, answer=answer)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18.", 18),
        ("THE ANSWER IS: $1,234.50.", 1234.5),
        ("He has 3 + 4 = 7 apples.\n#### 7", 7),
        ("#### 1,000,000", 1e6),
        ("the answer is 5. No, the answer is 6 of 10.", 6),
        ("It is 5-3", 3),
        ("It is -3", -3),
        ("(-3)", -3),
        ("the answer is unclear, 7 perhaps", 7),
        ("12 or so. The answer is unclear.", None),
        ("1,2,3", 3),
        ("no number", None),
        ("", None),
        ("The answer is 0.5", 0.5),
        ("The answer is 7.\n\nQuestion: what is 8?", 7),
    ],
)
def test_the_final_number(text: str, number: float | None) -> None:
    assert number_in(text) == number


@settings(derandomize=True, deadline=None)
@given(st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{:,}"]), st.sampled_from(["The answer is {}.", "x = {}"]))
def test_numbers_are_read_as_written(number: int, style: str, sentence: str) -> None:
    text = sentence.format(style.format(number))
    assert number_in(text) == number
    assert final_number(text, answered(str(number))) == 1.0
    assert final_number(text, answered(str(number + 1))) == 0.0


def test_the_reference_is_the_answer_or_else_the_response() -> None:
    assert wanted_answer(answered("a", "b")) == "a"
    assert wanted_answer(answered(None, "b")) == "b"
    assert wanted_answer(answered("", "b")) == ""
    assert final_number("so 18", answered(None, "3 + 15. The answer is 18.")) == 1.0
    assert final_number("none", answered("none")) == 0.0


PLAIN = (
    "12", "-3", "+7", "$1,234.50", "18.", "(-3)", "**7**", "12%", "12 %", r"\boxed{42}", "$42$", "x = 7", "3 + 4 = 7",
    "It is 12.", "Answer: 12", "answer:7", "The answer is 18.", "He has 3 of 4.\n#### 7", "The answer is 12 apples",
)  # fmt: skip
PARTS = (
    "3/4", "3 / 4", "10:30", "2024-05-01", "1.5e3", "1, 2, 3", "1 2", "May 5, 2024", "5-3", "50-60", "A1", "10am",
    "v1.2.3", "192.168.0.1", r"\frac{3}{4}", "x = 3/4", "x^2", "12 apples", "The answer is 3/4.", "#### 1.5e3", "1e5",
)  # fmt: skip


@pytest.mark.parametrize("reference", PLAIN)
def test_a_reference_that_is_one_plain_number_is_compared_as_a_number(reference: str) -> None:
    assert scorer_for("auto", [answered(reference)] * 3, "key") is final_number
    assert final_number(reference, answered(reference)) == 1.0


@pytest.mark.parametrize("reference", PARTS)
def test_a_reference_of_which_a_number_is_a_part_is_compared_whole(reference: str) -> None:
    assert scorer_for("auto", [answered(reference)] * 3, "key") is first_line


@pytest.mark.parametrize(
    ("generation", "scores"),
    [
        ("New York.", (0, 1, 1)),
        ("New York", (1, 1, 1)),
        (" New York\n", (1, 1, 1)),
        ("new  york\nIt is large.", (0, 1, 1)),
        ("It is New York, I think.", (0, 0, 1)),
        ("New Yorker", (0, 0, 0)),
        ("", (0, 0, 0)),
        ("\n\nNew York", (1, 1, 1)),
    ],
)
def test_text_scorers(generation: str, scores: tuple[int, int, int]) -> None:
    given_scores = tuple(int(scorer(generation, answered("New York"))) for scorer in (exact, first_line, contains))
    assert given_scores == scores


def test_an_answer_with_signs_in_it_is_no_pattern() -> None:
    assert contains("it is a+b (c)", answered("a+b (c)")) == 1.0
    assert contains("it is aab", answered("a+b")) == 0.0
    assert contains("anything", answered("")) == 0.0
