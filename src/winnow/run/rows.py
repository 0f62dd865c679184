"""The rows of a run: its corpus and pools, what carries loss, which day it is, what becomes of bad ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

from winnow.data import Corpus, SelectionDataModule
from winnow.data.encode import Encoding
from winnow.data.rejects import BadRows, Rejects
from winnow.data.subset import restricted
from winnow.gates import Gate
from winnow.run.instantiate import blaming, build, check_numbers, plain
from winnow.run.stages import raw_of

log = logging.getLogger(__name__)

REJECTS = "rejects.jsonl"
"""File of a run's folder that lists rows which were not used."""


def encoding_of(options: MutableMapping[str, Any]) -> Encoding:
    """How examples become tokens.

    Args:
        options: the ``data`` node; what says so is taken out of it.

    Returns:
        The encoding.

    Raises:
        ValueError: an option is unknown, or the date is none.
    """
    options.pop("on_bad_row", None)
    if not isinstance(options.get("join_turns", False), bool):
        raise ValueError(f"data.join_turns must be true or false, got {options['join_turns']!r}")
    names = [field.name for field in fields(Encoding)]
    made = Encoding(**{name: options.pop(name) for name in names if name in options})
    if made.date is not None:
        try:
            datetime.fromisoformat(made.date)
        except (TypeError, ValueError):
            raise ValueError(f"data.date must be a day such as 2026-11-26, or null; got {made.date!r}") from None
    return made


def corpus_of(cfg: DictConfig) -> Corpus:
    """Stream and targets, with what was left out of them in the log.

    Args:
        cfg: the composed configuration.

    Returns:
        What ``data.corpus`` builds.

    Raises:
        ValueError: ``data.cache_dir`` is no text.
    """
    if not isinstance(cfg.data.get("cache_dir"), str | None):
        raise ValueError(f"data.cache_dir must be a folder, or null, got {cfg.data.cache_dir!r}")
    corpus: Corpus = build(cfg.data.corpus)
    for reason, count in corpus.report.items():
        log.warning("data: %d examples left out: %s", count, reason)
    return corpus


def datamodule(
    cfg: DictConfig, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, gate: Gate | None = None
) -> SelectionDataModule:
    """The stream, or the part of it that was chosen before, and the targets, as pools.

    Args:
        cfg: the composed configuration.
        corpus: what ``data.corpus`` builds.
        tokenizer: the model's.
        gate: chooses among more candidates than a pool has.

    Returns:
        The datamodule of a run.
    """
    options = {name: value for name, value in plain(cfg.data).items() if name not in ("corpus", "draw_size")}
    with blaming("data"):
        for accepts in (SelectionDataModule, restricted):
            check_numbers(accepts, options, "data")
        subset = {key: options.pop(key) for key in [*options] if key.startswith("subset")}
        encoding = encoding_of(options)
        raw, part = raw_of(cfg, gate), restricted(corpus, **subset)
        return SelectionDataModule(part, tokenizer, seed=cfg.seed, raw=raw, encoding=encoding, **options)


def settle_date(cfg: DictConfig, *folders: Path) -> None:
    """Give a run the day it began on, so that a chat template which writes the date writes the same one ever after.

    Args:
        cfg: the composed configuration; ``data.date`` is set where it is null.
        *folders: of runs that go on: the first that has records gives the date.

    Raises:
        ValueError: what is recorded there is no day.
    """
    if cfg.data.get("date", ...) is not None:  # a data configuration of the user's own may have no such key
        if not isinstance(cfg.data.get("date", ""), str):
            cfg.data.date = str(cfg.data.date)
        return
    for folder in folders:
        if (folder / "config.json").is_file():
            try:
                recorded = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            except ValueError:
                continue
            cfg.data.date = _day((recorded.get("data") or {}).get("date"), folder)
            return
    cfg.data.date = datetime.now(UTC).astimezone().date().isoformat()


def _day(recorded: Any, folder: Path) -> str | None:
    """A date of a run's records, which may be somebody else's: text would be read as Hydra's interpolation."""
    try:
        if recorded is not None:
            datetime.fromisoformat(recorded)
    except (TypeError, ValueError):
        raise ValueError(
            f"{folder / 'config.json'}: data.date is {recorded!r:.60}, no day such as 2026-11-26: set data.date"
        ) from None
    return None if recorded is None else str(recorded)


@contextmanager
def rejects_written(path: Path) -> Iterator[list[Rejects]]:
    """Write the rows that were not used to a file, whether they end the run or not.

    Args:
        path: the file.

    Yields:
        A list to put rejects into once there are some.

    Raises:
        Exception: as the block raises it; bad rows may be the cause of what names the key that was being built.
    """
    found: list[Rejects] = []
    try:
        yield found
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, BadRows):
            cause = cause.__cause__
        if cause is not None:
            cause.rejects.write(path)
        raise
    for rejects in found:
        rejects.write(path)
