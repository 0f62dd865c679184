"""From a configuration to the objects of a run."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from winnow.callbacks import AtomicCheckpointIO, LastCheckpoint, Records
from winnow.data import Corpus, SelectionDataModule
from winnow.data.groups import groups
from winnow.gates import Gate
from winnow.lm.shards import in_rows
from winnow.models import LanguageModel
from winnow.parallel import Ranks
from winnow.parallel.base import shard_model
from winnow.records.checkpoint import check_fits, read_checkpoint
from winnow.records.folder import changes
from winnow.records.preparation import preparation
from winnow.records.provenance import anonymous
from winnow.records.table import TABLES
from winnow.run.group import Group
from winnow.run.instantiate import BuildError, build, build_all, check_numbers, plain
from winnow.run.language import language_of
from winnow.run.loading import in_turn
from winnow.run.processes import devices, pooled, unwritten
from winnow.run.rows import corpus_of, datamodule
from winnow.run.stages import gate_of, intake_of, limits_of, schedule_of, scorer_options, shared
from winnow.run.startup import check_callbacks, check_start
from winnow.run.tracked import begin, choices_of_groups, logger_of
from winnow.run.trainer_options import check_intervals
from winnow.selectors.abilities import Labelled, Recorded, Sized
from winnow.selectors.base import Selector, check_filter_size
from winnow.training.module import SelectionModule
from winnow.training.precision import check_precision
from winnow.training.stopping import Stop
from winnow.training.together import Together

log = logging.getLogger(__name__)

Loaded = tuple[LanguageModel, nn.Module, Gate | None]


@dataclass(frozen=True)
class Experiment:
    """What training and scoring are made of alike.

    Args:
        language: model and tokenizer.
        data: the stream and the targets, as pools.
        module: scores, selects and updates.
        trainer: gives precision and device.
        optimizer: of the module as it was prepared; a fit builds another.
    """

    language: LanguageModel
    data: SelectionDataModule
    module: SelectionModule
    trainer: lightning.Trainer
    optimizer: torch.optim.Optimizer


@dataclass
class Parts:
    """What a run holds open; filled in one after the other, so that a failure closes what there is."""

    experiment: Experiment = field(init=False)
    group: Group | None = None
    records: Records | None = None
    logger: Logger | None = None
    preparation: dict[str, Any] | None = None
    stop: Stop = field(default_factory=Stop)
    started: float = field(default_factory=perf_counter)


def check(cfg: DictConfig) -> None:
    """Refuse what no component could see: values that were not given, and contradicting choices.

    Args:
        cfg: the composed configuration.

    Raises:
        ValueError: a key without a default has no value, ``baseline=`` names one method and ``selector=``
            another, or ``selector._target_=`` gives a class beside either.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ValueError("no value for " + ", ".join(missing) + ": give " + " ".join(f"{key}=..." for key in missing))
    if cfg.get("resume") not in (None, "auto"):
        raise ValueError(f"resume must be auto or null, got {cfg.resume!r}; a checkpoint is named by ckpt_path=FILE")
    if cfg.get("resume_method", "same") not in ("same", "any"):  # scoring has no such key
        raise ValueError(f"resume_method must be same or any, got {cfg.resume_method!r}")
    chosen = choices_of_groups()
    baseline, selector = chosen.get("baseline"), chosen.get("selector")
    if baseline and selector != baseline:
        raise ValueError(
            f"baseline={baseline} and selector={selector} contradict each other: give one of them "
            f"(selector={baseline} is what baseline={baseline} sets)"
        )
    if selector not in (None, "custom") and any(line.lstrip("+").startswith("selector._target_=") for line in given()):
        raise ValueError(
            f"selector._target_={cfg.selector._target_} and {'baseline' if baseline else 'selector'}={selector} "
            f"contradict each other: leave out the latter, and give your class its arguments with "
            "+selector.<argument>=<value>"
        )


def assemble(
    cfg: DictConfig,
    corpus: Corpus | None = None,
    *,
    trainer: Mapping[str, Any],
    scorer: Mapping[str, Any] | None = None,
    trains: bool = True,
    group: Group | None = None,
) -> Experiment:
    """Build model, data, selector, module and trainer, and refuse here whatever would be refused later.

    Args:
        cfg: the composed configuration.
        corpus: stream and targets, where they are built already.
        trainer: arguments of the trainer beside the configuration's.
        scorer: arguments of the scorer in place of the configuration's.
        trains: False leaves out what only training needs, and puts the model where the trainer would.
        group: the processes that share every pool; None for one.

    Returns:
        The experiment, prepared as a fit would.
    """
    built, ranks = build(cfg.trainer, **trainer), None if group is None else group.ranks
    split = group is not None and cfg.parallel.base == "sharded"
    load = partial(_load, cfg, trains, built, ranks if split else None)
    language, model, gate = in_turn(group, load) if group is not None and split else load()
    corpus = corpus_of(cfg) if corpus is None else corpus
    data = datamodule(cfg, corpus, language.tokenizer, gate)
    more: dict[str, Any] = {}
    selector = build(cfg.selector)
    if trains:
        _check_selector(cfg, selector, data)
        names = ("clip_norm", "max_idle_steps", "pools_per_update", "record_tasks")
        limits = limits_of(cfg)
        more = {"scheduler": schedule_of(cfg, data.steps.steps, limits), **{name: cfg[name] for name in names}}
        more |= {"intake": intake_of(cfg, gate, language, ranks), "limits": limits}
    model = model if split else built.precision_plugin.convert_module(model)
    if not trains:
        model = model.to(built.strategy.root_device)
    module = SelectionModule(
        model,
        selector=pooled(cfg, selector, data.steps.pool_size, ranks),
        scorer=partial(build(scorer_options(cfg, ranks)), **(scorer or {}), **shared(cfg, ranks)),
        optimizer=build(cfg.optimizer),
        seed=cfg.seed,
        **more,
    )
    module.together = Together(ranks, any(in_rows(one) for one in model.parameters() if one.requires_grad))
    return Experiment(language, data, module, built, module.prepare(built))


def _load(cfg: DictConfig, trains: bool, built: lightning.Trainer, ranks: Ranks | None) -> Loaded:
    """Model and tokenizer, the model that is trained, and the gate, which reads the whole of its embeddings."""
    language = language_of(cfg)
    model: nn.Module = language.model
    gate = gate_of(cfg, language) if trains else None
    if ranks is not None:
        # Lightning would do so after a checkpoint is loaded, which float32 in between would round.
        model = built.precision_plugin.convert_module(model)
        # Of all processes the mesh makes no group, and neither does splitting wait for another process.
        shard_model(model, init_device_mesh(built.strategy.root_device.type, (ranks.size,)), ranks)
    return language, model, gate


def equip(cfg: DictConfig, folder: Path, parts: Parts) -> None:
    """Assemble a training run and open what records it.

    Args:
        cfg: the composed configuration.
        folder: the run's folder.
        parts: takes what there is.
    """
    check(cfg)
    check_numbers(SelectionModule, cfg)
    check_start(plain(cfg))
    check_precision(cfg.trainer.get("precision"))
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    parts.preparation = preparation(prepared_by(cfg))
    first = parts.group is None or parts.group.place.rank == 0
    callbacks = build_all(cfg.get("callbacks") if first else unwritten(cfg.get("callbacks")))
    if first and cfg.get("resume") == "auto" and callbacks.get("last") is None:
        log.warning("resume=auto and callbacks.last=null: nothing is saved, so a run that is stopped begins afresh")
    logger = logger_of(cfg) if first else None
    parts.experiment = assemble(
        cfg,
        trainer={
            # What a run goes on from is saved when all others have taken in the measurement before it.
            "callbacks": sorted(callbacks.values(), key=lambda one: isinstance(one, LastCheckpoint)),
            "logger": logger or False,
            "plugins": [AtomicCheckpointIO(), LightningEnvironment()],  # Slurm's would requeue by itself, midway
            **devices(cfg.trainer, None if parts.group is None else parts.group.place, cfg.parallel.base),
            "default_root_dir": str(folder),
            "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks.values()),
        },
        group=parts.group,
    )
    _check_watching(cfg, callbacks, parts.experiment.data)
    if isinstance(callbacks.get("records"), Records):
        parts.records = callbacks["records"]
    if cfg.ckpt_path:
        _resume(cfg, parts)
    if logger is not None and begin(logger, cfg) is None:  # Lightning would ask it once more, and fail
        parts.experiment.trainer.loggers, logger = [], None
    parts.logger = logger


def _check_watching(cfg: DictConfig, callbacks: Mapping[str, Any], data: SelectionDataModule) -> None:
    """Refuse measurements that Lightning would refuse after the first evaluation, and callbacks that wait in vain."""
    targets = data.corpus.targets
    check_callbacks(callbacks, [target.name for target in targets])
    rows = {one.name: min(len(one.val), data.val_limit or len(one.val)) for one in targets}
    batches = {name: math.ceil(count / data.val_batch_size) for name, count in rows.items()}
    check_intervals(plain(cfg.trainer), batches, data.steps.steps)


def _check_selector(cfg: DictConfig, selector: Any, data: SelectionDataModule) -> None:
    """Refuse what is no selector, and one that does not go with the data."""
    if not isinstance(selector, Selector):
        raise BuildError(
            f"selector._target_={cfg.selector._target_} is no selector: it needs a property `needs` and "
            "`__call__(signals, generator)`; see winnow.selectors.base.Selector"
        )
    if isinstance(selector, Sized):
        check_filter_size(selector.filter_size, data.steps.pool_size)
    if data.steps.turns is not None and len(data.corpus.targets) > 1:
        _check_turns(cfg, selector.needs.per_task)
    if isinstance(selector, Labelled):
        selector.check_groups(*groups(data.corpus.stream, cfg.seed))
    if isinstance(selector, Recorded) and data.steps.raw is not None:
        raise ValueError(
            f"selector={cfg.name} was made for pools that are known before training, and behind a gate they are not: "
            "set gate=none"
        )
    if isinstance(selector, Recorded):
        endless = int(cfg.trainer.max_epochs or -1) == -1
        steps = int(cfg.trainer.max_steps) if endless and int(cfg.trainer.max_steps) > 0 else None
        selector.check_stream(data.steps.pool_ids(), steps)


def _resume(cfg: DictConfig, parts: Parts) -> None:
    """Refuse a checkpoint that does not fit, and take over the records of the pools it had seen."""
    path = Path(cfg.ckpt_path).resolve()
    state = read_checkpoint(cfg.ckpt_path)
    changed, any_method = changes(cfg.ckpt_path, anonymous(plain(cfg))), cfg.resume_method == "any"
    check_fits(state, parts.experiment.module, parts.experiment.optimizer, changed, any_method)
    if 0 < int(cfg.trainer.max_steps) <= state["global_step"]:
        log.warning(
            "trainer.max_steps=%d, and ckpt_path=%s has made %d updates already: nothing is left to train",
            cfg.trainer.max_steps, cfg.ckpt_path, state["global_step"],
        )  # fmt: skip
    if parts.records is not None:
        parts.records.resume(path.parent.parent, int(state["winnow"]["budget"]["steps"]))


def _check_turns(cfg: DictConfig, per_task: bool) -> None:
    """Refuse what needs all targets at once where they take turns."""
    if per_task or cfg.record_tasks:
        key = "record_tasks=true" if cfg.record_tasks else f"selector={cfg.name}"
        raise ValueError(
            f"data.target_order=round_robin has one target per step, and {key} needs all of them: set shared"
        )
    if int(cfg.scoring.get("every", 1)) > 1:
        raise ValueError(
            f"data.target_order=round_robin has another target at every step, and scoring.every={cfg.scoring.every} "
            "would pass some of them over: set scoring.every=1, or data.target_order=shared"
        )


def prepared_by(cfg: DictConfig) -> dict[str, str]:
    """Files that something was spent on before training, by the keys that name them."""
    named = {"data.subset": cfg.data.get("subset"), "scoring.reference": cfg.scoring.get("reference")}
    return {key: name for key, name in named.items() if name is not None and Path(name).suffix in TABLES}


def given() -> list[str]:
    """The overrides this run was started with; empty outside the command line."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def in_sweep() -> bool:
    """Whether this run is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
