"""Files become examples as they say, and what is wrong with one is named by file, line and key."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.data import Corpus, Example, Target
from winnow.data.fields import Fields, Row
from winnow.data.files import read_json_lines
from winnow.data.jsonl import jsonl_corpus
from winnow.data.overlap import check_disjoint
from winnow.data.rejects import BadRow
from winnow.data.text import TextPassages

exact = settings(derandomize=True, deadline=None, max_examples=60)
GOOD = [{"prompt": f"What is {n}?", "response": f"It is {n}."} for n in range(6)]
SHARED = Path(__file__).parents[3] / "shared" / "data"


def write(path: Path, rows: list[Any]) -> str:
    """Rows as JSON lines; strings are written as they are."""
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def load(folder: Path, rows: list[Any], suffix: str = ".jsonl", **options: Any) -> Corpus:
    """A corpus of these rows as stream, with one target."""
    named = {name: [{"prompt": f"{name} {n}", "response": str(n)} for n in range(2)] for name in ("val", "test")}
    target: dict[str, Any] = {name: write(folder / f"{name}{suffix}", named[name]) for name in named}
    targets = {"sums": {**target, **options.pop("target", {})}, **options.pop("targets", {})}
    return jsonl_corpus(write(folder / f"stream{suffix}", rows), targets, **options)


def examples(corpus: Corpus) -> list[Example]:
    assert corpus.stream.size is not None
    return [corpus.stream[at] for at in range(corpus.stream.size)]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_prompts_responses_and_labels_come_through(tmp_path: Path, suffix: str) -> None:
    rows = [
        {**GOOD[0], "id": "mine", "source": "here", "group": "near", "noise": "shuffled", "answer": 7},
        "",
        {"prompt": "", "response": "plain text", "meta": {"answer": "9"}},
    ]
    first, second = examples(load(tmp_path, rows, suffix))
    assert first == Example(
        "mine", "here", "What is 0?", "It is 0.", labels={"group": "near", "noise": "shuffled"}, answer="7"
    )
    assert second == Example("stream:3", "stream", "", "plain text", answer="9")


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (r"Q: {prompt}\nA:", "Q: x\\ny\nA:"),
        ("Q: {prompt}\nA:", "Q: x\\ny\nA:"),
        (r"{prompt}\t|", "x\\ny\t|"),
        (r"{prompt}\\n", "x\\ny\\n"),
        (r"\alpha {prompt}", "\\alpha x\\ny"),
    ],
)
def test_a_backslash_and_an_n_in_a_template_are_a_line_break_and_those_of_the_data_stay(
    tmp_path: Path, template: str, prompt: str
) -> None:
    rows = [{"prompt": r"x\ny", "response": "r"}]
    (found,) = examples(load(tmp_path, rows, fields={"prompt": template}, target={"fields": {}}))
    assert found.prompt == prompt


def test_an_empty_id_or_source_is_none(tmp_path: Path) -> None:
    first, second = examples(load(tmp_path, [{**GOOD[0], "id": "", "source": ""}, {**GOOD[1], "id": 0}]))
    assert (first.id, first.source, second.id) == ("stream:1", "stream", "0")


@exact
@given(st.lists(st.text(), min_size=1, max_size=5))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("text") / "any.jsonl"
    write(path, [{"text": text} for text in texts])
    assert [row["text"] for _, row in read_json_lines(path, "key")] == texts


def test_a_byte_order_mark_and_windows_line_ends_are_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    assert list(read_json_lines(tmp_path / "a.jsonl", "key")) == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"prompt": "a", ', "not JSON"),
        ('{"prompt": "a" "response": "b"}', "not JSON: Expecting ',' delimiter at column 16"),
        ("[1, 2", "not JSON"),
        ("[1, 2]", "got list"),
        ("17", "got int"),
        (
            {"prompt": "a"},
            r"field `response` is missing or null: the record has `prompt`; .*data.corpus.fields.response",
        ),
        ({"prompt": None, "response": "b"}, "no field is known .*the record has `prompt`, `response`"),
        ({"prompt": 3, "response": "b"}, "field `prompt` must be text: got int"),
        ({"messages": "hello"}, "must be a list of turns"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no turn of the assistant's"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "at least two turns"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}, "`content` as text: .*turn 2"),
        (
            {"messages": [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]},
            "must have the role `assistant`: got 'user'",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_bad_line_is_named(tmp_path: Path, bad: Any, said: str, suffix: str) -> None:
    with pytest.raises(ValueError, match=rf"stream{suffix}, line 4: .*{said}"):
        load(tmp_path, [*GOOD[:3], bad, *GOOD[3:]], suffix)


@pytest.mark.parametrize(
    "content", [b"\x1f\x8bnot gzip", gzip.compress(json.dumps(GOOD[0]).encode(), mtime=0)[:-9]], ids=["other", "cut"]
)
def test_a_broken_archive_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.jsonl.gz, after line \d: not a .*file.*\(some.key\)"):
        list(read_json_lines(tmp_path / "a.jsonl.gz", "some.key"))


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl, line 2: not UTF-8"):
        list(read_json_lines(tmp_path / "a.jsonl", "key"))


def test_a_missing_file_names_the_key() -> None:
    with pytest.raises(FileNotFoundError, match=r"data.corpus.stream: no file .*nowhere.jsonl"):
        jsonl_corpus("nowhere.jsonl", {})


def test_an_empty_stream_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.corpus.stream gives no examples$"):
        load(tmp_path, [])
    with pytest.raises(ValueError, match="no examples; left out: 2 empty response"):
        load(tmp_path, [{"prompt": "a", "response": ""}, {"prompt": "b", "response": " \n"}])


def test_empty_responses_are_left_out_and_counted(tmp_path: Path) -> None:
    corpus = load(tmp_path, [*GOOD, {"prompt": "a", "response": " "}])
    assert len(examples(corpus)) == len(GOOD)
    assert corpus.report == {"data.corpus.stream: empty response": 1}


def test_an_id_stands_for_one_example(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 2: .*'a' at .*stream.jsonl, line 1; ids must be unique"):
        load(tmp_path, [{**row, "id": "a"} for row in GOOD])


def test_several_files_keep_ids_apart(tmp_path: Path) -> None:
    paths = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        paths.append(write(tmp_path / name / "part.jsonl", GOOD[:2]))
    ids = [example.id for example in examples(jsonl_corpus(paths, {}))]
    assert ids == ["part~0:1", "part~0:2", "part~1:1", "part~1:2"]


def test_limit_takes_the_first(tmp_path: Path) -> None:
    assert [example.prompt for example in examples(load(tmp_path, GOOD, limit=2))] == ["What is 0?", "What is 1?"]


def test_chats_keep_their_turns(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi."},
    ]
    (example,) = examples(load(tmp_path, [{"messages": turns}]))
    assert example.messages == tuple(turns)
    assert (example.prompt, example.response) == ("Be short.\nHello?", "Hi.")


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"prompt": "q", "response": "a"}, "Why?"),
        ({"prompt": "Q: {q}\nA:", "response": "a"}, "Q: Why?\nA:"),
        ({"prompt": "{q} {more.hint}", "response": "a"}, "Why? Think."),
        ({"prompt": "{{{q}}}", "response": "a"}, "{Why?}"),
    ],
)
def test_fields_map_names_and_templates(fields: dict[str, str], prompt: str) -> None:
    row = Row({"q": "Why?", "a": "So.", "more": {"hint": "Think."}}, "here", "id", "source")
    example = Fields(**fields).example(row)
    assert (example.prompt, example.response) == (prompt, "So.")


def test_a_template_names_the_field_that_is_missing() -> None:
    with pytest.raises(BadRow, match=r"field `w` is missing .*data.corpus.fields.prompt"):
        Fields(prompt="{q} {w}", response="a").example(Row({"q": "Why?", "a": "So."}, "here", "id", "source"))


def test_a_template_reaches_no_attributes() -> None:
    with pytest.raises(ValueError, match=r"`q\.__class__` is missing"):
        Fields(prompt="{q.__class__}", response="a").example(Row({"q": "Why?", "a": "So."}, "here", "id", "source"))


def test_a_target_may_have_fields_of_its_own(tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", [{"q": "Why?", "response": "So."}])
    test = write(tmp_path / "other_test.jsonl", [{"q": "How?", "response": "So."}])
    target = {"val": other, "test": test, "fields": {"prompt": "q"}, "weight": 3.0}
    corpus = load(tmp_path, GOOD, targets={"why": target, "none": None})
    assert {target.name: target.weight for target in corpus.targets} == {"sums": 1.0, "why": 3.0}
    assert corpus.targets[1].val[0].prompt == "Why?"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"wieght": 1.0}, "data.corpus.targets.sums has no wieght; its keys are val, test, score"),
        ({"test": None}, "data.corpus.targets.sums needs test"),
        ({"fields": {"question": "q"}}, "data.corpus.targets.sums.fields has no question"),
    ],
)
def test_misspelt_keys_of_a_target_are_named(tmp_path: Path, target: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load(tmp_path, GOOD, target=target)


def sample(*prompts: str) -> list[Example]:
    return [Example(f"id-{prompt}", "s", prompt, "r") for prompt in prompts]


@pytest.mark.parametrize("split", ["val", "test"])
def test_overlap_with_the_stream_is_an_error(tmp_path: Path, split: str) -> None:
    rows = [*GOOD, {"prompt": f"{split.upper()}  1", "response": "another"}]
    said = rf"1 of 7 prompts of data.corpus.stream are also in data.corpus.targets.sums.{split} \(stream:7\)"
    with pytest.raises(ValueError, match=f"{said}.*on_overlap=drop"):
        load(tmp_path, rows)
    corpus = load(tmp_path, rows, on_overlap="drop")
    assert [example.id for example in examples(corpus)] == [f"stream:{n}" for n in range(1, 7)]
    assert corpus.report == {f"data.corpus.stream: also in data.corpus.targets.sums.{split}": 1}


def test_test_prompts_stand_in_no_validation_split() -> None:
    targets = [Target("a", sample("1", "2"), sample("3")), Target("b", sample("3", "4"), sample("5"))]
    with pytest.raises(ValueError, match=r"1 of 2 prompts of data.corpus.targets.b.val are also in .*targets.a.test"):
        check_disjoint(sample("9"), targets)
    _, kept, dropped = check_disjoint(sample("9"), targets, "drop")
    assert [[example.prompt for example in target.val] for target in kept] == [["1", "2"], ["4"]]
    assert list(dropped.values()) == [1]


def test_dropping_never_leaves_nothing() -> None:
    with pytest.raises(ValueError, match=r"every prompt of data\.corpus\.stream"):
        check_disjoint(sample("1"), [Target("a", sample("1"), sample("2"))], "drop")
    with pytest.raises(ValueError, match="on_overlap must be error or drop, got 'keep'"):
        check_disjoint(sample("1"), [], "keep")


WORDS = st.lists(st.sampled_from("abcdefgh"), max_size=6)


@exact
@given(WORDS, WORDS, WORDS)
def test_dropping_leaves_no_overlap(stream: list[str], val: list[str], test: list[str]) -> None:
    targets = [Target("t", sample(*val), sample(*test))]
    remain = (set(val) - set(test) or not val) and (set(stream) - set(val) - set(test) or not stream)
    if not remain:
        with pytest.raises(ValueError, match="leaves nothing"):
            check_disjoint(sample(*stream), targets, "drop")
        return
    kept, (target,), dropped = check_disjoint(sample(*stream), targets, "drop")
    assert {example.prompt for example in kept} == set(stream) - (set(val) - set(test)) - set(test)
    assert {example.prompt for example in target.val} == set(val) - set(test)
    assert list(target.test) == sample(*test)
    assert sum(dropped.values()) == len(stream) + len(val) - len(kept) - len(target.val)


def test_passages_are_pieces_of_the_text_at_word_boundaries(tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(400)]
    path = write(tmp_path / "text.jsonl.gz", [{"text": " ".join(words)}, {"text": "too short"}])
    stream = TextPassages([path], seed=1, characters=100)
    passages = [stream[at] for at in range(20)]
    assert passages == [TextPassages([path], seed=1, characters=100)[at] for at in range(20)]
    for example in passages:
        inside = example.response.split()
        assert example.prompt == "" and 60 < len(example.response) <= 100
        assert words[words.index(inside[0]) :][: len(inside)] == inside
    with pytest.raises(ValueError, match=r"line 1: no field `text`"):
        TextPassages([write(tmp_path / "no.jsonl", [{"txt": "a"}])])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
def test_the_shared_files_load() -> None:
    target = {split: str(SHARED / "targets" / f"gsm8k_{split}.jsonl.gz") for split in ("val", "test")}
    corpus = jsonl_corpus(str(SHARED / "stream.jsonl.gz"), {"gsm8k": target}, limit=500)
    assert corpus.stream.size == 500 and not corpus.report
    assert [len(corpus.targets[0].val), len(corpus.targets[0].test)] == [200, 1319]
    assert all(example.answer for example in corpus.targets[0].test)
