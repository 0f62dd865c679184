"""Files of every form and rows of every shape become the same examples; what cannot be read is counted and named."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reading import GOOD, LINES, TURNS, examples, glass, read
from winnow.data.fields import Fields, Row
from winnow.data.files import read_records
from winnow.data.jsonl import files_source
from winnow.data.prepared import prepared
from winnow.data.rejects import BadRow


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
