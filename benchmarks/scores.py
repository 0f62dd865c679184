"""python -m benchmarks.scores [--json FILE]: what cheaper scores cost, and how far their order is from the exact one.

The embedded model is trained on random candidates of the embedded tasks. Along the way pools are scored exactly and in
every cheaper way at the same parameters and optimizer state, and the candidates' cosines with the target are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from scipy.stats import spearmanr

from benchmarks.measure import machine
from winnow.data import SelectionDataModule
from winnow.gates.labels import label_needs, labels_of
from winnow.models.loading import load
from winnow.run.cli import _name_root
from winnow.run.instantiate import build
from winnow.run.rows import corpus_of, datamodule
from winnow.scorer import Scorer
from winnow.selection import Selection
from winnow.signals import Needs
from winnow.training.cheaper import Cheaper, proxy_scorer

ROOT = Path(__file__).parents[1]
KEPT = 4
NOTHING = Selection(torch.tensor([], dtype=torch.long), torch.tensor([]))


@dataclass(frozen=True)
class Way:
    """One way of scoring.

    Args:
        name: in the table.
        scoring: options of the scorer.
        cheaper: options of :class:`winnow.training.cheaper.Cheaper`.
        proxy: whether a copy of the model as it was before training scores.
    """

    name: str
    scoring: dict[str, Any] = field(default_factory=dict)
    cheaper: dict[str, Any] = field(default_factory=dict)
    proxy: bool = False


WAYS = (
    Way("exact"),
    Way("scoring.layers=last:2", {"layers": "last:2"}),
    Way("scoring.layers=last:1", {"layers": "last:1"}),
    Way("scoring.max_tokens=48", cheaper={"max_tokens": 48}),
    Way("scoring.max_tokens=24", cheaper={"max_tokens": 24}),
    Way("scoring.layers=last:2 scoring.max_tokens=48", {"layers": "last:2"}, {"max_tokens": 48}),
    Way("scoring.every=4", {"every": 4}),
    Way("scoring.target_ema=0.9", {"target_ema": 0.9}),
    Way("scoring.mode=sketch scoring.sketch_dim=64", {"mode": "sketch"}),
    Way("scoring.mode=sketch scoring.sketch_dim=16", {"mode": "sketch", "sketch_dim": 16}),
    Way("scoring.precision=bf16", cheaper={"precision": "bf16"}),
    Way("scoring.proxy: itself before training", proxy=True),
)


@dataclass
class Found:
    """What one way gave over the pools: rank correlations, shares of the best kept in common, operations, seconds."""

    rank: list[float] = field(default_factory=list)
    common: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def configured(seed: int) -> DictConfig:
    """The default configuration.

    Args:
        seed: of the stream.

    Returns:
        As the command line composes it.
    """
    _name_root(ROOT / "conf")
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return hydra.compose("train", [f"seed={seed}", "name=scores", "out=outputs/scores", "logger=none"])


def measured(seed: int, steps: int, every: int) -> dict[str, Found]:
    """Train on random candidates and score now and then.

    Args:
        seed: of stream and candidates.
        steps: updates.
        every: updates between two pools that are scored in every way.

    Returns:
        By name of the way.
    """
    cfg = configured(seed)
    language = build(cfg.model)
    model: Any = language.model
    data: SelectionDataModule = datamodule(cfg, corpus_of(cfg), language.tokenizer)
    optimizer = build(cfg.optimizer)([held for held in model.parameters() if held.requires_grad])
    needs, found = label_needs("cosine", Needs(gram=1, alignment=1)), {way.name: Found() for way in WAYS}
    before = load(str(cfg.model.path)).model if "path" in cfg.model else build(cfg.model).model
    scorers = {way.name: Scorer(model, optimizer, verify=False, **way.scoring) for way in WAYS}
    cheaper = {
        way.name: Cheaper(**way.cheaper, proxy=proxy_scorer(model, before, verify=False) if way.proxy else None)
        for way in WAYS
    }
    generator = torch.Generator().manual_seed(seed)
    for step, batch in _batches(data, steps):
        pool, target = batch["pool"], batch["target"]
        if step and step % every == 0:
            _compare(pool, target, needs, scorers, cheaper, found)
        index = torch.randperm(len(pool["labels"]), generator=generator)[:KEPT].sort().values
        scorers["exact"].forget()
        scorers["exact"].backward(pool, Selection(index, torch.ones(KEPT)))
        optimizer.step()
        optimizer.zero_grad()
    return found


def _batches(data: SelectionDataModule, steps: int) -> Iterator[tuple[int, dict[str, Any]]]:
    for step in range(steps):
        yield step, data.steps[(0, step)]


def _compare(
    pool: Any,
    target: Any,
    needs: Needs,
    scorers: dict[str, Scorer],
    cheaper: dict[str, Cheaper],
    found: dict[str, Found],
) -> None:
    exact: torch.Tensor | None = None
    for name, scorer in scorers.items():
        meters = [one.meter for one in cheaper[name].scorers(scorer)]
        for meter in meters:
            meter.take(False)
        started = perf_counter()
        signals = cheaper[name].score(scorer, pool, target, needs, target["weight"], target["task"], {})
        found[name].seconds.append(perf_counter() - started)
        found[name].flops.append(sum(meter.take(False)[0].total for meter in meters))
        labels = labels_of("cosine", signals, NOTHING)
        exact = labels if exact is None else exact
        usable = exact.isfinite() & labels.isfinite()
        found[name].rank.append(float(spearmanr(labels[usable], exact[usable]).statistic))
        best = [set(one.nan_to_num(-2).topk(KEPT).indices.tolist()) for one in (labels, exact)]
        found[name].common.append(len(best[0] & best[1]) / KEPT)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scores", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs = [measured(seed, options.steps, options.every) for seed in range(options.seeds)]
    print(" · ".join(f"{name} {value}" for name, value in machine(torch.device("cpu")).items()))
    print(f"{'':44}{'rank':>7}{'lowest':>8}{'best 4':>8}{'FLOPs':>7}{'time':>7}")
    report = {}
    for way in WAYS:
        rank, common, flops, seconds = (
            [value for run in runs for value in getattr(run[way.name], part)]
            for part in ("rank", "common", "flops", "seconds")
        )
        exact = [run["exact"] for run in runs]
        price = sum(flops) / sum(value for one in exact for value in one.flops)
        time = sum(seconds) / sum(value for one in exact for value in one.seconds)
        report[way.name] = {"rank": rank, "best_in_common": common, "flops": price, "seconds": time}
        print(
            f"{way.name:44}{statistics.mean(rank):7.2f}{min(rank):8.2f}{statistics.mean(common):8.2f}{price:7.2f}{time:7.2f}"
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
