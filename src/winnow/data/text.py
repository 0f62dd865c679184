"""Plain text for pre-training: passages cut from documents at word boundaries."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path

from winnow.data.example import Example


def open_text(path: Path) -> list[str]:
    """Lines of a text file, gzip-compressed or not.

    Args:
        path: the file.

    Returns:
        Its lines.
    """
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        return file.readlines()


class TextPassages:
    """Passage i of an endless stream: some characters from a random place, a pure function of (seed, i).

    Args:
        paths: jsonl(.gz) files whose rows have a ``text``.
        seed: of the stream.
        characters: length of a passage before it is cut back to whole words.

    Raises:
        ValueError: a row has no ``text``, or there is no text at all.
    """

    def __init__(self, paths: Sequence[str], seed: int = 0, characters: int = 900) -> None:
        self.seed, self.characters = seed, characters
        documents: list[str] = []
        for path in map(Path, paths):
            for number, line in enumerate(open_text(path), 1):
                try:
                    documents.append(json.loads(line)["text"])
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise ValueError(f"{path}, line {number}: not a JSON object with a `text` ({error})") from error
        self.documents = [text for text in documents if len(text) > characters]
        if not self.documents:
            raise ValueError(f"data.text: no document longer than {characters} characters in {list(paths)}")
        self._lengths = [len(text) for text in self.documents]
        self._cumulative = [0]
        for length in self._lengths:
            self._cumulative.append(self._cumulative[-1] + length)

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
        number = rng.choices(range(len(self.documents)), cum_weights=self._cumulative[1:])[0]
        start = rng.randrange(self._lengths[number] - self.characters + 1)
        passage = self.documents[number][start : start + self.characters]
        first, last = passage.find(" ") + 1, passage.rfind(" ")
        return Example(f"text-{self.seed}-{index}", "text", "", passage[first:last] if first < last else passage)
