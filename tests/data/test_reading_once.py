"""What was read, seen and checked once is kept: by content, in other processes, at a step."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import runs
from tests.reading import GOOD, examples, glass, mixed, read
from tests.templates import tokenizer_with
from winnow.data import Corpus, SelectionDataModule, rows
from winnow.data.look import Glass
from winnow.data.prepared import prepared
from winnow.data.table import ExampleTable
from winnow.models.templates import template_of


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
