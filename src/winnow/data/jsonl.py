"""Streams and targets from files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.data.example import Corpus, Score
from winnow.data.fields import Row
from winnow.data.files import expand, read_records
from winnow.data.rejects import BadRow
from winnow.data.rows import Fault, Source, TargetRows, build_corpus, options


@dataclass(frozen=True)
class TargetFiles:
    """A target task in files.

    Args:
        val: file, folder or pattern, or a list of these, that the target batches are drawn from.
        test: likewise, looked at before and after training only.
        score: generation and example to a score in [0, 1], a name of ``winnow.data.scorers``, or ``auto`` to
            go by the references; None measures the NLL alone.
        weight: share in the target gradient, relative to the other targets.
        max_new_tokens: length allowed to a generation.
        fields: how its records are read, where that differs from the stream's.
    """

    val: str | Sequence[str]
    test: str | Sequence[str]
    score: Score | str | None = None
    weight: float = 1.0
    max_new_tokens: int = 128
    fields: Mapping[str, str | None] | None = None


def jsonl_corpus(
    stream: str | Sequence[str],
    targets: Mapping[str, TargetFiles | Mapping[str, Any] | None],
    fields: Mapping[str, str | None] | None = None,
    on_overlap: str = "error",
    limit: int | None = None,
    on_bad_row: str = "error",
    cache_dir: str | None = None,
) -> Corpus:
    """A corpus from files: JSON lines, a JSON array, CSV, Parquet or Arrow, compressed or not.

    Rows are prompt and response, chats (``messages``, ShareGPT), alpaca's instruction and output, or plain text; see
    :mod:`winnow.data.shapes`. A record may also have ``id`` (unique; file name and line otherwise), ``source``,
    ``answer`` (or ``meta.answer``), ``weight`` (0 or more), ``tools``, and the hidden labels ``group`` and ``noise``.
    A record with an empty response is left out and counted; one with an empty prompt is plain text.

    Args:
        stream: file, folder or pattern of candidates, or a list of these; relative to the folder the program was
            started in.
        targets: the targets by name, or the arguments of ``TargetFiles`` by name; None leaves one out.
        fields: other names for the fields, or templates over them: arguments of ``winnow.data.fields.Fields``.
        on_overlap: ``error``, or ``drop`` to leave out what stands both in the stream and in a target.
        limit: most examples of the stream; None for all.
        on_bad_row: ``error``, or ``drop`` to leave rows out that cannot be used, and count them.
        cache_dir: where what was read of large files is kept; None keeps it in memory.

    Returns:
        The corpus; its stream is finite.

    Raises:
        ValueError: a file, line or field is at fault, or the splits overlap; names it and the fix.
    """
    rows = {}
    for name, given in targets.items():
        if given is None:
            continue
        key = f"data.corpus.targets.{name}"
        target = options(TargetFiles, given, key)
        rows[name] = TargetRows(
            files_source(target.val, f"{key}.val"),
            files_source(target.test, f"{key}.test"),
            target.score,
            target.weight,
            target.max_new_tokens,
            target.fields,
        )
    source = files_source(stream, "data.corpus.stream")
    return build_corpus(source, rows, fields, on_overlap, limit, on_bad_row, cache_dir)


def files_source(paths: str | Sequence[str], key: str) -> Source:
    """The rows of files.

    Args:
        paths: file, folder or pattern, or a list of these.
        key: the config key, for messages.

    Returns:
        Where its rows come from.

    Raises:
        FileNotFoundError: there is no such file.
    """
    files = expand(paths, key)
    size = sum(Path(file).stat().st_size for file in files)
    return Source(lambda: _rows(files), size, lambda: _fingerprint(files))


def _rows(files: Sequence[str]) -> Iterator[Row | Fault]:
    stems = Counter(_stem(path) for path in files)
    for position, path in enumerate(files):
        stem = _stem(path)
        name = stem if stems[stem] == 1 else f"{stem}~{position}"
        for record in read_records(path):
            if record.fields is None:
                yield Fault(record.where, record.fault or BadRow("no row"))
            else:
                yield Row(record.fields, record.where, f"{name}:{record.number}", stem)


def _fingerprint(files: Sequence[str]) -> str:
    """Of names and contents."""
    found = hashlib.blake2b(digest_size=16)
    for path in files:
        with open(path, "rb") as file:
            found.update(f"{path}\n".encode())
            found.update(hashlib.file_digest(file, "blake2b").digest())
    return found.hexdigest()


def _stem(path: str) -> str:
    """File name without its endings."""
    return Path(path).name.split(".")[0]
