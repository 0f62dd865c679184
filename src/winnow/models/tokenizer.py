"""Trains the tokenizer of the embedded tiny model on the pre-training mixture.

python -m winnow.models.tokenizer --out DIR --vocab 4096 --text FILE.jsonl.gz [FILE ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from winnow.data.families import FAMILIES
from winnow.data.mixture import Mixture, Part
from winnow.data.text import TextPassages
from winnow.models.bpe import train_tokenizer


def _texts(files: list[str], tasks: int, passages: int) -> Iterator[str]:
    parts = {family.__name__: Part(family(), 1.0) for family in FAMILIES}
    drawn = Mixture(parts)
    for position in range(tasks):
        example = drawn[position]
        yield f"{example.prompt}\n{example.response}"
    text = TextPassages(files)
    for position in range(passages):
        yield text[position].response


def main() -> None:
    """Train on the pre-training mixture and save the tokenizer."""
    parser = argparse.ArgumentParser(prog="python -m winnow.models.tokenizer", description=__doc__)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--vocab", type=int, default=4096, help="number of entries")
    parser.add_argument("--text", nargs="+", required=True, help="jsonl(.gz) files with a `text` field")
    parser.add_argument("--tasks", type=int, default=40_000, help="procedural examples to train on")
    parser.add_argument("--passages", type=int, default=20_000, help="text passages to train on")
    args = parser.parse_args()
    train_tokenizer(_texts(args.text, args.tasks, args.passages), args.vocab).save_pretrained(args.out)


if __name__ == "__main__":
    main()
