"""Files of every form and rows of every shape become the same examples; what cannot be read is counted and named."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import runs
from tests.templates import tokenizer_with
from winnow.data import Corpus, Example, SelectionDataModule, rows
from winnow.data.encode import Encoding
from winnow.data.fields import Fields, Row
from winnow.data.files import read_records
from winnow.data.jsonl import files_source, jsonl_corpus
from winnow.data.look import Glass
from winnow.data.prepared import prepared
from winnow.data.rejects import BadRow, BadRows
from winnow.data.table import ExampleTable
from winnow.data.turn_keys import KEYS, PROBES, TurnKeys
from winnow.data.unread import say_unread, unread
from winnow.models.templates import template_of

GOOD = [{"prompt": f"What is {n}?", "response": f"It is {n}."} for n in range(6)]
LINES = "".join(json.dumps(row) + "\n" for row in GOOD).encode()
BAD = ['{"prompt": "a"', '{"prompt": "a"}', "[1]", '{"prompt": "\\ud800", "response": "b"}', '{"messages": [1, 2]}']


def table_of(given: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(given)


def as_csv(delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "response"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(GOOD)
    return text.getvalue().encode()


def as_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table_of(GOOD), sink, row_group_size=4)
    return sink.getvalue().to_pybytes()


def as_arrow(new: Callable[..., Any]) -> bytes:
    sink = pa.BufferOutputStream()
    with new(sink, table_of(GOOD).schema) as writer:
        writer.write_table(table_of(GOOD), 4)
    return sink.getvalue().to_pybytes()


FORMS: dict[str, tuple[str, bytes]] = {
    "json lines": ("a.jsonl", LINES),
    "byte order mark and windows line ends": ("a.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n")),
    "no line end at the end": ("a.jsonl", LINES.strip()),
    "a JSON array": ("a.json", json.dumps(GOOD, indent=1).encode()),
    "a JSON array called lines": ("a.jsonl", json.dumps(GOOD).encode()),
    "csv": ("a.csv", as_csv(",")),
    "tsv": ("a.tsv", as_csv("\t")),
    "parquet": ("a.parquet", as_parquet()),
    "parquet by another name": ("a.jsonl", as_parquet()),
    "arrow": ("a.arrow", as_arrow(pa.ipc.new_file)),
    "arrow stream": ("a.arrow", as_arrow(pa.ipc.new_stream)),
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda raw: raw,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: pa.compress(raw, codec="zstd", asbytes=True),
}


def read(*paths: object, **options: Any) -> Corpus:
    return jsonl_corpus([str(path) for path in paths], {}, **options)


def examples(corpus: Corpus) -> list[Example]:
    return [corpus.stream[at] for at in range(corpus.stream.size or 0)]


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_examples(tmp_path: Path, form: str, ending: str) -> None:
    name, content = FORMS[form]
    (tmp_path / f"{name}{ending}").write_bytes(PACKERS[ending](content))
    found = examples(read(tmp_path / f"{name}{ending}"))
    assert [(one.prompt, one.response, one.source) for one in found] == [
        (row["prompt"], row["response"], "a") for row in GOOD
    ]
    assert len({one.id for one in found}) == len(GOOD)


def test_compression_goes_by_content_and_not_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(LINES))
    (tmp_path / "b.jsonl.gz").write_bytes(LINES)
    assert len(examples(read(tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"))) == 12


def test_folders_and_patterns_stand_for_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.jsonl", "in/a.json.gz", "notes.txt", ".hidden.jsonl"):
        (tmp_path / name).write_bytes(gzip.compress(LINES) if name.endswith(".gz") else LINES)
    monkeypatch.chdir(tmp_path)
    sources = [one.source for one in examples(read("."))]
    assert sources == ["b"] * 6 + ["a"] * 6
    assert len(examples(read("*.jsonl"))) == 6 and len(examples(read("**/*.gz"))) == 6
    with pytest.raises(FileNotFoundError, match=r"data.corpus.stream=x\*: no file matches"):
        read("x*")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"stream=empty: no file in this folder ends in \.jsonl"):
        read("empty")


TURNS = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]
SHARE = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi."}]
SHAPES: dict[str, tuple[dict[str, Any], str, str, int]] = {
    "messages": ({"messages": TURNS}, "Hello?", "Hi.", 2),
    "parts": ({"messages": [{"role": t["role"], "content": [{"type": "text", "text": t["content"]}]} for t in TURNS]},
              "Hello?", "Hi.", 2),
    "sharegpt": ({"conversations": SHARE}, "Hello?", "Hi.", 2),
    "sharegpt, system": ({"conversations": SHARE, "system": "Brief."}, "Brief.\nHello?", "Hi.", 3),
    "sharegpt, calls": (
        {"conversations": [SHARE[0], {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
                           {"from": "observation", "value": "1"}, SHARE[1]], "tools": '[{"name": "f"}]'},
        'Hello?\n{"name": "f", "arguments": {}}\n1', "Hi.", 4,
    ),
    "prompt and response": ({"prompt": "Hello?", "response": "Hi."}, "Hello?", "Hi.", 0),
    "prompt and completion": ({"prompt": "Hello?", "completion": "Hi."}, "Hello?", "Hi.", 0),
    "turns in prompt and completion": ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "Hello?", "Hi.", 2),
    "alpaca": ({"instruction": "Hello?", "input": "", "output": "Hi."}, "Hello?", "Hi.", 0),
    "alpaca without input": ({"instruction": "Hello?", "output": "Hi."}, "Hello?", "Hi.", 0),
    "alpaca, null input": ({"instruction": "Hello?", "input": None, "output": "Hi."}, "Hello?", "Hi.", 0),
    "alpaca, input": ({"instruction": "Hello?", "input": "You.", "output": "Hi."}, "Hello?\nYou.", "Hi.", 0),
    "alpaca, history": (
        {"instruction": "Again?", "output": "Hi.", "history": [["Hello?", "Hi."]]}, "Hello?\nHi.\nAgain?", "Hi.", 4,
    ),
    "dolly": ({"instruction": "Hello?", "context": "You.", "response": "Hi."}, "Hello?\nYou.", "Hi.", 0),
    "system beside prompt and response": (
        {"prompt": "Hello?", "response": "Hi.", "system": "Brief."}, "Brief.\nHello?", "Hi.", 3,
    ),
    "system beside alpaca": (
        {"instruction": "Hello?", "output": "Hi.", "system": "Brief."}, "Brief.\nHello?", "Hi.", 3,
    ),
    "tools beside prompt and response": (
        {"prompt": "Hello?", "response": "Hi.", "tools": [{"name": "f"}]}, "Hello?", "Hi.", 2,
    ),
    "text": ({"text": "Hi."}, "", "Hi.", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_of_a_row_is_recognised(name: str) -> None:
    record, prompt, response, turns = SHAPES[name]
    read = Fields().read(Row(record, "here", "id", "source"))
    assert (read.example.prompt, read.example.response) == (prompt, response)
    assert len(read.example.messages or ()) == turns
    assert set(record) <= read.used
    roles = [one["role"] for one in read.example.messages or ()]
    assert not roles or (roles[-1] == "assistant" and set(roles) <= {"system", "user", "assistant", "tool"})


def test_what_plain_text_has_no_place_for_counts_as_read_by_nothing() -> None:
    read = Fields().read(Row({"text": "Hi.", "system": "Brief.", "tools": []}, "here", "id", "source"))
    assert read.example.response == "Hi." and not {"system", "tools"} & read.used


@pytest.mark.parametrize(
    ("fields", "response"),
    [
        ({}, "Hi."),
        ({"prompt": "q", "response": "a"}, "named"),
        ({"text": "t"}, "text"),
        ({"messages": "other"}, "Other."),
    ],
)
def test_what_is_named_beats_what_is_recognised(fields: dict[str, str], response: str) -> None:
    other = [TURNS[0], {"role": "assistant", "content": "Other."}]
    record = {"messages": TURNS, "q": "Q", "a": "named", "t": "text", "other": other}
    assert Fields(**fields).example(Row(record, "here", "id", "source")).response == response
    if len(fields) == 1:
        with pytest.raises(ValueError, match=r"data\.corpus\.fields\.prompt and .* contradict each other"):
            Fields(**fields, prompt="q")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "a", "completion": "b", "label": True}, "KTO"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "are a preference"),
        *(
            ({"prompt": "a", "response": "b", "weight": weight}, "`weight` of a row must be a number of 0 or more")
            for weight in (-0.5, float("nan"), float("inf"), True, "1", [1])
        ),
        ({"messages": TURNS, "tools": "x"}, "`tools` must be a list of tools"),
        ({"messages": TURNS, "system": 3}, "`system` must be text"),
        ({"messages": TURNS, "chat_template_kwargs": "x"}, "`chat_template_kwargs` must be an object"),
        ({"question": "a", "answer": "b"}, r"no field is known .*data\.corpus\.fields\.prompt, and"),
        ({"instruction": "a"}, "field `output` is missing"),
        ({"instruction": "a", "output": "b", "history": ["c"]}, "`history` must be a list of pairs"),
    ],
)
def test_rows_that_are_no_examples_are_refused(record: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow, match=said):
        Fields().example(Row(record, "here", "id", "source"))


def mixed(folder: Path) -> Path:
    """Good rows with bad ones between them, one to each kind."""
    lines = [line for pair in zip(map(json.dumps, GOOD), BAD, strict=False) for line in pair]
    (folder / "mixed.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "mixed.jsonl"


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


def glass(folder: Path | None = None, **options: Any) -> Glass:
    return Glass(runs.tokenizer(), 64, Encoding(**options), folder)


def test_what_was_read_and_seen_is_kept_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rows, "CACHED_FROM", 1)
    path, cache = mixed(tmp_path), tmp_path / "cache"

    def load() -> Corpus:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            return prepared(read(path, on_bad_row="drop", cache_dir=str(cache)), glass(cache))

    first = load()
    assert "taken from" not in caplog.text
    second = load()
    assert "taken from" in caplog.text
    assert examples(first) == examples(second) and first.rejects == second.rejects
    assert isinstance(second.stream, rows.Listed) and isinstance(second.stream.examples, ExampleTable)
    assert second.stream.examples.path is not None and second.stream.examples.path.parent == cache
    monkeypatch.setattr(Glass, "see", None)
    load()  # nothing is looked at again
    path.write_text(path.read_text() + json.dumps(GOOD[5]) + "\n")
    monkeypatch.undo()
    monkeypatch.setattr(rows, "CACHED_FROM", 1)
    assert len(examples(load())) == len(examples(first)) + 1 and "taken from" not in caplog.text


def test_a_cache_that_cannot_be_made_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rows, "CACHED_FROM", 1)
    (tmp_path / "file").write_text("")
    corpus = read(mixed(tmp_path), on_bad_row="drop", cache_dir=str(tmp_path / "file" / "cache"))
    assert len(examples(corpus)) == 5 and "read into memory, data.cache_dir" in caplog.text


def test_processes_see_what_one_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CACHED_FROM", 1)
    lines = [json.dumps({"prompt": f"What is {n}?", "response": f"It is {n}." * (1 + n % 7)}) for n in range(64)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    table = read(tmp_path / "a.jsonl", cache_dir=str(tmp_path / "c")).stream
    assert isinstance(table, rows.Listed)
    alone = glass().look(table.examples, "key")
    monkeypatch.setattr("winnow.data.look.SHARED_FROM", 1)
    monkeypatch.setattr("winnow.data.look.PIECE", 10)
    together = glass().look(table.examples, "key")
    assert alone.faults == together.faults
    for name, column in alone.columns.items():
        np.testing.assert_array_equal(column, together.columns[name])


def test_a_tokenizer_that_other_processes_cannot_have_is_looked_through_in_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rows, "CACHED_FROM", 1)
    monkeypatch.setattr("winnow.data.look.SHARED_FROM", 1)
    table = read(mixed(tmp_path), on_bad_row="drop", cache_dir=str(tmp_path / "c")).stream
    assert isinstance(table, rows.Listed)
    alone = glass()
    monkeypatch.setattr(type(alone.tokenizer), "__reduce_ex__", lambda self, protocol: (lambda: None)())
    assert alone.look(table.examples, "key").columns["length"].min() > 0
    assert "rows are checked in one process: the tokenizer cannot be given to others" in caplog.text


def test_rows_that_were_checked_are_not_checked_again_at_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, held = tokenizer_with(template_of("chatml")), []
    module = sys.modules["winnow.data.encode"]  # by its path the function of that name is found
    monkeypatch.setattr(module, "check_rendering", lambda example, rendered: held.append(example.id))
    corpus = Corpus(rows.Listed([runs.example(number) for number in range(8)]), runs.corpus().targets)
    data = SelectionDataModule(corpus, tokenizer, pool_size=4, target_batch_size=2)
    assert len(held) == 8 + 10 + 6
    first = data.steps[0, 0]
    assert len(held) == 24
    again = data.steps.pool([data.corpus.stream[0]])
    assert len(held) == 25  # of an example that may be from anywhere nothing is known
    tokenizer.chat_template = template_of("plain")
    assert data.steps[0, 0]["pool"]["input_ids"].tolist() != first["pool"]["input_ids"].tolist()
    assert len(held) == 31 and again["pool"]["labels"].max() > 0


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


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["user", "\ud800", "\x1b[2J", "\ufeff"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["messages", "role", "content", "prompt", "response", "conversations", "from", "value", "text",
                         "tool_calls", "function", "name", "weight", "id", "label", "instruction", "output", "system"]),
        inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(odd, min_size=1, max_size=8))
def test_no_row_is_silent_and_none_a_traceback(tmp_path_factory: pytest.TempPathFactory, given_rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("odd") / "odd.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*given_rows, GOOD[0]]))
    corpus = read(path, on_bad_row="drop")
    prepared_ = prepared(corpus, glass(join_turns=True))
    accounted = (prepared_.stream.size or 0) + prepared_.rejects.of("data.corpus.stream") + sum(corpus.report.values())
    assert accounted == len(given_rows) + 1
    assert all(one.where.startswith(f"{path}, line ") for one in prepared_.rejects.listed)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.binary(max_size=200) | st.sampled_from(list(FORMS)).map(lambda name: FORMS[name][1]), st.data())
def test_no_bytes_are_a_traceback(tmp_path_factory: pytest.TempPathFactory, raw: bytes, data: st.DataObject) -> None:
    packed = PACKERS[data.draw(st.sampled_from(list(PACKERS)))](raw)
    cut = packed[: data.draw(st.integers(0, len(packed)))]
    name = data.draw(st.sampled_from(["a.jsonl", "a.csv", "a.json", "a.parquet"]))
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(cut)
    for record in read_records(str(path)):
        assert (record.fields is None) == (record.fault is not None)
        assert record.where.startswith(f"{path}, ")


def test_a_source_is_told_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    source = files_source(str(tmp_path / "a.jsonl"), "key")
    assert source.fingerprint is not None
    before = source.fingerprint()
    assert before == source.fingerprint() and source.size == len(LINES)
    (tmp_path / "a.jsonl").write_bytes(LINES.replace(b"It is 1", b"It is 9"))
    assert before != source.fingerprint()
