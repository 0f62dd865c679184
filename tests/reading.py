"""Rows, good and bad, and what is read of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests import runs
from winnow.data import Corpus, Example
from winnow.data.encode import Encoding
from winnow.data.jsonl import jsonl_corpus
from winnow.data.look import Glass

GOOD = [{"prompt": f"What is {n}?", "response": f"It is {n}."} for n in range(6)]
LINES = "".join(json.dumps(row) + "\n" for row in GOOD).encode()
BAD = ['{"prompt": "a"', '{"prompt": "a"}', "[1]", '{"prompt": "\\ud800", "response": "b"}', '{"messages": [1, 2]}']
TURNS = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]


def read(*paths: object, **options: Any) -> Corpus:
    return jsonl_corpus([str(path) for path in paths], {}, **options)


def examples(corpus: Corpus) -> list[Example]:
    return [corpus.stream[at] for at in range(corpus.stream.size or 0)]


def mixed(folder: Path) -> Path:
    """Good rows with bad ones between them, one to each kind."""
    lines = [line for pair in zip(map(json.dumps, GOOD), BAD, strict=False) for line in pair]
    (folder / "mixed.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "mixed.jsonl"


def glass(folder: Path | None = None, **options: Any) -> Glass:
    return Glass(runs.tokenizer(), 64, Encoding(**options), folder)
