"""One run from its configuration: build, evaluate, fit, evaluate, export, and always close what was opened."""

from __future__ import annotations

import copy
import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from transformers.utils import logging as hf_logging

from winnow.allocator import keep_freed_memory
from winnow.callbacks import AtomicCheckpointIO, Records
from winnow.checkpoint import check_fits, read_checkpoint
from winnow.data import Corpus, SelectionDataModule
from winnow.data.reach import groups
from winnow.evaluation import evaluate
from winnow.finite import check_precision
from winnow.folder import changes, claim, earlier_job, occupied
from winnow.instantiate import BuildError, blaming, build, build_all, check_numbers, plain
from winnow.ledger import composition
from winnow.models import LanguageModel
from winnow.module import SelectionModule
from winnow.offline.files import SPENT, preparation
from winnow.options import check_options
from winnow.provenance import Status, anonymous, provenance, write_json
from winnow.report.summary import print_summary, show
from winnow.schedule import planned_updates, schedule_arguments
from winnow.selectors.base import Selector, check_filter_size
from winnow.stopping import Stop, handled
from winnow.tables import TABLES
from winnow.tracking import careful, forgiving, is_lost, let_go

log = logging.getLogger(__name__)


@dataclass
class Parts:
    """What a run is made of; filled in one after the other, so that a failure closes what there is."""

    language: LanguageModel = field(init=False)
    corpus: Corpus = field(init=False)
    data: SelectionDataModule = field(init=False)
    module: SelectionModule = field(init=False)
    trainer: lightning.Trainer = field(init=False)
    records: Records | None = None
    logger: Logger | None = None
    preparation: dict[str, Any] | None = None
    stop: Stop = field(default_factory=Stop)
    started: float = field(default_factory=perf_counter)


def run(cfg: DictConfig) -> float | None:
    """Run one configuration to its end, leaving its records in ``cfg.out``.

    A job of a sweep that finished there earlier is skipped, and one that was broken off goes on from its last
    checkpoint, or begins afresh where there is none.

    Args:
        cfg: the composed configuration (conf/train.yaml).

    Returns:
        The mean target test NLL after training, for Hydra's sweepers; None if it was not measured.

    Raises:
        BuildError: the configuration asks for something that cannot be built, or for a folder in use.
    """
    if not torch.cuda.is_available():
        keep_freed_memory()
    folder, config = Path(cfg.out), anonymous(plain(cfg))
    with occupied(folder):
        if not _in_sweep():
            claim(folder, cfg.ckpt_path)
            changed = changes(cfg.ckpt_path, config) if cfg.ckpt_path else []
            if changed:
                log.warning("ckpt_path=%s is of a run with other options: %s", cfg.ckpt_path, "; ".join(changed))
        else:
            earlier = earlier_job(folder, config)
            if isinstance(earlier, dict):
                return _objective(earlier)
            if earlier is not None:
                cfg = copy.deepcopy(cfg)
                cfg.ckpt_path = earlier
        write_json(folder / "config.json", config)
        write_json(folder / "provenance.json", provenance())
        return _objective(_recorded(cfg, folder))


def _recorded(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """The run's summary; how it ended is in its status and in its logger, and only then on the screen."""
    status, parts = Status(folder), Parts()
    with left_as_found(), handled(parts.stop):
        try:
            with blaming(""):
                _assemble(cfg, folder, parts)
            summary = _execute(cfg, folder, parts)
        except BaseException as error:
            known = [folder / "checkpoints" / "last.ckpt", *([Path(cfg.ckpt_path)] if cfg.ckpt_path else [])]
            resume = next((path for path in known if path.is_file()), None)
            try:
                status.failed(error, resume)
            except OSError as second:  # a full disk: the first error is the one to raise
                log.error("status.json could not be written: %s", second)
            _close(parts, failed=True)
            if getattr(error, "errno", None) == errno.ENOSPC:
                log.error("the disk of %s is full: free some of it before the run goes on", folder.resolve())
            if resume is not None:
                again = (
                    "the same sweep command once more" if _in_sweep() else f"the same command with ckpt_path={resume}"
                )
                log.error("This run can go on: %s", again)
            raise
        _close(parts, failed=False)
        status.finished()
    show(print_summary, summary, folder)
    return summary


def _objective(summary: dict[str, Any]) -> float | None:
    nll = [value for name, value in summary["after"].items() if name.endswith("/nll")]
    return sum(nll) / len(nll) if nll else None


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
    if cfg.get("resume_method", "same") not in ("same", "any"):  # scoring has no such key
        raise ValueError(f"resume_method must be same or any, got {cfg.resume_method!r}")
    choices = _choices()
    baseline, selector = choices.get("baseline"), choices.get("selector")
    if baseline and selector != baseline:
        raise ValueError(
            f"baseline={baseline} and selector={selector} contradict each other: give one of them "
            f"(selector={baseline} is what baseline={baseline} sets)"
        )
    if selector not in (None, "custom") and any(line.lstrip("+").startswith("selector._target_=") for line in _given()):
        raise ValueError(
            f"selector._target_={cfg.selector._target_} and {'baseline' if baseline else 'selector'}={selector} "
            f"contradict each other: leave out the latter, and give your class its arguments with "
            "+selector.<argument>=<value>"
        )


@contextmanager
def left_as_found() -> Iterator[None]:
    """Leave environment and warnings to the next job of a sweep as they were; loggers set WANDB_MODE and more.

    Yields:
        Nothing.
    """
    environment = dict(os.environ)
    try:
        with warnings.catch_warnings():
            # What Lightning and torch say about themselves, and the user can do nothing about.
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
            warnings.filterwarnings("ignore", message=r".*does not have many workers")
            warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
            # Not so: the datamodule is told where it was.
            warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before")
            # A run that goes on in another folder, or without a callback, does so on purpose.
            warnings.filterwarnings("ignore", message="The dirpath has changed from")
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # resumed
            logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
            if not sys.stderr.isatty():
                hf_logging.disable_progress_bar()
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)


def _assemble(cfg: DictConfig, folder: Path, parts: Parts) -> None:
    """Build everything, and refuse here whatever would be refused later, before the first evaluation."""
    check(cfg)
    check_numbers(SelectionModule, cfg)
    check_options(plain(cfg))
    check_precision(cfg.trainer.get("precision"))
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    parts.language = build(cfg.model)
    parts.corpus = build(cfg.data.corpus)
    for reason, count in parts.corpus.report.items():
        log.warning("data: %d examples left out: %s", count, reason)
    options = {name: value for name, value in plain(cfg.data).items() if name != "corpus"}
    with blaming("data"):
        check_numbers(SelectionDataModule, options, "data")
        parts.data = SelectionDataModule(parts.corpus, parts.language.tokenizer, seed=cfg.seed, **options)
    parts.preparation = preparation(_prepared(cfg))
    selector = build(cfg.selector)
    if not isinstance(selector, Selector):
        raise BuildError(
            f"selector._target_={cfg.selector._target_} is no selector: it needs a property `needs` and "
            "`__call__(signals, generator)`; see winnow.selectors.base.Selector"
        )
    if hasattr(selector, "filter_size"):
        check_filter_size(selector.filter_size, parts.data.steps.pool_size)
    if parts.data.steps.turns is not None and len(parts.corpus.targets) > 1:
        _check_turns(cfg, selector.needs.per_task)
    if hasattr(selector, "check_groups"):
        selector.check_groups(*groups(parts.corpus.stream, cfg.seed))
    if hasattr(selector, "check_stream"):
        endless = int(cfg.trainer.max_epochs or -1) == -1
        steps = int(cfg.trainer.max_steps) if endless and int(cfg.trainer.max_steps) > 0 else None
        selector.check_stream(parts.data.steps.pool_ids(), steps)
    parts.module = SelectionModule(
        parts.language.model,
        selector=selector,
        scorer=build(cfg.scoring),
        optimizer=build(cfg.optimizer),
        scheduler=_schedule(cfg, parts.data.steps.steps),
        clip_norm=cfg.clip_norm,
        max_idle_steps=cfg.max_idle_steps,
        pools_per_update=cfg.pools_per_update,
        seed=cfg.seed,
        record_tasks=cfg.record_tasks,
    )
    callbacks = build_all(cfg.get("callbacks"))
    if isinstance(callbacks.get("records"), Records):
        parts.records = callbacks["records"]
    logger = _logger(cfg)
    parts.trainer = build(
        cfg.trainer,
        callbacks=list(callbacks.values()),
        logger=logger or False,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(folder),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks.values()),
    )
    parts.module.trainer = parts.trainer
    parts.module.on_fit_start()
    built = parts.module.configure_optimizers()
    if cfg.ckpt_path:
        _resume(cfg, parts, built if isinstance(built, torch.optim.Optimizer) else built[0][0])
    if isinstance(logger, WandbLogger):  # its run begins here; one that could not begin needs no closing
        with forgiving(logger):
            logger.experiment.config.update({**anonymous(plain(cfg)), "choices": _choices()}, allow_val_change=True)
        if is_lost(logger):  # Lightning would ask it once more, and fail
            parts.trainer.loggers, logger = [], None
    parts.logger = logger


def _resume(cfg: DictConfig, parts: Parts, optimizer: torch.optim.Optimizer) -> None:
    """Refuse a checkpoint that does not fit, and take over the records of the pools it had seen."""
    path = Path(cfg.ckpt_path).resolve()
    state = read_checkpoint(cfg.ckpt_path)
    check_fits(
        state, parts.module, optimizer, changes(cfg.ckpt_path, anonymous(plain(cfg))), cfg.resume_method == "any"
    )
    if 0 < int(cfg.trainer.max_steps) <= state["global_step"]:
        log.warning(
            "trainer.max_steps=%d, and ckpt_path=%s has made %d updates already: nothing is left to train",
            cfg.trainer.max_steps, cfg.ckpt_path, state["global_step"],
        )  # fmt: skip
    if parts.records is not None:
        parts.records.resume(path.parent.parent, int(state["winnow"]["budget"]["steps"]))


def _schedule(cfg: DictConfig, pools: int | None) -> Any:
    """The learning-rate schedule, over the updates there will be; ``pools`` are those of one pass."""
    if not cfg.get("scheduler"):
        return None
    planned = planned_updates(cfg.trainer.get("max_steps"), cfg.trainer.get("max_epochs"), pools, cfg.pools_per_update)
    return build(cfg.scheduler, **schedule_arguments(plain(cfg.scheduler), planned))


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


def _prepared(cfg: DictConfig) -> dict[str, str]:
    """Files that something was spent on before training, by the keys that name them."""
    named = {"data.subset": cfg.data.get("subset"), "scoring.reference": cfg.scoring.get("reference")}
    return {key: name for key, name in named.items() if name is not None and Path(name).suffix in TABLES}


def _execute(cfg: DictConfig, folder: Path, parts: Parts) -> dict[str, Any]:
    model, module = parts.language.model, parts.module
    summary: dict[str, Any] = {"name": cfg.name, "seed": cfg.seed, "before": _measure(cfg, parts)}
    log.info("%s: %d trainable parameters", cfg.name, sum(p.numel() for p in module.parameters() if p.requires_grad))
    trained = _fit(parts, cfg.ckpt_path)
    summary["after"] = _measure(cfg, parts) if trained else summary["before"]
    summary["budget"] = module.budget.state_dict()
    if parts.preparation is not None:
        summary["preparation"] = parts.preparation
    summary["seconds"] = perf_counter() - parts.started
    if parts.records is not None and parts.records.ledger is not None:
        parts.records.ledger.close()
        if module.budget.steps:
            summary["composition"] = composition(folder)
    write_json(folder / "summary.json", summary)
    if cfg.export:
        model.save_pretrained(str(folder / "model"), safe_serialization=True)
        parts.language.tokenizer.save_pretrained(folder / "model")
    if parts.logger is not None:
        after = {f"test/{name}": value for name, value in summary["after"].items()}
        before = {f"test_before/{name}": value for name, value in summary["before"].items()}
        spent = {f"preparation/{name}": (parts.preparation or {})[name] for name in SPENT} if parts.preparation else {}
        parts.logger.log_metrics({**before, **after, **spent, **module.budget.metrics()})
    return summary


def _measure(cfg: DictConfig, parts: Parts) -> dict[str, float]:
    parts.module.to(parts.trainer.strategy.root_device)
    model: Any = parts.language.model
    return evaluate(
        model,
        parts.language.tokenizer,
        parts.corpus.targets,
        max_length=parts.data.max_length,
        **plain(cfg.evaluation),
    )


def _fit(parts: Parts, ckpt_path: str | None) -> bool:
    """Train; an interrupt comes out as one, and leaves the next one possible. Says whether the model has changed."""
    if parts.trainer.max_steps == 0 or parts.trainer.max_epochs == 0:
        log.warning("nothing to train (trainer.max_steps=0 or trainer.max_epochs=0): the model is measured as it is")
        if ckpt_path:
            state = read_checkpoint(ckpt_path)
            parts.module.load_state_dict(state["state_dict"], strict=False)  # frozen parameters are in none
            parts.module.on_load_checkpoint(state)
        return bool(ckpt_path)
    parts.module.train()  # transformers loads models for evaluation, without dropout, and Lightning keeps that
    parts.module.stop = parts.stop
    parts.stop.waits = True
    try:
        parts.trainer.fit(parts.module, parts.data, ckpt_path=ckpt_path, weights_only=True)
    except SystemExit as error:
        # Lightning answers an interrupt with exit(1), which no caller can tell from a failure.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        parts.stop.waits = False
    parts.stop.obey()
    return True


def _logger(cfg: DictConfig) -> Logger | None:
    if not cfg.get("logger"):
        return None
    choices = _choices()
    selector = choices.get("selector", cfg.name)
    method = cfg.selector._target_ if selector == "custom" else selector
    tags = [method, choices.get("data", ""), choices.get("model", ""), *cfg.tags]
    # Only W&B's tags are a list.
    listed = [tag for tag in dict.fromkeys(tags) if tag]
    logger: Logger | None = build(cfg.logger, **({"tags": listed} if "wandb" in str(cfg.logger._target_) else {}))
    return None if logger is None else careful(logger)


def _choices() -> dict[str, str]:
    """What was chosen from each group; empty outside the command line."""
    found = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    return {str(group): str(choice) for group, choice in found.items() if choice and not str(group).startswith("hydra")}


def _given() -> list[str]:
    """The overrides this run was started with; empty outside the command line."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _close(parts: Parts, failed: bool) -> None:
    """Close records and logger, W&B as failed where the run failed; one that fails does not stop the other."""
    opened: list[Any] = [parts.records, parts.logger]
    for thing in filter(None, opened):
        try:
            if is_lost(thing):
                let_go(thing)
                continue
            if isinstance(thing, WandbLogger):
                thing.experiment.finish(exit_code=1 if failed else 0)
            elif isinstance(thing, Records):
                thing.close()
            else:
                thing.finalize("failed" if failed else "success")
        except Exception:
            log.exception("closing %s failed", type(thing).__name__)
