"""Streams and targets from JSON-lines files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.data.example import Corpus, Score
from winnow.data.fields import Row
from winnow.data.files import read_json_lines
from winnow.data.rows import TargetRows, build_corpus, options


@dataclass(frozen=True)
class TargetFiles:
    """A target task in files.

    Args:
        val: file or files the target batches are drawn from.
        test: file or files looked at before and after training only.
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
) -> Corpus:
    """A corpus from JSON-lines files of ``{prompt, response}`` or ``{messages: [{role, content}, ...]}``.

    A record may also have ``id`` (unique; file name and line otherwise), ``source``, ``answer`` (or
    ``meta.answer``), and the hidden labels ``group`` and ``noise``. A record with an empty response is
    left out and counted; one with an empty prompt is plain text.

    Args:
        stream: file or files of candidates; relative to the folder the program was started in.
        targets: the targets by name, or the arguments of ``TargetFiles`` by name; None leaves one out.
        fields: other names for the fields, or templates over them: arguments of ``winnow.data.fields.Fields``.
        on_overlap: ``error``, or ``drop`` to leave out what stands both in the stream and in a target.
        limit: most examples of the stream; None for all.

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
            _rows(target.val, f"{key}.val"),
            _rows(target.test, f"{key}.test"),
            target.score,
            target.weight,
            target.max_new_tokens,
            target.fields,
        )
    return build_corpus(_rows(stream, "data.corpus.stream"), rows, fields, on_overlap, limit)


def _rows(paths: str | Sequence[str], key: str) -> Iterator[Row]:
    """Records of one or several files."""
    listed = [paths] if isinstance(paths, str) else list(paths)
    stems = Counter(_stem(path) for path in listed)
    for position, path in enumerate(listed):
        stem = _stem(path)
        name = stem if stems[stem] == 1 else f"{stem}~{position}"
        for number, fields in read_json_lines(path, key):
            yield Row(fields, f"{path}, line {number}", f"{name}:{number}", stem)


def _stem(path: str) -> str:
    """File name without its endings."""
    return Path(path).name.split(".")[0]
