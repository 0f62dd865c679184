"""Hugging Face data sets from a folder; what cannot be loaded is said with its key."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from winnow.data import Example
from winnow.data.hub import HubSplit, hub_corpus

ROWS = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(10)]
FIELDS = {"prompt": "question", "response": "answer"}


def saved(folder: Path) -> str:
    """Three splits written by save_to_disk."""
    splits = {"train": ROWS, "validation": ROWS[:4], "test": ROWS[4:7]}
    named = {
        name: datasets.Dataset.from_list([{**row, "question": f"{name}: {row['question']}"} for row in rows])
        for name, rows in splits.items()
    }
    datasets.DatasetDict(named).save_to_disk(str(folder))
    return str(folder)


def data_files(folder: Path) -> str:
    """Two splits as files of JSON lines."""
    folder.mkdir()
    for name, rows in {"train": ROWS[:6], "test": ROWS[6:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def questions(examples: Any) -> list[str]:
    return [example.prompt for example in examples]


def loaded(split: dict[str, Any]) -> list[str]:
    return [row["question"] for row in HubSplit(**split).load("key")]


def test_a_corpus_from_splits_saved_to_disk(tmp_path: Path) -> None:
    path = saved(tmp_path / "set")
    corpus = hub_corpus(
        {"path": path, "split": "train[2:]"},
        {
            "sums": {
                "val": {"path": path, "split": "validation"},
                "test": {"path": path, "split": "test"},
                "weight": 2.0,
            },
            "none": None,
        },
        FIELDS,
    )
    (target,) = corpus.targets
    assert (corpus.stream.size, target.weight) == (8, 2.0)
    assert corpus.stream[0] == Example("set:0", "set", "train: What is 2?", "It is 2.", answer="It is 2.")
    assert questions(target.val) == [f"validation: What is {n}?" for n in range(4)]
    assert questions(target.test) == [f"test: What is {n}?" for n in range(4, 7)]


@pytest.mark.parametrize(
    ("split", "numbers"),
    [("train[:2]", [0, 1]), ("train[80%:]", [8, 9]), ("test+validation[:1]", [4, 5, 6, 0]), ("train[-1:]", [9])],
)
def test_splits_can_be_sliced_and_added(tmp_path: Path, split: str, numbers: list[int]) -> None:
    found = loaded({"path": saved(tmp_path / "set"), "split": split})
    assert [question.split(": ")[1] for question in found] == [f"What is {n}?" for n in numbers]


def test_a_folder_of_data_files(tmp_path: Path) -> None:
    path, cache = data_files(tmp_path / "files"), str(tmp_path / "cache")
    assert loaded({"path": path, "split": "test", "cache_dir": cache}) == [row["question"] for row in ROWS[6:]]
    assert loaded({"path": path, "split": "train[:1]", "cache_dir": cache}) == ["What is 0?"]


def test_one_data_set_can_be_sliced_into_stream_and_target(tmp_path: Path) -> None:
    path = saved(tmp_path / "set")
    stream = {"path": path, "split": "train[4:]"}
    target = {"val": {"path": path, "split": "train[:2]"}, "test": {"path": path, "split": "train[2:4]"}}
    assert hub_corpus(stream, {"t": target}, FIELDS).stream.size == 6
    with pytest.raises(
        ValueError, match=r"2 of 8 prompts of data.corpus.stream are also in data.corpus.targets.t.test"
    ):
        hub_corpus({**stream, "split": "train[2:]"}, {"t": target}, FIELDS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"split": "dev"}, r"data.corpus.stream \(.*split=dev\): .*dev"),
        ({"path": "nobody/nothing"}, "data.corpus.stream.path=nobody/nothing: no such folder here"),
        ({"splits": "train"}, "data.corpus.stream has no splits; its keys are path, split, name"),
        ({"split": None}, "data.corpus.stream needs split"),
    ],
)
def test_what_cannot_be_loaded_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        hub_corpus({"path": saved(tmp_path / "set"), "split": "train", **change}, {}, FIELDS)


def test_a_missing_field_names_the_row_and_the_key(tmp_path: Path) -> None:
    path = saved(tmp_path / "set")
    said = r"no field is known .*set, train, row 0: the record has `question`, `answer`"
    with pytest.raises(ValueError, match=f"{said}.*data.corpus.fields.prompt"):
        hub_corpus({"path": path, "split": "train"}, {})
