"""Options of ``lightning.Trainer`` that our own loop replaces, breaks or never asks: refused with what to type."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeGuard

import lightning
import torch

REPLACED: dict[str, tuple[tuple[Any, ...], str]] = {
    "accumulate_grad_batches": ((1, None), "use pools_per_update=N"),
    "gradient_clip_val": ((None,), "use clip_norm=X"),
    "gradient_clip_algorithm": ((None,), "clip_norm=X clips by norm"),
    "overfit_batches": ((0, None), "use data.corpus.limit=N and trainer.max_epochs"),
    "fast_dev_run": ((0, None), "use debug=quick"),
    "limit_train_batches": ((None, 1.0), "use trainer.max_steps=N, or data.corpus.limit=N for a shorter stream"),
    "limit_test_batches": ((None, 1.0), "use evaluation.nll_limit=N and evaluation.accuracy_limit=N"),
    "limit_predict_batches": ((None, 1.0), "leave it out, nothing is predicted"),
    "reload_dataloaders_every_n_epochs": ((0, None), "the order of the stream is drawn anew at every epoch as it is"),
    "num_nodes": ((1, None), "start it on every machine with torchrun or srun, which say how many there are"),
    "sync_batchnorm": ((False, None), "one process is what there is: leave it out"),
    "barebones": ((False, None), "it would switch off checkpoints and records"),
    "inference_mode": ((True, None), "leave it as it is"),
    "logger": ((None,), "use logger=wandb, csv, tensorboard, mlflow or none"),
    "callbacks": ((None,), "use '+callbacks.NAME={_target_: CLASS}'"),
    "plugins": ((None,), "leave it out, checkpoints have a plugin of their own; precision is trainer.precision"),
    "enable_checkpointing": ((True, None), "use callbacks.last=null callbacks.best=null"),
    "default_root_dir": ((None,), "use hydra.run.dir=FOLDER"),
    "model_registry": ((None,), "export=true saves the model in RUN/model"),
}
"""Values that change nothing, and what to use for any other."""
PASSED_ON = {
    "accelerator", "strategy", "devices", "precision", "max_epochs", "min_epochs", "max_steps", "min_steps", "max_time",
    "limit_val_batches", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps", "log_every_n_steps",
    "enable_progress_bar", "enable_model_summary", "deterministic", "benchmark", "use_distributed_sampler", "profiler",
    "detect_anomaly", "enable_autolog_hparams",
}  # fmt: skip
"""What Lightning does, as it does it; some of them within a range."""
STRATEGIES = ("auto", "single_device", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
OTHERS = {
    "spawn": "its processes give back weights and no counters: use ddp, which starts them as commands",
    "fork": "its processes give back weights and no counters: use ddp, which starts them as commands",
    "notebook": "its processes give back weights and no counters: use ddp, from the command line",
    "deepspeed": "it keeps gradients where a selection's cannot be put: use ddp, parallel.base=sharded to split",
    "fsdp": "Lightning's first FSDP keeps parameters flat, so that no row is anybody's: use ddp, parallel.base=sharded",
    "": "use ddp, which trainer.devices=N implies, or leave it out",
}
PRECISIONS = (None, "32-true", "bf16-mixed", "bf16-true", "64-true", "32", "64", "bf16")
LEAST = {"min_steps": 0, "min_epochs": 0, "log_every_n_steps": 0, "num_sanity_val_steps": -1}


def check_trainer(trainer: Mapping[str, Any], bounded: bool = False) -> None:
    """Refuse options of the trainer that would be ignored, fail later, or do another thing than they say.

    Args:
        trainer: the configuration of ``trainer``, as a plain mapping.
        bounded: whether a ``budget`` ends the run.

    Raises:
        ValueError: names the option and what to type in its place.
    """
    _check_names(trainer)
    for key, (harmless, remedy) in REPLACED.items():
        given = trainer.get(key)
        if given not in harmless and given not in ([], {}):
            raise ValueError(f"trainer.{key}={given} is of Lightning's own loop, and not used here: {remedy}")
    _check_device(trainer)
    precision = trainer.get("precision")
    if precision is not None and str(precision) not in (*PRECISIONS, "16", "16-mixed", "16-true"):  # those say why
        raise ValueError(f"trainer.precision={precision}: give 32-true, bf16-mixed, bf16-true or 64-true")
    _check_length(trainer, bounded)
    _check_measuring(trainer)


def _check_names(trainer: Mapping[str, Any]) -> None:
    if trainer.get("_target_") != "lightning.Trainer":
        return
    known = set(inspect.signature(lightning.Trainer.__init__).parameters) - {"self"}
    for key in trainer:
        if key not in known and not str(key).startswith("_"):
            near = get_close_matches(str(key), known, n=1)
            meant = f"; did you mean trainer.{near[0]}?" if near else ""
            raise ValueError(f"trainer.{key} is no option of lightning.Trainer{meant}")


def _check_device(trainer: Mapping[str, Any]) -> None:
    strategy, accelerator = trainer.get("strategy"), trainer.get("accelerator")
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        remedy = next((text for word, text in OTHERS.items() if word in strategy), OTHERS[""])
        raise ValueError(f"trainer.strategy={strategy}: {remedy}")
    found = torch.cuda.is_available() or (accelerator == "gpu" and torch.backends.mps.is_available())
    if accelerator in ("gpu", "cuda") and not found:
        raise ValueError(f"trainer.accelerator={accelerator}, and torch finds no GPU here: use trainer=cpu")


def _check_length(trainer: Mapping[str, Any], bounded: bool) -> None:
    for key in ("max_steps", "max_epochs"):
        value = trainer.get(key, -1)
        if not (whole(value) and value >= -1) and not (key == "max_epochs" and value is None):
            raise ValueError(f"trainer.{key} must be a whole number >= 0, or -1 for no bound, got {value!r}")
    for key, least in LEAST.items():
        value = trainer.get(key)
        if value is not None and not (whole(value) and value >= least):
            extra = ", or -1 for all" if least < 0 else ""
            raise ValueError(f"trainer.{key} must be a whole number >= 0{extra}, got {value!r}")
    for unit in ("steps", "epochs"):
        fewest, most = trainer.get(f"min_{unit}"), trainer.get(f"max_{unit}")
        if fewest and bounded:
            raise ValueError(f"trainer.min_{unit}={fewest} would go on past what budget allows: leave it out")
        if fewest and most is not None and 0 <= most < fewest:
            raise ValueError(
                f"trainer.min_{unit}={fewest} is more than trainer.max_{unit}={most}, where the run ends: "
                f"set trainer.max_{unit}"
            )


def _check_measuring(trainer: Mapping[str, Any]) -> None:
    every = trainer.get("check_val_every_n_epoch", 1)
    if every is not None and not (whole(every) and every > 0):
        raise ValueError(f"trainer.check_val_every_n_epoch must be a whole number >= 1, or null, got {every!r}")
    interval = trainer.get("val_check_interval")
    share = isinstance(interval, float) and 0 < interval <= 1
    timed = isinstance(interval, str | Mapping)
    if interval is not None and not timed and not share and not (whole(interval) and interval > 0):
        raise ValueError(
            f"trainer.val_check_interval must be a number of pools >= 1, or a share of an epoch in (0, 1], got "
            f"{interval!r}; to measure the target never, trainer.limit_val_batches=0"
        )
    if share and every is None:
        raise ValueError(
            f"trainer.val_check_interval={interval} is a share of an epoch, and trainer.check_val_every_n_epoch=null "
            "counts pools across epochs: set trainer.check_val_every_n_epoch=1, or give a whole number of pools"
        )
    limit = trainer.get("limit_val_batches")
    if isinstance(limit, int | float) and (limit < 0 or (isinstance(limit, float) and limit > 1)):
        raise ValueError(
            f"trainer.limit_val_batches must be a whole number of batches, or a share in [0.0, 1.0], got {limit!r}"
        )


def check_intervals(trainer: Mapping[str, Any], batches: Mapping[str, int], pools: int | None) -> None:
    """Refuse shares that come to nothing for this data, and measurements that would never be made.

    Args:
        trainer: as for :func:`check_trainer`.
        batches: of validation examples, by target.
        pools: in one epoch; None for an endless stream.

    Raises:
        ValueError: names the option and what to type in its place.
    """
    limit = trainer.get("limit_val_batches")
    for name, count in batches.items():
        if isinstance(limit, float) and limit > 0 and count and int(count * limit) == 0:
            raise ValueError(
                f"trainer.limit_val_batches={limit} of the {count} validation batches of target {name} is none: give "
                "a number of batches (trainer.limit_val_batches=1), or fewer examples with +data.val_limit=N"
            )
    interval = trainer.get("val_check_interval")
    if limit == 0 or trainer.get("check_val_every_n_epoch", 1) is None:
        return
    if isinstance(interval, float) and interval != 1.0 and pools is None:
        raise ValueError(
            f"trainer.val_check_interval={interval} is a share of an epoch, and this stream is endless: give a number "
            "of pools, with trainer.check_val_every_n_epoch=null"
        )
    if whole(interval) and pools is not None and interval > pools:
        raise ValueError(
            f"trainer.val_check_interval={interval} is more than the {pools} pools of an epoch: set "
            "trainer.check_val_every_n_epoch=null to count across epochs, or take fewer pools"
        )


def whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number, and no truth value.

    Args:
        value: anything.

    Returns:
        True for a whole number.
    """
    return isinstance(value, int) and not isinstance(value, bool)
