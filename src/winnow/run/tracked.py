"""The run's logger: built with what was chosen, and begun as a new run, or as the one that goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from winnow.records.provenance import anonymous
from winnow.records.tracked import Tracked, continued, counted
from winnow.run.instantiate import build, plain
from winnow.tracking import careful, forgiving, is_lost


def choices_of_groups() -> dict[str, str]:
    """What was chosen from each group; empty outside the command line."""
    found = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    return {str(group): str(choice) for group, choice in found.items() if choice and not str(group).startswith("hydra")}


def logger_of(cfg: DictConfig) -> Logger | None:
    """The run's logger, with tags of what was chosen; None for ``logger=none``."""
    if not cfg.get("logger"):
        return None
    extra: dict[str, Any] = {}
    if "wandb" in str(cfg.logger._target_):  # only its tags are a list, and only its runs have an id to go on with
        chosen = choices_of_groups()
        selector = chosen.get("selector", cfg.name)
        method = cfg.selector._target_ if selector == "custom" else selector
        pool = cfg.parallel.pool if cfg.parallel.pool != "global" else ""  # another method
        tags = [method, pool, chosen.get("data", ""), chosen.get("model", ""), *cfg.tags]
        extra["tags"] = [tag for tag in dict.fromkeys(tags) if tag]
        same = _continued(cfg)
        extra |= {} if same is None else {"id": same.id}
    logger: Logger | None = build(cfg.logger, **extra)
    return None if logger is None else careful(logger)


def begin(logger: Logger | None, cfg: DictConfig) -> Logger | None:
    """Begin a run of W&B, whose folder then says which it is.

    Args:
        logger: from :func:`logger_of`.
        cfg: the composed configuration.

    Returns:
        The same; None where the run could not begin, and needs no closing.
    """
    if not isinstance(logger, WandbLogger):
        return logger
    with forgiving(logger):
        logger.experiment.config.update(
            {**anonymous(plain(cfg)), "choices": choices_of_groups()}, allow_val_change=True
        )
        _count(logger.experiment, cfg)
    return None if is_lost(logger) else logger


def _continued(cfg: DictConfig) -> Tracked | None:
    asked = cfg.logger.get("id") or os.environ.get("WANDB_RUN_ID")
    return continued(Path(cfg.out), cfg.get("ckpt_path"), None if asked is None else str(asked))


def _count(run: Any, cfg: DictConfig) -> None:
    """Let the steps go on where the earlier part left off, which offline nobody else knows."""
    from wandb.wandb_run import Run

    if not isinstance(run, Run):  # WANDB_MODE=disabled
        return
    before, first = _continued(cfg), int(run.step)
    if before is not None and before.step > first:
        first = before.step
        run.log({}, step=first, commit=False)
    start = Tracked(run.id, first)
    start.write(Path(cfg.out))
    run.log = counted(run.log, start, Path(cfg.out))  # type: ignore[method-assign]
