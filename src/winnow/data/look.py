"""Every row of a finite split, encoded and checked once before the first step."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from winnow.data.encode import PLAIN, Encoding, encode
from winnow.data.example import Example
from winnow.data.helpers import NotTaken, helping
from winnow.data.progress import progress
from winnow.data.rejects import LISTED, BadRow
from winnow.data.table import ExampleTable
from winnow.lm.ignore import IGNORE
from winnow.records.whole import replacing

log = logging.getLogger(__name__)

COLUMNS = ("length", "kept", "said", "loss", "turns", "trained", "parted", "answered", "fault")
PIECE = 2_000
"""Rows that a process looks at in one go."""
SHARED_FROM = 20_000
"""Rows from which on other processes help, which take seconds to begin."""
FORMAT = 1
"""Changes where the same row is encoded otherwise than before."""


@dataclass(frozen=True)
class Looked:
    """What was seen of a split, by row.

    Args:
        columns: of each row ``length``, tokens before the cut; ``kept``, after it; ``said``, the assistant's before
            it; ``loss``, that carry loss after it; ``turns`` and ``trained``, the assistant's; ``parted``, whether a
            generation would be opened otherwise; ``answered``, whether a token with loss is predicted; ``fault``, one
            more than the position of its fault in ``faults``, or 0. [rows] each.
        faults: reason and detail of rows that cannot be used; of the first in full, of later ones the reason.
    """

    columns: dict[str, np.ndarray]
    faults: list[tuple[str, str]]

    def total(self, column: str) -> int:
        """Sum over rows.

        Args:
            column: its name.

        Returns:
            The sum.
        """
        return int(self.columns[column].sum())


@dataclass(frozen=True)
class Glass:
    """Looks at examples.

    Args:
        tokenizer: the model's tokenizer.
        max_length: longest sequence, in tokens; ``data.max_length``.
        encoding: what carries loss, what is cut.
        cache_dir: where what was seen of large splits is kept; None keeps nothing.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    encoding: Encoding = PLAIN
    cache_dir: Path | None = None

    def look(self, examples: Sequence[Example], key: str) -> Looked:
        """Encode and check all examples, or recall what was seen of them.

        Args:
            examples: a split.
            key: its config key, for the progress bar.

        Returns:
            What was seen.
        """
        table = examples if isinstance(examples, ExampleTable) else None
        if self.cache_dir is None or table is None or table.path is None:
            return self._look(examples, key)
        rows = b"" if table.rows is None else table.rows.tobytes()
        asked = [FORMAT, table.path.name, self.max_length, asdict(self.encoding), fingerprint(self.tokenizer)]
        name = hashlib.blake2b(json.dumps(asked).encode() + rows, digest_size=16).hexdigest()
        path = self.cache_dir / f"{name}.looked.npz"
        with FileLock(f"{path}.lock"):
            if path.is_file():
                with np.load(path, allow_pickle=False) as kept:
                    faults = [(reason, detail) for reason, detail in json.loads(str(kept["faults"]))]
                    return Looked({column: kept[column] for column in COLUMNS}, faults)
            looked = self._look(examples, key)
            with replacing(path) as aside, open(aside, "wb") as file:
                np.savez(file, faults=np.array(json.dumps(looked.faults)), **looked.columns)  # type: ignore[arg-type]
            return looked

    def _look(self, examples: Sequence[Example], key: str) -> Looked:
        parts = [(start, min(start + PIECE, len(examples))) for start in range(0, len(examples), PIECE)]
        pieces: list[Looked] = []
        with progress(f"{key}: checking", len(examples)) as done:
            for looked in self._pieces(examples, parts):
                pieces.append(looked)
                done(PIECE)
        columns = {name: np.concatenate([piece.columns[name] for piece in pieces]) for name in COLUMNS}
        faults: list[tuple[str, str]] = []
        seen: dict[tuple[str, str], int] = {}
        at = 0
        for piece in pieces:
            size = len(piece.columns["fault"])
            for row in np.flatnonzero(piece.columns["fault"]).tolist():
                fault = piece.faults[piece.columns["fault"][row] - 1]
                if len(faults) >= LISTED:
                    fault = (fault[0], "")
                    if fault not in seen:
                        seen[fault] = len(faults)
                        faults.append(fault)
                    columns["fault"][at + row] = seen[fault] + 1
                    continue
                faults.append(fault)
                columns["fault"][at + row] = len(faults)
            at += size
        return Looked(columns, faults)

    def _pieces(self, examples: Sequence[Example], parts: list[tuple[int, int]]) -> Iterator[Looked]:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        mapped = isinstance(examples, ExampleTable) and examples.path is not None
        if len(examples) >= SHARED_FROM and workers > 1 and mapped and sys.executable:
            try:
                with helping(_Share(self, examples), workers) as share:
                    yield from share(parts)
                return
            except NotTaken as reason:  # of the first part: nothing was yielded yet
                log.warning("rows are checked in one process: the tokenizer cannot be given to others (%s)", reason)
        yield from (self.see(list(examples[start:stop])) for start, stop in parts)

    def see(self, examples: Sequence[Example]) -> Looked:
        """Encode and check examples, in this process.

        Args:
            examples: some of a split.

        Returns:
            What was seen.
        """
        columns = {name: np.zeros(len(examples), dtype=np.int32) for name in COLUMNS}
        faults: list[tuple[str, str]] = []
        for at, example in enumerate(examples):
            try:
                row = encode(example, self.tokenizer, self.max_length, self.encoding)
            except BadRow as fault:
                faults.append((fault.reason, fault.detail))
                columns["fault"][at] = len(faults)
                continue
            loss = len(row.labels) - row.labels.count(IGNORE)
            # The first token of a row is predicted by nothing.
            answered = loss > int(bool(row.labels) and row.labels[0] != IGNORE)
            values = (row.length, len(row.input_ids), row.said, loss, row.turns, row.trained, row.parted, answered)
            for name, value in zip(COLUMNS, values, strict=False):
                columns[name][at] = value
        return Looked(columns, faults)


@dataclass(frozen=True)
class _Share:
    """What a helping process looks through, and at."""

    glass: Glass
    examples: Sequence[Example]

    def __call__(self, part: tuple[int, int]) -> Looked:
        return self.glass.see(list(self.examples[part[0] : part[1]]))


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of all that decides which ids a text becomes.

    Args:
        tokenizer: the model's tokenizer.

    Returns:
        Hexadecimal digits.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    parts = [whole, json.dumps(tokenizer.chat_template), str(tokenizer.special_tokens_map), type(tokenizer).__name__]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
