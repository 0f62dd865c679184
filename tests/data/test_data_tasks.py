"""The task families are right where they say so, wrong where they say so, and never cross from split to split."""

import random
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from winnow.data import Corpus, Example
from winnow.data.families import FAMILIES, Draft, Family, final_answer, score
from winnow.data.families.everyday import DAYS, MONTHS, UNITS
from winnow.data.families.sequences import PLACES
from winnow.data.mixture import LOOKBACK, Blend, Mixture, Part
from winnow.data.splits import normalise, split_of
from winnow.data.tasks import task_corpus, task_split

DRAWS = 300


def numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text)]


def after(text: str, mark: str) -> list[str]:
    """Comma-separated items between a mark and the end of the sentence."""
    return re.split(r", ", text.split(mark, 1)[1].rstrip("?."))


def chains(prompt: str) -> str:
    first, *rest = prompt.removesuffix(" What is left?").rstrip(".").split(". ")
    value = numbers(first)[0]
    for step in rest:
        value += numbers(step)[0] * (-1 if step.startswith(("Subtract", "Take")) else 1)
        assert value >= 0
    return str(value)


def facts(prompt: str) -> str:
    a, sign, b = re.search(r"(\d+) ([-+*]) (\d+)", prompt).groups()  # type: ignore[union-attr]
    return str({"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign])


def words(prompt: str) -> str:
    given = numbers(prompt)
    if "together" in prompt:
        return str(given[0] + given[0] + given[1])
    if "in each" in prompt:
        return str(given[0] * given[1])
    if "sold" in prompt:
        return str(given[0] - given[1])
    return str(given[0] + given[1] - (given[2] if "gave" in prompt else 0))


def strings(prompt: str) -> str:
    if found := re.match(r"Spell the word (\w+) backwards", prompt):
        return ", ".join(found[1][::-1])
    if found := re.match(r"How often is the letter (\w) in the word (\w+)", prompt):
        return str(Counter(found[2])[found[1]])
    if found := re.match(r"How many letters has the word (\w+)", prompt):
        return str(len(found[1]))
    if found := re.match(r"Give the (first|last) letters", prompt):
        return ", ".join(word[0 if found[1] == "first" else -1] for word in after(prompt, "of: "))
    return prompt.split("capitals: ")[1].removesuffix(".").upper()


def lists(prompt: str) -> str:
    items = after(prompt, ": ")
    if found := re.match(r"What is the (\w+) item", prompt):
        return items[PLACES.index(found[1])]
    if prompt.startswith("How many"):
        return str(len(items))
    if prompt.startswith("Turn"):
        return ", ".join(items[::-1])
    gone = prompt.split()[1]
    return ", ".join(item for item in items if item != gone) or "nothing"


def sorting(prompt: str) -> str:
    items = after(prompt, ": ")
    key: Callable[[str], Any] = int if items[0].isdigit() else str
    ordered: list[str] = []
    while items:  # selection sort, so that the reference is not the call under test
        least = min(items, key=key)
        items.remove(least)
        ordered.append(least)
    return ", ".join(ordered[::-1] if "large to small" in prompt or "reverse" in prompt else ordered)


def dates(prompt: str) -> str:
    by = numbers(prompt)[0]
    names = DAYS if "day" in prompt.split(".")[0] and prompt.startswith("Today") else MONTHS
    at = next(place for place, name in enumerate(names) if f"is {name}." in prompt)
    for _ in range(by):
        at = (at + (-1 if "ago" in prompt else 1)) % len(names)
    return names[at]


def units(prompt: str) -> str:
    wanted, amount, given = re.fullmatch(r"How many (\w+) are (\d+) (\w+)\?", prompt).groups()  # type: ignore[union-attr]
    factor = {(large, small): value for large, small, value in UNITS}
    if (given, wanted) in factor:
        return str(int(amount) * factor[given, wanted])
    whole, rest = divmod(int(amount), factor[wanted, given])
    assert rest == 0
    return str(whole)


def logic(prompt: str) -> str:
    if found := re.match(r"Read from left to right: what is (.*)\?", prompt):
        expression = found[1].split()
        text = expression[0]
        for join, value in zip(expression[1::2], expression[2::2], strict=True):
            text = f"({text} {join} {value})"
        return str(eval(text))
    if "taller" in prompt:
        over = dict(re.findall(r"(\w+) is taller than (\w+)", prompt))
        top = (set(over) - set(over.values())).pop()
        return top if "tallest" in prompt else over[over[top]]
    odd = "is odd" in prompt
    (found_number,) = [number for number in numbers(prompt) if number % 2 == odd]
    return str(found_number)


SOLVE: dict[str, Callable[[str], str]] = {
    "Chains": chains,
    "Facts": facts,
    "WordProblems": words,
    "Strings": strings,
    "Lists": lists,
    "Sorting": sorting,
    "Dates": dates,
    "Units": units,
    "Logic": logic,
}
families = pytest.mark.parametrize("family", [family() for family in FAMILIES], ids=[f.__name__ for f in FAMILIES])


def drafts(family: Family, count: int = DRAWS) -> list[Draft]:
    return [family(random.Random(seed)) for seed in range(count)]


def as_example(draft: Draft) -> Example:
    return Example("id", "source", draft.prompt, draft.response, answer=draft.answer)


@families
def test_answers_are_right(family: Family) -> None:
    for draft in drafts(family):
        assert draft.answer == SOLVE[type(family).__name__](draft.prompt), draft
        assert final_answer(draft.response) == draft.answer, draft
        assert score(draft.response, as_example(draft)) == 1.0


@families
def test_worked_steps_are_right(family: Family) -> None:
    for draft in drafts(family):
        for a, sign, b, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", draft.response):
            x, y = int(a), int(b)
            assert {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else None}[sign] == int(result), draft


@families
def test_wrong_answers_are_wrong_and_look_like_answers(family: Any) -> None:
    for number, draft in enumerate(drafts(family)):
        wrong = family.wrong(draft, random.Random(number))
        said = final_answer(wrong)
        assert said is not None and said != draft.answer, (draft, wrong)
        assert score(wrong, as_example(draft)) == 0.0
        assert wrong.endswith(f"The answer is {said}.")


@pytest.mark.parametrize("name", ["Chains", "WordProblems"])
def test_a_slip_is_carried_to_the_end(name: str) -> None:
    (family,) = [family() for family in FAMILIES if family.__name__ == name]
    for number, draft in enumerate(drafts(family)):
        wrong = family.wrong(draft, random.Random(number))
        steps = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", wrong)
        bad = [
            {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] != int(result)
            for a, sign, b, result in steps
        ]
        assert sum(bad) <= 1, wrong
        if any(bad):
            assert final_answer(wrong) == steps[-1][3]
            assert all(before[3] in after[::2] for before, after in pairwise(steps)), wrong


@families
def test_a_draw_is_a_function_of_its_generator(family: Family) -> None:
    assert drafts(family, 20) == drafts(type(family)(), 20)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So 1 + 2 = 3. The answer is 3.", "3"),
        ("the answer is 3", "3"),
        ("The answer is 4. No: the answer is 3.\nThe end.", "3"),
        ("The answer is a, b.", "a, b"),
        ("It is 3.", None),
        ("The answer is", None),
    ],
)
def test_the_final_answer_is_what_follows_the_last_mark(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def parts(**weights: float) -> dict[str, Part]:
    built = {family.__name__: family for family in FAMILIES}
    return {name: Part(built[name](), weight, "near") for name, weight in weights.items()}


MIXED = {"Chains": 3.0, "Lists": 1.0, "Logic": 0.0, "Dates": 1.0}
NOISE = {"wrong": 0.2, "shuffled": 0.1, "duplicate": 0.15}


@pytest.fixture(scope="module")
def stream() -> list[Example]:
    mixture = Mixture(parts(**MIXED), seed=5, noise=NOISE)
    return [mixture[index] for index in range(2000)]


def within(count: int, rate: float, size: int) -> bool:
    """Whether a count is what its rate gives, to four standard deviations."""
    return abs(count - rate * size) < 4 * (size * rate * (1 - rate)) ** 0.5 + 1


def test_rates_are_what_was_asked_for(stream: list[Example]) -> None:
    noise = Counter(example.labels["noise"] for example in stream)
    assert all(within(noise[name], rate, len(stream)) for name, rate in NOISE.items()), noise
    own = [example.source for example in stream if example.labels["noise"] != "duplicate"]
    sources = Counter(own)
    assert sources["tasks/Logic"] == 0
    assert all(within(sources[f"tasks/{name}"], MIXED[name] / 5, len(own)) for name in ("Chains", "Lists", "Dates"))


def test_hidden_labels_say_what_was_done(stream: list[Example]) -> None:
    for position, example in enumerate(stream):
        kind = example.labels["noise"]
        right = SOLVE[example.source.removeprefix("tasks/")](example.prompt)
        said = final_answer(example.response)
        assert (said == right) == (kind in ("", "duplicate")), example
        assert score(example.response, example) == float(said == right)
        if kind == "duplicate":
            before = stream[max(0, position - LOOKBACK) : position]
            assert any(
                (e.prompt, e.response, e.source) == (example.prompt, example.response, example.source) for e in before
            )


def test_nothing_but_the_labels_tells_what_was_spoilt(stream: list[Example]) -> None:
    assert len({example.id for example in stream}) == len(stream)
    assert all(example.id == f"stream-5-{index}" for index, example in enumerate(stream))
    assert {example.labels["group"] for example in stream} == {"near"}


def test_position_and_seed_decide_alone(stream: list[Example]) -> None:
    again = Mixture(parts(**MIXED), seed=5, noise=NOISE)
    order = random.Random(0).sample(range(len(stream)), 200)
    assert all(again[index] == stream[index] for index in order)
    other = Mixture(parts(**MIXED), seed=6, noise=NOISE)
    assert sum(other[index].prompt == stream[index].prompt for index in range(200)) < 20


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        ({"wrongs": 0.1}, "knows wrong, shuffled, duplicate; got wrongs"),
        ({"wrong": 0.6, "shuffled": 0.6}, "sum to at most 1"),
        ({"wrong": -0.1}, ">= 0"),
    ],
)
def test_impossible_noise_is_refused(noise: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=f"data.corpus.noise .*{said}"):
        Mixture(parts(Chains=1.0), noise=noise)


def test_a_mixture_needs_a_weight() -> None:
    with pytest.raises(ValueError, match=r"data\.corpus\.mixture needs weights"):
        Mixture(parts(Chains=0.0))


def test_a_family_without_wrong_answers_is_not_spoilt_so() -> None:
    class Once:
        def __call__(self, rng: random.Random) -> Draft:
            return Draft(str(rng.random()), "a", "a")

    with pytest.raises(ValueError, match=r"noise.wrong=0.1: once cannot give wrong answers"):
        Mixture({"once": Part(Once(), 1.0)}, noise={"wrong": 0.1})
    assert Mixture({"once": Part(Once(), 1.0)}, noise={"duplicate": 0.1})[0].response == "a"


def test_an_exhausted_split_is_an_error() -> None:
    class Single:
        def __call__(self, rng: random.Random) -> Draft:
            return Draft("always the same", "a", "a")

    split = split_of("always the same")
    other = "val" if split != "val" else "test"
    with pytest.raises(ValueError, match=f"Single gave no {other} prompt"):
        task_split("single", Single(), other, 1)
    with pytest.raises(ValueError, match=f"single has only 1 distinct {split} prompts; 2 were asked for"):
        task_split("single", Single(), split, 2)


def corpus(seed: int) -> Corpus:
    return task_corpus(parts(Chains=1.0, Facts=1.0), {"Chains": 2.0, "Facts": 1.0}, NOISE, 40, 60, seed)


def test_splits_share_no_content() -> None:
    built = corpus(seed=1)
    stream = {normalise(built.stream[index].prompt) for index in range(1500)}
    splits = [{normalise(e.prompt) for e in s} for target in built.targets for s in (target.val, target.test)]
    assert [len(split) for split in splits] == [40, 60, 40, 60]
    assert all(not stream & split for split in splits)
    assert len(set.union(*splits)) == 200


def test_targets_do_not_depend_on_the_seed_of_the_run() -> None:
    one, two = corpus(seed=1), corpus(seed=2)
    assert [(t.name, t.val, t.test, t.weight) for t in one.targets] == [
        (t.name, t.val, t.test, t.weight) for t in two.targets
    ]
    assert one.stream[0] != two.stream[0]
    assert all(not example.labels for target in one.targets for example in (*target.val, *target.test))


def test_a_target_is_a_family_of_the_mixture() -> None:
    with pytest.raises(ValueError, match=r"data.corpus.targets: \['Sums'\] are not in data.corpus.mixture \(Chains\)"):
        task_corpus(parts(Chains=1.0), {"Sums": 1.0})


def test_case_and_space_do_not_move_a_prompt_to_another_split() -> None:
    prompts = [f"What is {n} plus {n}?" for n in range(3200)]
    assert all(split_of(f"  {prompt.upper()}\n") == split_of(prompt) for prompt in prompts[:100])
    shares = Counter(map(split_of, prompts))
    assert within(shares["val"], 1 / 16, 3200) and within(shares["test"], 1 / 16, 3200)


def test_a_blend_takes_each_stream_in_its_share() -> None:
    streams = [Mixture(parts(Chains=1.0), 1), Mixture(parts(Facts=1.0), 2)]
    blend = Blend(streams, [0.7, 0.3], seed=4)
    drawn = [blend[index] for index in range(800)]
    assert all(example in (streams[0][index], streams[1][index]) for index, example in enumerate(drawn[:50]))
    assert within(sum(example.source == "tasks/Chains" for example in drawn), 0.7, 800)
    with pytest.raises(ValueError, match="one weight per stream"):
        Blend(streams, [1.0])
