"""One run from its configuration: build, evaluate, fit, evaluate, export, and always close what was opened."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from winnow.callbacks import AtomicCheckpointIO, Records
from winnow.data import SelectionDataModule
from winnow.evaluation import evaluate
from winnow.instantiate import build, build_all, plain
from winnow.ledger import composition
from winnow.models import LanguageModel
from winnow.module import SelectionModule
from winnow.provenance import Status, provenance, write_json
from winnow.report.summary import print_summary

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> float | None:
    """Run one configuration to its end, leaving its records in ``cfg.out``.

    Args:
        cfg: the composed configuration (conf/train.yaml).

    Returns:
        The mean target test NLL after training, for Hydra's sweepers; None if it was not measured.
    """
    hush()
    check_choices(cfg)
    folder = Path(cfg.out)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", plain(cfg))
    write_json(folder / "provenance.json", provenance())
    environment = dict(os.environ)
    status = Status(folder)
    opened: list[Any] = []
    try:
        summary = _run(cfg, folder, opened)
    except BaseException as error:
        last = folder / "checkpoints" / "last.ckpt"
        status.failed(error, resume=last if last.exists() else None)
        _close(opened, failed=True)
        raise
    else:
        status.finished()
        _close(opened, failed=False)
    finally:
        # Loggers set variables (WANDB_MODE) that must not reach the next job of a sweep.
        os.environ.clear()
        os.environ.update(environment)
    nll = [value for name, value in summary["after"].items() if name.endswith("/nll")]
    return sum(nll) / len(nll) if nll else None


def check_choices(cfg: DictConfig) -> None:
    """Refuse a baseline and a selector that contradict each other.

    Args:
        cfg: the composed configuration.

    Raises:
        ValueError: ``baseline=`` names one method and ``selector=`` another.
    """
    if not HydraConfig.initialized():
        return
    choices = HydraConfig.get().runtime.choices
    baseline, selector = choices.get("baseline"), choices.get("selector")
    if baseline and not str(selector).startswith(str(baseline)):
        raise ValueError(
            f"baseline={baseline} and selector={selector} contradict each other: give one of them "
            f"(selector={baseline} is what baseline={baseline} sets)"
        )


def hush() -> None:
    """Leave out what Lightning and torch say about themselves and the user can do nothing about."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    warnings.filterwarnings("ignore", message=r".*does not have many workers")


def _run(cfg: DictConfig, folder: Path, opened: list[Any]) -> dict[str, Any]:
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    started = perf_counter()
    language: LanguageModel = build(cfg.model)
    corpus = build(cfg.data.corpus)
    options = {name: value for name, value in plain(cfg.data).items() if name != "corpus"}
    data = SelectionDataModule(corpus, language.tokenizer, seed=cfg.seed, **options)
    module = SelectionModule(
        language.model,
        selector=build(cfg.selector),
        scorer=build(cfg.scoring),
        optimizer=build(cfg.optimizer),
        scheduler=build(cfg.scheduler) if cfg.scheduler else None,
        clip_norm=cfg.clip_norm,
        reduction=cfg.reduction,
        max_idle_steps=cfg.max_idle_steps,
        seed=cfg.seed,
    )
    for reason, count in corpus.report.items():
        log.warning("data: %d examples left out: %s", count, reason)
    callbacks = build_all(cfg.callbacks)
    records = callbacks.get("records")
    if isinstance(records, Records):
        opened.append(records)
        if cfg.ckpt_path:
            records.resume(*_earlier(cfg.ckpt_path))
    logger = _logger(cfg, folder)
    opened += [logger] if logger else []
    trainer: lightning.Trainer = build(
        cfg.trainer,
        callbacks=list(callbacks.values()),
        logger=logger or False,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(folder),
        enable_checkpointing=any(name in callbacks for name in ("last", "best")),
    )

    def measure() -> dict[str, float]:
        module.to(trainer.strategy.root_device)
        return evaluate(
            language.model, language.tokenizer, corpus.targets, max_length=data.max_length, **plain(cfg.evaluation)
        )

    summary: dict[str, Any] = {"name": cfg.name, "seed": cfg.seed, "before": measure()}
    log.info("%s: %d trainable parameters", cfg.name, sum(p.numel() for p in module.parameters() if p.requires_grad))
    trainer.fit(module, data, ckpt_path=cfg.ckpt_path, weights_only=True if cfg.ckpt_path else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    summary["after"] = measure()
    summary["budget"] = module.budget.state_dict()
    summary["seconds"] = perf_counter() - started
    if isinstance(records, Records) and records.ledger is not None:
        records.ledger.close()
        summary["composition"] = composition(folder)
    if cfg.export:
        language.model.save_pretrained(folder / "model", safe_serialization=True)
        language.tokenizer.save_pretrained(folder / "model")
    write_json(folder / "summary.json", summary)
    if logger is not None:
        after = {f"test/{name}": value for name, value in summary["after"].items()}
        before = {f"test_before/{name}": value for name, value in summary["before"].items()}
        logger.log_metrics({**before, **after, **module.budget.metrics()})
    print_summary(summary, folder)
    return summary


def _earlier(ckpt_path: str) -> tuple[Path, int]:
    """Folder of the run a checkpoint belongs to, and how many pools it had seen."""
    path = Path(ckpt_path)
    if not path.is_file():
        raise FileNotFoundError(
            f"ckpt_path={ckpt_path}: no such file; a run keeps its own in <run>/checkpoints/last.ckpt"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    if "winnow" not in state or "loops" not in state:
        raise ValueError(f"ckpt_path={ckpt_path} holds weights only and cannot be resumed from; use last.ckpt")
    return path.resolve().parent.parent, int(state["winnow"]["budget"]["steps"])


def _logger(cfg: DictConfig, folder: Path) -> Logger | None:
    if not cfg.logger:
        return None
    choices = {str(group): str(choice) for group, choice in _choices().items() if choice and "/" not in str(group)}
    tags = [choices.get("selector", cfg.name), choices.get("data", ""), choices.get("model", ""), *cfg.tags]
    logger: Logger = build(cfg.logger, tags=[tag for tag in dict.fromkeys(tags) if tag])
    if isinstance(logger, WandbLogger):
        logger.experiment.config.update({**plain(cfg), "choices": choices}, allow_val_change=True)
    return logger


def _choices() -> dict[str, Any]:
    return dict(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else {}


def _close(opened: list[Any], failed: bool) -> None:
    """Close records and loggers, W&B as failed where the run failed; one that fails does not stop the others."""
    for thing in opened:
        try:
            if isinstance(thing, WandbLogger):
                thing.experiment.finish(exit_code=1 if failed else 0)
            elif isinstance(thing, Records):
                thing.close()
            else:
                thing.finalize("failed" if failed else "success")
        except Exception:
            log.exception("closing %s failed", type(thing).__name__)
