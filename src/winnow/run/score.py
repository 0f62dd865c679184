"""One scoring of a stream from its configuration (conf/score.yaml), to a file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from winnow.data import Corpus, Example, SelectionDataModule, collate
from winnow.data.batch import describe, pad_token_id
from winnow.data.weight import weights_of
from winnow.lm.batch import TargetBatch
from winnow.lm.layout import response_tokens
from winnow.offline.checkpoints import Checkpoint, read_checkpoints, warm_up
from winnow.offline.columns import columns
from winnow.offline.stream import score_stream, stream_needs
from winnow.records.preparation import Cost, beside, check_file, write_scores
from winnow.records.provenance import anonymous, provenance
from winnow.records.shown import shown
from winnow.run.assemble import Experiment, assemble, check
from winnow.run.instantiate import BuildError, blaming, build, plain
from winnow.run.process import left_as_found
from winnow.run.rows import corpus_of, rejects_written, settle_date
from winnow.run.stages import check_plain
from winnow.run.startup import check_start
from winnow.signals import Needs, Signals
from winnow.training.precision import check_precision

log = logging.getLogger(__name__)

LINES = 10
"""How often a scoring says how far it is."""


def run(cfg: DictConfig) -> Path:
    """Score one stream and write its scores and the JSON beside them.

    Args:
        cfg: the composed configuration (conf/score.yaml).

    Returns:
        The file of scores.

    Raises:
        BuildError: the configuration asks for something that cannot be built, or for a file that is there.
    """
    started = perf_counter()
    with left_as_found(), blaming(""):
        check(cfg)
        _check(cfg)
        check_start(plain(cfg))
        check_precision(cfg.trainer.get("precision"))
        file = Path(cfg.file).expanduser()
        check_file(file, cfg.overwrite)
        lightning.seed_everything(cfg.seed, workers=True, verbose=False)
        settle_date(cfg)
        with rejects_written(file.with_name(f"{file.stem}.rejects.jsonl")) as rejects:
            corpus = corpus_of(cfg)
            table, costs, facts = WAYS[cfg.method](cfg, corpus)
            rejects.append(corpus.rejects)
        name = str(cfg.name) if cfg.method == "selector" else str(cfg.method)
    # Loading and the target count too: without them there would be no scores.
    spent = perf_counter() - started
    costs[-1] = Cost(costs[-1].what, costs[-1].examples, costs[-1].tokens, spent)
    facts = {"name": name, "seed": cfg.seed, "candidates": len(table), **facts}
    write_scores(file, table, {**facts, "config": anonymous(plain(cfg)), "provenance": anonymous(provenance())}, costs)
    _say(file, table, costs, facts)
    return file


def _check(cfg: DictConfig) -> None:
    if cfg.method not in WAYS:
        raise ValueError(f"method must be one of {', '.join(WAYS)}; got {cfg.method!r}")
    check_plain(cfg)
    if cfg.data.get("packing"):
        raise ValueError("data.packing joins documents into rows, which have no score of their own: set it to false")
    if cfg.data.get("subset") is not None:
        raise ValueError(f"data.subset={cfg.data.subset}: a stream is scored whole; set data.subset=null")


def _by_texts(cfg: DictConfig, corpus: Corpus) -> tuple[pd.DataFrame, list[Cost], dict[str, Any]]:
    scorer = build(cfg.ngrams)
    examples = [corpus.stream[position] for position in range(_count(cfg, corpus))]
    targets = [(one.weight, [_text(example) for example in _some(cfg, one.val)]) for one in corpus.targets]
    scores, weights = scorer.scores([_text(example) for example in examples], targets)
    table = pd.DataFrame({**_who(examples), "valid": np.isfinite(weights), "log_weight": weights, "score": scores})
    costs = [Cost("n-grams of stream and target (no model)", 0, 0, 0.0)]
    return table, costs, {"target_examples": sum(len(texts) for _, texts in targets)}


def _by_chance(cfg: DictConfig, corpus: Corpus) -> tuple[pd.DataFrame, list[Cost], dict[str, Any]]:
    examples = [corpus.stream[position] for position in range(_count(cfg, corpus))]
    drawn = np.random.default_rng(cfg.seed).random(len(examples))
    return pd.DataFrame({**_who(examples), "score": drawn}), [Cost("random numbers", 0, 0, 0.0)], {}


@dataclass
class Stream:
    """A stream's candidates, read and tokenised, as pools.

    Args:
        cfg: the configuration.
        data: gives the tokenizer and the size of pools.
        device: where the pools go.
    """

    cfg: DictConfig
    data: SelectionDataModule
    device: torch.device

    def __post_init__(self) -> None:
        stream = self.data.corpus.stream
        self.examples = [stream[position] for position in range(_count(self.cfg, self.data.corpus))]
        self.rows = [self.data.steps.encoded(example) for example in self.examples]

    def pools(self) -> Iterator[tuple[dict[str, Tensor], Mapping[str, Sequence[str]]]]:
        """From the beginning, saying now and then how far it is.

        Yields:
            Token batches and their facts.
        """
        size, said, whole = int(self.data.steps.pool_size), 0, len(self.rows)
        for start in range(0, whole, size):
            examples = self.examples[start : start + size]
            batch = collate(self.rows[start : start + size], pad_token_id(self.data.tokenizer)) | weights_of(examples)
            batch = {name: value.to(self.device) for name, value in batch.items()}
            yield batch, describe(examples)
            if LINES * (start + size) // whole > said:
                said = LINES * (start + size) // whole
                log.info("%s: %d of %d candidates", self.cfg.name, min(start + size, whole), whole)


def _by_selector(cfg: DictConfig, corpus: Corpus) -> tuple[pd.DataFrame, list[Cost], dict[str, Any]]:
    experiment = assemble(
        cfg,
        corpus,
        trainer={
            "logger": False,
            "callbacks": [],
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "default_root_dir": str(cfg.out),
        },
        scorer={"every": None, "target_ema": 0.0, "update": "two_pass"},
        trains=False,
    )
    data, module = experiment.data, experiment.module
    checkpoints, needs = read_checkpoints(cfg.ckpt_path), stream_needs(module.selector.needs)
    if needs.backward and not checkpoints and cfg.scoring.first_step == "pool" and cfg.scoring.geometry == "auto":
        raise ValueError(
            "scoring.first_step=pool takes P from every pool anew, and scores of different pools could not be "
            "compared: set scoring.first_step=identity, or ckpt_path= to a checkpoint with an optimizer state"
        )
    stream = Stream(cfg, data, experiment.trainer.strategy.root_device)
    target = _target(cfg, data, stream.device) if needs.target else None
    found = _scored(cfg, experiment, stream, needs, target, checkpoints)
    names = [one.name for one in data.corpus.targets]
    values = columns(found, module.selector, names, module.scorer.reduction)
    table = pd.DataFrame({**_who(stream.examples), **values})
    if "score" not in table:
        log.warning(
            "%s chooses sets and ranks no single candidate: the file has no column score; rank by another one with "
            "data.subset_by",
            cfg.name,
        )
    size = 0 if target is None else len(target.share)
    passes = len(found) * (len(names) if cfg.projection is not None else 1)
    tokens = int(found[0][1].tokens.sum())
    own = 0 if target is None else int(response_tokens(target.tokens).sum())
    examples, spent = len(table) * passes + size * len(found), tokens * passes + own * len(found)
    facts = {
        "tokens": tokens,
        "excluded": int((~found[-1][1].valid).sum()),
        "truncated": sum(row.truncated for row in stream.rows),
        "target_examples": size,
        "checkpoints": [one.facts() for one in checkpoints],
        "projection": cfg.projection,
    }
    return table, [*warm_up(checkpoints), Cost("scoring", examples, spent, 0.0)], facts


def _scored(
    cfg: DictConfig,
    experiment: Experiment,
    stream: Stream,
    needs: Needs,
    target: TargetBatch | None,
    checkpoints: Sequence[Checkpoint],
) -> list[tuple[float, Signals]]:
    """Signals of the stream at every checkpoint, and that checkpoint's share of the learning rates."""
    module, optimizer = experiment.module, experiment.optimizer
    found: list[tuple[float, Signals]] = []
    states: list[Checkpoint | None] = [*checkpoints] or [None]
    for checkpoint in states:
        if checkpoint is not None:
            checkpoint.load(module, optimizer)
        with experiment.trainer.precision_plugin.train_step_context():
            signals = score_stream(
                module.scorer,
                stream.pools,
                needs,
                target,
                projection=cfg.projection,
                projection_seed=cfg.seed,
                micro_batch=int(stream.data.steps.pool_size),
            )
        found.append((1.0 if checkpoint is None else checkpoint.rate, signals))
    total = sum(rate for rate, _ in found)
    return [(rate / total, signals) for rate, signals in found]


def _target(cfg: DictConfig, data: SelectionDataModule, device: torch.device) -> TargetBatch:
    """All target examples as one batch, with weights that give every task its share."""
    rows, weight, task = [], [], []
    targets = data.corpus.targets
    if not targets:
        raise ValueError(f"selector={cfg.name} needs a target task, and data.corpus has none")
    whole = sum(one.weight for one in targets)
    for number, one in enumerate(targets):
        val = _some(cfg, one.val)
        rows += [data.steps.encoded(example) for example in val]
        weight += [one.weight / whole / len(val)] * len(val)
        task += [number] * len(val)
    batch = {name: value.to(device) for name, value in collate(rows, pad_token_id(data.tokenizer)).items()}
    shares = torch.tensor(weight, dtype=torch.float64, device=device)
    return TargetBatch.of(batch, shares, torch.tensor(task, device=device))


def _some(cfg: DictConfig, val: Sequence[Example]) -> list[Example]:
    limit = cfg.target_examples
    if limit is not None and limit < 1:
        raise ValueError(f"target_examples must be at least 1, or null for all; got {limit}")
    return list(val)[:limit]


def _count(cfg: DictConfig, corpus: Corpus) -> int:
    """How many candidates are scored: from the beginning of the stream."""
    size, asked = corpus.stream.size, cfg.candidates
    if asked is None:
        asked = size
    if asked is None and int(cfg.trainer.max_steps) > 0:
        asked = int(cfg.trainer.max_steps) * int(cfg.data.pool_size)
    if asked is None:
        raise ValueError("the stream is endless: say with candidates= how many of it to score")
    if asked < 1 or (size is not None and asked > size):
        raise ValueError(f"candidates must be from 1 to the stream's {size or 'any'}; got {asked}")
    return int(asked)


def _who(examples: Sequence[Example]) -> dict[str, list[Any]]:
    ids = [example.id for example in examples]
    twice = len(ids) - len(set(ids))
    if twice:
        raise BuildError(f"{twice} of the stream's {len(ids)} ids occur more than once: scores go by id")
    return {"id": ids, "position": list(range(len(ids))), "source": [example.source for example in examples]}


def _text(example: Example) -> str:
    return f"{example.prompt}\n{example.response}" if example.prompt else example.response


def _say(file: Path, table: pd.DataFrame, costs: Sequence[Cost], facts: Mapping[str, Any]) -> None:
    console = Console()
    columns = ", ".join(str(name) for name in table.columns)
    lines = [f"{facts['name']}: {len(table):,} candidates scored; columns {columns}"]
    if facts.get("excluded"):
        lines.append(f"{facts['excluded']:,} of them have no response token or no finite loss, and no score")
    if facts.get("truncated"):
        lines.append(f"{facts['truncated']:,} of them were cut to max_length")
    lines += [
        f"{one.what}: {one.examples:,} examples, {one.tokens:,} response tokens, {one.seconds:.1f} s" for one in costs
    ]
    lines += [f"Scores in {file}", f"What they cost in {beside(file)}"]
    console.print(*map(shown, lines), sep="\n", soft_wrap=True, highlight=False, markup=False)


WAYS = {"selector": _by_selector, "ngrams": _by_texts, "random": _by_chance}
