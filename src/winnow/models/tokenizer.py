"""A byte-level BPE tokenizer with single digits, trained from text; used for the embedded tiny model.

python -m winnow.models.tokenizer --out DIR --vocab 4096 --text FILE.jsonl.gz [FILE ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from winnow.data.families import FAMILIES
from winnow.data.mixture import Mixture, Part
from winnow.data.text import TextPassages

END = "<|endoftext|>"
PAD = "<|pad|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which every digit is a token of its own, so that arithmetic is regular.

    Args:
        texts: training text.
        vocab_size: entries, the 256 bytes and two special tokens included.

    Returns:
        A tokenizer that adds nothing by itself; its end-of-text token ends every response.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


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
