"""A data set's card, its records and its rows name no file outside of it, and no row says how it is written."""

from __future__ import annotations

import inspect
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerBase

from winnow.data.fields import RESERVED, Fields, Row
from winnow.data.hub import HubSplit, hub_corpus
from winnow.data.inside import check_inside
from winnow.data.jsonl import jsonl_corpus
from winnow.data.rejects import BadRow

SECRET = [{"prompt": "who", "response": "secret"}]
OUTSIDE = r"data\.corpus\.stream.*names a file outside of itself, '.*(secret|other)"


def loaded(path: str, **options: Any) -> list[dict[str, Any]]:
    return list(HubSplit(path, "train", cache_dir="cache", **options).load("data.corpus.stream"))


@pytest.fixture
def secret() -> None:
    """A file and a saved set beside the folder of a data set, ``set``."""
    Path("secret.jsonl").write_text(json.dumps(SECRET[0]) + "\n")
    Path("set").mkdir()
    Path("set/a.jsonl").write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    datasets.Dataset.from_list(SECRET).save_to_disk("other")


def card(pattern: str) -> None:
    configs = json.dumps([{"config_name": "default", "data_files": pattern}])
    Path("set/README.md").write_text(f"---\nconfigs: {configs}\n---\n")


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("pattern", ["../secret.jsonl", "ABSOLUTE", "file://ABSOLUTE", "../*.jsonl"])
def test_a_card_that_names_files_elsewhere_is_refused(pattern: str) -> None:
    card(pattern.replace("ABSOLUTE", str(Path("secret.jsonl").absolute())))
    with pytest.raises(ValueError, match=OUTSIDE):
        loaded("set")


@pytest.mark.usefixtures("secret")
def test_a_card_that_names_its_own_files_is_followed() -> None:
    card("*.jsonl")
    assert loaded("set") == [{"prompt": "a", "response": "b"}]


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("name", ["../other/data-00000-of-00001.arrow", "ABSOLUTE"])
def test_a_saved_set_that_names_files_elsewhere_is_refused(name: str, split: bool) -> None:
    rows = datasets.Dataset.from_list([{"prompt": "a", "response": "b"}])
    (datasets.DatasetDict({"train": rows}) if split else rows).save_to_disk("saved")
    assert loaded("saved") == [{"prompt": "a", "response": "b"}]
    state = Path("saved/train/state.json" if split else "saved/state.json")
    absolute = str(Path("other/data-00000-of-00001.arrow").absolute())
    named = absolute if name == "ABSOLUTE" else f"../{name}" if split else name
    state.write_text(json.dumps(json.loads(state.read_text()) | {"_data_files": [{"filename": named}]}))
    with pytest.raises(ValueError, match=OUTSIDE):
        loaded("saved")
    state.write_text("{}")
    with pytest.raises(ValueError, match="is not what save_to_disk writes"):
        loaded("saved")


@pytest.mark.parametrize(
    ("file", "inside"),
    [
        ("hf://datasets/a/b@abc/x.parquet", True),
        ("hf://datasets/a/bc@abc/x.parquet", False),
        ("hf://datasets/a/b@abc/../../c/x.parquet", False),
        ("/etc/passwd", False),
        ("file:///etc/passwd", False),
        ("https://else.where/x.parquet", False),
    ],
)
def test_a_set_of_the_hub_has_its_files_there(file: str, inside: bool) -> None:
    if inside:
        check_inside([file], ["hf://datasets/a/b@"], "key")
        return
    with pytest.raises(ValueError, match="key: the data set names a file outside of itself"):
        check_inside([file], ["hf://datasets/a/b@"], "key")


def test_no_file_that_a_row_names_is_opened() -> None:
    features = datasets.Features({
        "prompt": datasets.Value("string"),
        "response": datasets.Value("string"),
        "image": datasets.Image(),
        "more": datasets.List({"film": datasets.Image()}),
    })
    row = {"path": "/etc/passwd", "bytes": None}
    rows = [{"prompt": "a", "response": "b", "image": row, "more": [{"film": row}]}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk("pictures")
    stream = hub_corpus({"path": "pictures", "split": "train"}, {}).stream
    assert (stream[0].prompt, stream[0].response) == ("a", "b")


def test_a_folder_of_code_and_a_folder_of_pickles_are_no_data() -> None:
    Path("coded").mkdir()
    Path("coded/coded.py").write_text("open('RAN', 'w')\n")
    for path, options in (("coded", {}), ("pandas", {"data_dir": "coded"})):
        with pytest.raises(ValueError, match=r"data\.corpus\.stream"):
            loaded(path, **options)
    assert not Path("RAN").exists()


def test_an_archive_is_not_unpacked() -> None:
    with zipfile.ZipFile("rows.jsonl", "w") as archive:
        archive.writestr("../escaped.jsonl", json.dumps(SECRET[0]))
    with pytest.raises(ValueError, match="the file is a zip archive: unpack it"):
        jsonl_corpus("rows.jsonl", {})
    assert [path.name for path in Path().iterdir()] == ["rows.jsonl"]


def test_names_in_rows_are_no_names_of_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("winnow.data.rows.CACHED_FROM", 0)
    before = set(tmp_path.rglob("*"))
    odd = "../../escaped"
    Path("rows.jsonl").write_text(json.dumps({"prompt": "a", "response": "b", "id": odd, "source": odd, "noise": odd}))
    corpus = jsonl_corpus("rows.jsonl", {}, cache_dir="cache")
    assert corpus.stream[0].id == odd
    made = {path.relative_to(Path.cwd()) for path in set(tmp_path.rglob("*")) - before}
    kept = [path for path in made if path.parent == Path("cache")]
    assert made == {Path("rows.jsonl"), Path("cache"), *kept}
    assert kept and all(re.fullmatch(r"[0-9a-f]{32}\.[a-z.]+", path.name) for path in kept)


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "tools"])
def test_a_row_gives_its_template_variables_and_no_template(name: str) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    fields = {"messages": chat, "chat_template_kwargs": {"thinking": True, name: "{{ 7 * 7 }}"}}
    with pytest.raises(BadRow, match=f"`chat_template_kwargs` sets more than variables of the template: {name}"):
        Fields().example(Row(fields, "x, line 1", "1", "x"))
    fields["chat_template_kwargs"] = {"thinking": True}
    assert Fields().example(Row(fields, "x, line 1", "1", "x")).template == {"thinking": True}


def test_every_argument_of_the_tokenizers_function_is_reserved() -> None:
    known = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    assert known - {"kwargs", "documents"} <= RESERVED, "documents are a variable of templates"
