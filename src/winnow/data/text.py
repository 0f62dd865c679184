"""Plain text for pre-training: passages cut from documents at word boundaries."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate

from winnow.data.example import Example
from winnow.data.files import check_text, read_json_lines
from winnow.data.rejects import placed


class TextPassages:
    """Passage i of an endless stream: some characters from a random place, a pure function of (seed, i).

    Args:
        paths: jsonl(.gz) files whose rows have a ``text``; relative to the folder the program was started in.
        seed: of the stream.
        characters: length of a passage before it is cut back to whole words.

    Raises:
        ValueError: a row has no ``text`` or one that no tokenizer takes, or there is no text at all.
    """

    def __init__(self, paths: Sequence[str], seed: int = 0, characters: int = 900) -> None:
        self.seed, self.characters = seed, characters
        documents: list[str] = []
        for path in paths:
            for number, row in read_json_lines(path, "data.corpus.text"):
                if not isinstance(row.get("text"), str):
                    raise ValueError(f"{path}, line {number}: no field `text` with text in it (data.corpus.text)")
                with placed(f"{path}, line {number}"):
                    check_text(row["text"], "text")
                documents.append(row["text"])
        self.documents = [text for text in documents if len(text) > characters]
        if not self.documents:
            raise ValueError(f"data.corpus.text: no document longer than {characters} characters in {list(paths)}")
        self._lengths = [len(text) for text in self.documents]
        self._cumulative = list(accumulate(self._lengths))

    @property
    def size(self) -> None:
        """Endless."""
        return None

    def __getitem__(self, index: int) -> Example:
        """The passage at a position.

        Args:
            index: position, >= 0.

        Returns:
            An example with an empty prompt.
        """
        rng = random.Random(f"text-{self.seed}-{index}")
        number = rng.choices(range(len(self.documents)), cum_weights=self._cumulative)[0]
        start = rng.randrange(self._lengths[number] - self.characters + 1)
        passage = self.documents[number][start : start + self.characters]
        first, last = passage.find(" ") + 1, passage.rfind(" ")
        return Example(f"text-{self.seed}-{index}", "text", "", passage[first:last] if first < last else passage)
