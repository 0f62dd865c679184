"""What of the rows is left out, cut or carries loss is counted, named and said before the first step."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests import runs
from tests.reading import GOOD, TURNS, examples, glass, mixed, read
from tests.templates import tokenizer_with
from winnow.data import rows
from winnow.data.jsonl import jsonl_corpus
from winnow.data.look import Glass
from winnow.data.prepared import prepared
from winnow.data.rejects import BadRows
from winnow.data.turn_keys import KEYS, PROBES, TurnKeys
from winnow.data.unread import say_unread, unread
from winnow.models.templates import template_of


def test_all_bad_rows_are_found_before_the_first_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRows, match="5 rows cannot be used") as caught:
        read(mixed(tmp_path))
    text = str(caught.value)
    for place in (2, 4, 6, 8, 10):
        assert f"mixed.jsonl, line {place}" in text
    assert text.endswith("data.on_bad_row=drop")
    caught.value.rejects.write(tmp_path / "rejects.jsonl")
    listed = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [one["where"].split(", ")[-1] for one in listed] == [f"line {place}" for place in (2, 4, 6, 8, 10)]
    assert all(one["reason"] and one["key"] == "data.corpus.stream" for one in listed)


def test_bad_rows_are_left_out_and_counted_where_that_is_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = read(mixed(tmp_path), on_bad_row="drop")
    assert [one.id for one in examples(corpus)] == [f"mixed:{place}" for place in (1, 3, 5, 7, 9)]
    assert corpus.rejects.of("data.corpus.stream") == 5
    assert "5 rows cannot be used and are left out (data.on_bad_row=drop): 1 x not JSON" in caplog.text
    with pytest.raises(ValueError, match=r"data\.on_bad_row must be error or drop"):
        read(mixed(tmp_path), on_bad_row="skip")


def test_rows_of_weight_0_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    given = [{**GOOD[0], "weight": 0}, {**GOOD[1], "weight": 1}, {"prompt": "a", "response": ""}, {**GOOD[2], "id": ""}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, given)))
    corpus = read(tmp_path / "a.jsonl")
    assert [one.id for one in examples(corpus)] == ["a:2", "a:4"]
    assert corpus.report == {"data.corpus.stream: weight 0": 1, "data.corpus.stream: empty response": 1}


def test_weights_of_rows_are_read_kept_and_said_and_a_target_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    weights = [0.5, 1, 2, None, 0, 1e-3]
    given = [{**row, "weight": weight} for row, weight in zip(GOOD, weights, strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, given)))
    monkeypatch.setattr(rows, "CACHED_FROM", 1)
    for _ in range(2):  # read, and out of the cache
        with caplog.at_level(logging.INFO):
            corpus = read(tmp_path / "a.jsonl", cache_dir=str(tmp_path / "cache"))
        assert [one.weight for one in examples(corpus)] == [0.5, 1.0, 2.0, 1.0, 1e-3]
        assert "3 of 5 rows have a `weight` other than 1, from 0.001 to 2, by which their loss is" in caplog.text
        caplog.clear()
    (tmp_path / "b.jsonl").write_text(json.dumps({**GOOD[0], "prompt": "Else?", "weight": 0.5}))
    targets = {"here": {"val": str(tmp_path / "b.jsonl"), "test": str(tmp_path / "b.jsonl")}}
    said = r"b\.jsonl, line 1: `weight` of a target's row must be 0 or 1: got 0\.5.*targets\.NAME\.weight"
    with pytest.raises(BadRows, match=said):
        jsonl_corpus(str(tmp_path / "a.jsonl"), targets)
    (tmp_path / "a.jsonl").write_text(json.dumps({**GOOD[0], "weight": -1}))
    with pytest.raises(BadRows, match=r"a\.jsonl, line 1: `weight` of a row must be a number of 0 or more.*got -1"):
        read(tmp_path / "a.jsonl")


def test_shapes_and_keys_that_nothing_reads_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({**row, "url": "x", "none": None}) for row in GOOD))
    with caplog.at_level(logging.INFO):
        read(tmp_path / "a.jsonl")
    assert "data.corpus.stream is read as prompt and response: 6 rows" in caplog.text
    assert "nothing reads these fields (rows that have them): `url` (6)" in caplog.text


def test_keys_of_turns_that_the_template_does_not_read_are_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"role": "user", "content": "What is it?", "name": "Ann"}
    said = {"role": "assistant", "content": "Good.", "reasoning_content": "Hm.", "weight": 1, "stamp": 3, "none": None}
    chats = [[asked, said, asked, said], [asked, said, asked, said], [asked, {"role": "assistant", "content": "So."}]]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    for name in "bc":
        asks = {**asked, "content": name, "from_where": "here"}
        chat = {"messages": [asks, {"role": "assistant", "content": "Yes."}]}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(chat))
    monkeypatch.setattr(rows, "CACHED_FROM", 1)
    targets = {"here": {"val": str(tmp_path / "b.jsonl"), "test": str(tmp_path / "c.jsonl")}}
    names = "{% for m in messages %}{{ m.role }} {{ m.name }}: {{ m.content }} {{ m.reasoning_content }}|{% endfor %}"
    for _ in range(2):  # read, and out of the cache
        corpus = jsonl_corpus(str(tmp_path / "a.jsonl"), targets, cache_dir=str(tmp_path / "cache"))
        assert corpus.turns.counts == {"name": 7, "reasoning_content": 4, "stamp": 4, "from_where": 2}
        caplog.clear()
        prepared(corpus, Glass(tokenizer_with(names), 64))
        assert caplog.text.count("these keys of turns") == 1
        assert (
            "the chat template does not read these keys of turns (turns that have them): `stamp` (4), " in caplog.text
        )
        assert "`from_where` (2)\n" in caplog.text
    short = tokenizer_with("{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}")
    assert unread(corpus.turns, short) == {"name": 7, "reasoning_content": 4, "stamp": 4, "from_where": 2}
    say_unread(corpus.turns, runs.tokenizer())  # thoughts are joined to what was said
    assert (
        "without a chat template nothing reads these keys of turns (turns that have them): `name` (7), " in caplog.text
    )


def test_a_key_that_only_later_rows_lack_a_use_for_is_read(caplog: pytest.LogCaptureFixture) -> None:
    """One of the first chats in which it makes a difference is enough; only so many chats and keys are held."""
    keys = TurnKeys()
    words = tokenizer_with(
        "{% for m in messages %}{{ m.content }}{% if loop.last %}{{ m.mood }}{% endif %}{% endfor %}"
    )
    for number in range(200):
        turns = [{"role": "user", "content": "A", "mood": "b"}, {"role": "assistant", "content": "C"}]
        turns[1 if number == 1 else 0]["mood"] = "d"
        keys.add(([*turns[:1], {**turns[1], f"odd {number}": 1}], None, {}))
    assert len(keys.counts) == KEYS and len(keys.probes["mood"]) == PROBES and keys.counts["mood"] == 201
    found = unread(keys, words)
    assert "mood" not in found and found["odd 3"] == 1
    assert TurnKeys.from_json(json.loads(json.dumps(keys.to_json()))) == keys


def test_rows_that_the_model_cannot_take_are_named_by_line_before_the_first_step(tmp_path: Path) -> None:
    given = [{"messages": TURNS}, {"messages": [{"role": "system", "content": "Brief."}, *TURNS]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, given)))
    with pytest.raises(BadRows, match=r"a\.jsonl, line 2: a chat, and .* no chat template: 3 turns"):
        prepared(read(tmp_path / "a.jsonl"), glass())
    kept = prepared(read(tmp_path / "a.jsonl", on_bad_row="drop"), glass())
    assert [one.id for one in examples(kept)] == ["a:1"] and kept.rejects.of("data.corpus.stream") == 1


def test_the_start_says_what_carries_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"messages": [*TURNS, *TURNS]}) for _ in range(5)))
    with caplog.at_level(logging.INFO):
        prepared(read(tmp_path / "a.jsonl"), glass(join_turns=True))
        assert "5 rows, 10 turns of the assistant's, 10 of them trained on (data.loss_on=assistant)" in caplog.text
        prepared(read(tmp_path / "a.jsonl"), glass(join_turns=True, loss_on="last"))
        assert "5 rows, 10 turns of the assistant's, 5 of them trained on (data.loss_on=last)" in caplog.text


def test_every_turn_of_a_file_of_tool_calls_is_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}}
    step = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "Calm."}]
    tool = {"type": "function", "function": {"name": "look", "description": "Looks."}}
    # 200 chats of 662 turns of the assistant's: 138 with three, 62 with four.
    chats = [{"messages": [TURNS[0], *step * (2 + (number < 62)), TURNS[1]], "tools": [tool]} for number in range(200)]
    (tmp_path / "calls.jsonl").write_text("\n".join(map(json.dumps, chats)))
    words = tokenizer_with(template_of("chatml"))
    with caplog.at_level(logging.INFO):
        kept = prepared(read(tmp_path / "calls.jsonl"), Glass(words, 512))
    assert kept.stream.size == 200
    assert "200 rows, 662 turns of the assistant's, 662 of them trained on (data.loss_on=assistant)" in caplog.text


@pytest.mark.parametrize(("side", "left"), [("right", 6), ("left", 6), ("drop", 5)])
def test_what_is_cut_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, side: str, left: int) -> None:
    given = [*GOOD[:5], {"prompt": "a " * 40, "response": "b " * 40}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, given)))
    kept = prepared(read(tmp_path / "a.jsonl"), glass(truncate=side))
    assert kept.stream.size == left
    assert "1 of 6 rows are longer than data.max_length=64 and lose" in caplog.text
    assert ("left out (data.truncate=drop)" in caplog.text) == (side == "drop")
