"""Rows of fixed length for pre-training: documents joined end to end, loss on every token."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from winnow.data.encode import Encoded, encode
from winnow.data.example import Example, Stream

DOCUMENTS = 64  # a row may draw on this many consecutive documents before it is given up as too short


class Packed:
    """Row i joins documents 64i, 64i+1, ... of an endless stream until it is full.

    A pure function of the position, like the stream below it; what does not fit is cut off, so that
    no document has to be remembered between rows.

    Args:
        stream: endless documents.
        tokenizer: the model's tokenizer.
        length: tokens per row.
    """

    def __init__(self, stream: Stream, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
        if stream.size is not None:
            raise ValueError("data.packing needs an endless stream; this one is finite")
        self.stream, self.tokenizer, self.length = stream, tokenizer, length

    def __getitem__(self, index: int) -> tuple[Example, Encoded]:
        """Row at a position.

        Args:
            index: position, >= 0.

        Returns:
            A placeholder example that names the row, and its tokens.

        Raises:
            ValueError: 64 documents did not fill the row.
        """
        ids: list[int] = []
        for offset in range(DOCUMENTS):
            ids += encode(self.stream[index * DOCUMENTS + offset], self.tokenizer, self.length).input_ids
            if len(ids) >= self.length:
                ids = ids[: self.length]
                return Example(id=f"row-{index}", source="packed", prompt="", response=""), Encoded(ids, ids, False)
        raise ValueError(f"{DOCUMENTS} documents gave only {len(ids)} tokens for a row of {self.length}")
