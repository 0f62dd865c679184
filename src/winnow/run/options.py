"""Options that no component would refuse, or only after hours: checked before anything is built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SEEDS = 2**32
REPLACED = {
    "accumulate_grad_batches": ((1, None), "use pools_per_update=N"),
    "gradient_clip_val": ((None,), "use clip_norm=X"),
    "gradient_clip_algorithm": ((None,), "clip_norm=X clips by norm"),
    "overfit_batches": ((0, 0.0, None), "use data.corpus.limit=N and trainer.max_epochs"),
    "fast_dev_run": ((False, 0, None), "use debug=quick"),
    "limit_train_batches": ((None, 1.0), "use trainer.max_steps=N, or data.corpus.limit=N for a shorter stream"),
    "reload_dataloaders_every_n_epochs": ((0, None), "the order of the stream is drawn anew at every epoch as it is"),
    "num_nodes": ((1, None), "one process is what there is: use -m with a launcher for several jobs"),
    "barebones": ((False, None), "it would switch off checkpoints and records"),
    "inference_mode": ((True, None), "leave it as it is"),
}
"""Options of ``lightning.Trainer`` that this suite's loop replaces: values that change nothing, and what to use."""
NAME = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f]+")


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse values out of range, in the words of the configuration.

    Args:
        options: the composed configuration as plain containers; groups that it lacks are passed over.

    Raises:
        ValueError: names the key, the value and the range or the remedy.
    """
    check_name(options.get("name"))
    seed = options.get("seed", 0)
    if not _whole(seed) or not 0 <= seed < SEEDS:
        raise ValueError(f"seed must be a whole number from 0 to {SEEDS - 1}, got {seed!r}")
    if not isinstance(options.get("export", True), bool):
        raise ValueError(f"export must be true or false, got {options['export']!r}")
    if options.get("reduction", "mean") not in ("mean", "sum"):
        raise ValueError(f"reduction must be mean or sum, got {options['reduction']!r}")
    trainer = options.get("trainer") or {}
    for key, (harmless, remedy) in REPLACED.items():
        if key in trainer and trainer[key] not in harmless:
            raise ValueError(f"trainer.{key}={trainer[key]} is of Lightning's own loop, which is not used: {remedy}")
    strategy = trainer.get("strategy")
    if isinstance(strategy, str) and strategy not in ("auto", "single_device"):
        raise ValueError(
            f"trainer.strategy={strategy} is for several processes, and one is what there is: leave it out, and run "
            "several jobs with -m and a launcher"
        )
    every = trainer.get("check_val_every_n_epoch")
    if every is not None and not (_whole(every) and every > 0):
        raise ValueError(f"trainer.check_val_every_n_epoch must be a whole number >= 1, or null, got {every!r}")
    for key in ("max_steps", "max_epochs"):
        value = trainer.get(key)
        if value is not None and not (_whole(value) and value >= -1):
            raise ValueError(f"trainer.{key} must be a whole number >= 0, or -1 for no bound, got {value!r}")
    interval = trainer.get("val_check_interval")
    share = isinstance(interval, float) and 0 < interval <= 1
    if interval is not None and not isinstance(interval, str) and not share and not (_whole(interval) and interval > 0):
        raise ValueError(
            f"trainer.val_check_interval must be a number of pools >= 1, or a share of an epoch in (0, 1], got "
            f"{interval!r}; to measure the target never, trainer.limit_val_batches=0"
        )
    evaluation = options.get("evaluation") or {}
    for key, least, none in (("batch_size", 1, False), ("nll_limit", 0, True), ("accuracy_limit", 0, True)):
        value = evaluation.get(key, least)
        if not (none and value is None) and not (_whole(value) and value >= least):
            extra = ", or null for all" if none else ""
            raise ValueError(f"evaluation.{key} must be a whole number >= {least}{extra}, got {value!r}")


def check_name(name: Any) -> None:
    """Refuse a name that is no name of one folder: a run's is in the path of what it writes.

    Args:
        name: of the run; None where there is none.

    Raises:
        ValueError: it has separators or control characters, or is ``.`` or ``..``.
    """
    if name is not None and not NAME.fullmatch(str(name)):
        raise ValueError(
            f"name={name} is part of the path that a run writes to, and must be the name of one folder, without / or "
            "\\; choose another folder with hydra.run.dir=FOLDER"
        )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
