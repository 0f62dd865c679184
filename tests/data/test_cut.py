"""A text is cut at a place into what each side is on its own, found by the words around the place alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from tests import runs
from winnow.data.cut import Cut
from winnow.data.helpers import HELPER, NotTaken, _taken, helping
from winnow.data.pieces import CONTRACTIONS, REST, Pieces, local
from winnow.data.spelling import spelling
from winnow.data.tokens import decoded, prompt_ids, token_ids
from winnow.data.words import Found, Spelled

PIECES = (
    " What", " is", " 12", " plus", " It", " 3.", "\n", "\n\n", "  ", "?\n", " 1", "é", "日本", "<|e|>", "'s",
    "e\u0301",
)  # fmt: skip
QWEN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def splitting(
    splitter: pre_tokenizers.PreTokenizer | None, normalizer: normalizers.Normalizer | None = None
) -> Callable:
    def made() -> PreTrainedTokenizerFast:
        tokenizer = copy.deepcopy(runs.tokenizer())
        if splitter is not None:
            tokenizer.backend_tokenizer.pre_tokenizer = splitter
        if normalizer is not None:
            tokenizer.backend_tokenizer.normalizer = normalizer
        return tokenizer

    return made


def worded() -> PreTrainedTokenizerFast:
    """Words that are not spelled by bytes; of most texts nothing is known, and white space is no token."""
    known = {"<unk>": 0, "<eos>": 1} | {word: at for at, word in enumerate(("What", "is", "12", "plus", "It", "?"), 2)}
    backend = Tokenizer(models.WordLevel(known, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


KINDS: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], bool]] = {
    "spaces": (splitting(None), True),
    "line breaks go with what is before": (
        splitting(pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(QWEN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False),
        ])), True,
    ),
    "never split": (splitting(pre_tokenizers.ByteLevel(False, use_regex=False)), False),
    "levelled": (splitting(None, normalizers.NFC()), True),
    "words": (worded, False),
    "digits in threes": (
        splitting(pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(f"{CONTRACTIONS}\\p{{N}}{{1,3}}{REST}"), "isolated"),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ])), True,
    ),
    "digits one by one": (
        splitting(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])), True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("helper", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_are_what_they_are_alone(kind: str, helper: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HELPER, "1" if helper else "")
    make, spelled = KINDS[kind]
    tokenizer, draw, seen = make(), random.Random(0), set()
    assert (spelling(tokenizer, len(tokenizer)) is not None) is spelled
    for _ in range(120):
        text = "".join(draw.choices(PIECES, k=draw.choice((3, 60))))
        cut, place = Cut(text, tokenizer, True), draw.randrange(len(text))
        seen.add(type(cut.words))
        assert cut.ids == token_ids(text, tokenizer, True)
        alone, rest = prompt_ids(text[:place], tokenizer), token_ids(text[place:], tokenizer, False)
        count, whole = cut.tokens(place)
        assert cut.ids[:count] == alone[:count] and whole == (count == len(alone))
        assert whole or cut.ids[count : count + 1] != alone[count : count + 1]
        assert cut.sides(place) == (alone, cut.ids[count:] if whole else rest)
        assert cut.says(count, len(cut.ids)) == decoded(cut.ids[count:], tokenizer)
    assert (Spelled in seen) is (spelled and helper)
    assert (Found in seen) is (not spelled or not helper or kind == "levelled")


BY_WORDS = {
    "spaces": True, "digits in threes": True, "digits one by one": True, "levelled": False, "words": False,
    "line breaks go with what is before": False, "never split": True,
}  # fmt: skip


@pytest.mark.parametrize("kind", BY_WORDS)
def test_words_that_were_met_give_the_ids_of_the_whole_text(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.data.pieces.WORDS", 40)
    backend, draw = KINDS[kind][0]().backend_tokenizer, random.Random(1)
    assert local(backend) is BY_WORDS[kind]
    if not KINDS[kind][1] or not local(backend):
        return
    pieces = Pieces(backend)
    odd = (*PIECES, " ", "\t", "\x1c", "\x85", "\u00a0", "\u2003", "a", "I'LL", " x" * 40, " 1234567", "<eos>", "\r\n")
    for _ in range(300):
        text = "".join(draw.choices(odd, k=draw.choice((1, 4, 40))))
        assert pieces.ids(text) == backend.encode(text, add_special_tokens=False).ids, repr(text)
    assert len(pieces.known) == 40  # no more are kept, and the rest is right all the same


def test_a_token_that_takes_the_space_beside_it_keeps_texts_whole() -> None:
    tokenizer = splitting(None)()
    tokenizer.add_tokens([AddedToken("<right>", rstrip=True)])
    assert not local(tokenizer.backend_tokenizer)
    tokenizer = splitting(None)()
    tokenizer.add_tokens([AddedToken("It is")])
    assert not local(tokenizer.backend_tokenizer)


def test_a_place_behind_white_space_that_is_no_token_can_be_asked_for() -> None:
    assert Cut("  is 12", worded(), True).tokens(1) == (0, True)


def test_helpers_answer_in_order_without_the_heavy_libraries_and_say_how_they_end() -> None:
    with helping(eval, 1) as share:
        looked = "__import__('winnow.data.look') and sorted({'torch', 'lightning'} & set(__import__('sys').modules))"
        assert list(share(["1 + 1", "print('aside') or 'two'", looked])) == [2, "two", []]
        with pytest.raises(ZeroDivisionError):
            list(share(["1 / 0"]))
        with pytest.raises(ChildProcessError, match="ended with code 3"):
            list(share(["__import__('os')._exit(3)"]))


def test_a_task_that_another_process_cannot_have_is_refused() -> None:
    with pytest.raises(NotTaken), helping(lambda part: part, 1):
        raise AssertionError
    with pytest.raises(NotTaken, match="nowhere"):
        _taken(b"cnowhere\nthing\n.")(1)
