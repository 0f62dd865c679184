"""What a gate sees of a candidate: pure, of unit scale, for any script and any length of text."""

from __future__ import annotations

import pickle
import random
import time
import zlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch

from winnow.gates import Candidate, Embedded, Embeddings, Features, Fields, NGrams
from winnow.gates.words import HASHES, LONGEST, PIECES, PLAIN, WORDS


@dataclass(frozen=True)
class Text:
    prompt: str
    response: str = ""
    source: str = "tests"


class Bytes(Embeddings):
    """Reads a table of 256 rows, a byte a token."""

    def __init__(self) -> None:
        super().__init__(dim=24)
        self.take(torch.randn(256, 16, generator=torch.Generator().manual_seed(0)), lambda text: list(text.encode()))


KINDS = {"ngrams": lambda: NGrams(64), "fields": lambda: Fields(16), "embeddings": Bytes}
TEXTS = [
    Text("What is 3 plus 4?", "3 + 4 = 7."),
    Text("", ""),
    Text("", "only a response"),
    Text("数を足してください。三と四", "七です。"),
    Text("ما هو مجموع ٣ و ٤؟", "سبعة"),
    Text("สามบวกสี่เท่ากับเท่าไร", "เจ็ด"),
    Text("def f(x):\n\treturn x**2", "🙂" * 3),
    Text("a" * 10_000, "b " * 5_000, "long"),
]


@pytest.fixture(params=list(KINDS))
def features(request: pytest.FixtureRequest) -> Features:
    return KINDS[request.param]()


def test_they_are_features(features: Features) -> None:
    assert isinstance(features, Features) and all(isinstance(text, Candidate) for text in TEXTS)
    assert isinstance(features, Embedded) == isinstance(features, Embeddings)
    vectors = features(TEXTS)
    assert vectors.shape == (len(TEXTS), features.dim) and vectors.dtype == torch.float32
    assert vectors.isfinite().all() and (vectors[:, 0] == 1).all()
    assert (vectors[:, 1:].norm(dim=1) < 2.5).all()


def test_a_vector_depends_on_its_own_candidate_alone(features: Features) -> None:
    together = features(TEXTS)
    for vector, text in zip(together, TEXTS, strict=True):
        assert torch.equal(features([text])[0], vector)
    assert torch.equal(features(TEXTS[::-1]), together.flip(0))


def test_a_worker_s_copy_gives_the_same(features: Features) -> None:
    if isinstance(features, Embeddings):
        features._tokenize = _bytes  # a lambda is forked, not sent
    assert torch.equal(pickle.loads(pickle.dumps(features))(TEXTS), features(TEXTS))


def _bytes(text: str) -> list[int]:
    return list(text.encode())


def similarity(one: str, other: str) -> float:
    left, right = NGrams(2048, parts="prompt")([Text(one), Text(other)])[:, 1:]
    return float(left @ right)


def test_texts_of_the_same_words_are_near_and_others_far() -> None:
    assert similarity("What is 3 plus 4?", "What is 12 plus 958?") == pytest.approx(1.0, abs=1e-6), (
        "numbers are one word"
    )
    assert similarity("What is 3 plus 4?", "WHAT IS 3 PLUS 4?") == pytest.approx(1.0, abs=1e-6)
    near, far = (
        similarity("Add three apples to the basket", "Add two apples to the bag"),
        similarity("Add three apples to the basket", "Reverse every string, please"),
    )
    assert near > 0.25 > 0.1 > abs(far)


@pytest.mark.parametrize(
    ("one", "near", "far"),
    [
        ("数を足してください", "数を引いてください", "猫が好きですか"),
        ("请把这两个数字相加", "请把这两个数字相乘", "天气今天很好吗"),
        ("สามบวกสี่เท่ากับ", "สามลบสี่เท่ากับ", "วันนี้ฝนตก"),
        ("ما هو مجموع العددين", "ما هو ضعف العددين", "القط فوق السطح"),
    ],
    ids=["japanese", "chinese", "thai", "arabic"],
)
def test_scripts_without_spaces_have_words_too(one: str, near: str, far: str) -> None:
    assert similarity(one, near) > 0.2 > similarity(one, far)


def test_prompt_and_response_are_told_apart() -> None:
    asked, told = NGrams(512)([Text("add the numbers", ""), Text("", "add the numbers")])[:, 1:]
    assert abs(float(asked @ told)) < 0.3 * float(asked.norm() * told.norm())
    only = NGrams(512, parts="response")([Text("add the numbers", "x"), Text("other", "x")])
    assert torch.equal(only[0], only[1])


def test_words_are_hashed_by_what_they_are_and_not_by_the_run() -> None:
    """Python's own hash is salted anew in every process; a checkpoint's weights would then mean other words."""
    word, dim = "basket", 64
    vector = NGrams(dim, parts="prompt")([Text(word)])[0]
    number = zlib.crc32(word.encode()) ^ zlib.crc32(b"prompt")
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        number = ((number ^ (number >> shift)) * factor) % 2**32
    number ^= number >> 16
    assert vector[number % (dim - 1) + 1] == (-1 if number >> 31 else 1)
    assert vector[1:].count_nonzero() == 1


def test_ascii_has_the_words_of_any_other_text() -> None:
    """Its pattern is another, and a draw's texts are hashed as one; the vectors are those of texts by themselves."""
    drawn = random.Random(0)
    letters = "abz AZ_01.,;\n\x1c'"
    texts = ["".join(drawn.choices(letters, k=drawn.randrange(30))) for _ in range(200)]
    assert all(PLAIN.findall(text.lower()) == WORDS.findall(text.lower()) for text in texts)
    marked = [*texts[:20], "a mark between texts \0 within one", "naïve, 3,4 数"]
    for end in (20, 22):
        together = NGrams(97)([Text(text) for text in marked[:end]])
        apart = [NGrams(97)([Text(text)])[0] for text in marked[:end]]
        assert torch.equal(together, torch.stack(apart))


def by_definition(text: Text, dim: int) -> np.ndarray:
    """A vector by one search through the whole text and a loop over its words and pairs, in unbounded integers."""
    total = np.zeros(dim, dtype=np.float32)
    for name in ("prompt", "response"):
        found = WORDS.findall(getattr(text, name)[:4096].lower())
        words = [zlib.crc32(b"0" if one[0].isdigit() else one.encode("utf-8", "surrogatepass")) for one in found]
        pairs = [(one * 0x9E3779B1 + other * 3) % 2**32 for one, other in pairwise(words)]
        counts = np.zeros(dim)
        for number in words + pairs:
            mixed = number ^ zlib.crc32(name.encode())
            for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
                mixed = ((mixed ^ (mixed >> shift)) * factor) % 2**32
            mixed ^= mixed >> 16
            counts[mixed % (dim - 1) + 1] += -1 if mixed >> 31 else 1
        damped = np.sign(counts) * np.abs(counts) ** 0.5
        total += (damped / (max(np.square(damped).sum() ** 0.5, 1e-12) * 2**0.5)).astype(np.float32)
    total[0] = 1
    return total


def test_vectors_are_what_a_loop_over_words_finds() -> None:
    """Pieces between spaces are looked up, a draw at a time: the words are those of the text as it stands."""
    drawn = random.Random(1)
    kinds = ["ab zy", "AZ .,;!", "01.,9 ", " \t\n\x1c\x85\u00a0\u2028\0", "éßİΣς ", "数を七 ", "ไทย ", "\ud800_'🙂"]
    made = ["".join(drawn.choices("".join(drawn.sample(kinds, 3)), k=drawn.randrange(60))) for _ in range(300)]
    long = ["x" * (LONGEST + 1) + " 3", "数" * (LONGEST + 5), "1,000.5 and 2" * 400]
    candidates = [*TEXTS, *(Text(one, other) for one, other in zip(made, made[::-1], strict=True)), *map(Text, long)]
    for _ in range(2):  # not known, then known
        for vector, text in zip(NGrams(97)(candidates), candidates, strict=True):
            np.testing.assert_allclose(vector.numpy(), by_definition(text, 97), rtol=1e-6, atol=1e-7)


def test_more_places_than_32_bits_hold_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = NGrams(97)(TEXTS)
    monkeypatch.setattr("winnow.gates.features.NARROW", 1)
    assert torch.equal(NGrams(97)(TEXTS), narrow)


def test_hashes_begin_anew_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    before = NGrams(64)(TEXTS)
    monkeypatch.setattr("winnow.gates.words.KNOWN", 3)
    HASHES.clear()
    PIECES.clear()
    assert torch.equal(NGrams(64)(TEXTS), before) and len(HASHES) <= 3 and len(PIECES) <= 3
    assert all(len(piece) <= LONGEST for piece in PIECES), "a text without spaces is one piece, of any length"


def test_a_megabyte_and_broken_characters_are_read_in_no_time() -> None:
    for features in (NGrams(512), Bytes(), Fields()):
        started = time.perf_counter()
        vectors = features(
            [Text("a b " * 250_000, "数" * 1_000_000), Text("\ud800 lone", "\udfff" * 5, "\ud800")]
            if not isinstance(features, Bytes)
            else [Text("a b " * 250_000, "数" * 1_000_000)]
        )
        assert time.perf_counter() - started < 0.5
        assert vectors.isfinite().all()


def test_fields_tell_sources_and_lengths() -> None:
    short, long, other = Fields()([Text("a", "b"), Text("a" * 500, "b"), Text("a", "b", "elsewhere")])
    assert torch.equal(short[2:], long[2:]) and long[1] > short[1] > 0
    assert not torch.equal(short[3:], other[3:]) and other[3:].sum() == 1


def test_embeddings_are_means_projected_at_random() -> None:
    table = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    features = Bytes()
    vector = features([Text("ab", "c")])[0]
    generator = torch.Generator().manual_seed(0)
    centred = table - table.mean(0)
    place = 1
    for size, ids in ((11, [97, 98]), (12, [99])):
        signs = torch.randint(2, (16, size), generator=generator).float() * 2 - 1
        mean = (centred @ signs)[ids].mean(0)
        torch.testing.assert_close(vector[place : place + size], mean / mean.norm() / 2**0.5)
        place += size
    table.zero_()
    assert torch.equal(features([Text("ab", "c")])[0], vector), "the model's table may be trained"
    with pytest.raises(RuntimeError, match=r"take\(\)"):
        Embeddings()([Text("a")])


@pytest.mark.parametrize(
    "build",
    [
        lambda: NGrams(1), lambda: NGrams(parts="title"), lambda: NGrams(chars=0), lambda: Fields(3),
        lambda: Embeddings(2), lambda: Embeddings(tokens=0),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(build) -> None:
    with pytest.raises(ValueError, match=r"gate\.features"):
        build()
