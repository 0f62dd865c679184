"""Everything that is refused by values alone, before a model is loaded, and what a callback waits for in vain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeGuard

from winnow.run.options import check_options
from winnow.run.trainer_options import check_trainer, whole
from winnow.training.budget import Budget

ADDS_UP = {
    "GradientAccumulationScheduler": "use pools_per_update=N",
    "BatchSizeFinder": "use data.pool_size=N",
    "LearningRateFinder": "use optimizer.lr=X, and -m to try several",
}
"""Callbacks of Lightning that drive its own loop."""
OPEN = ("select/", "gate/")
"""Metrics whose names are the selector's or the gate's to choose."""


def check_start(options: Mapping[str, Any]) -> None:
    """Refuse values out of range, in the words of the configuration.

    Args:
        options: the composed configuration as plain containers; groups that it lacks are passed over.

    Raises:
        ValueError: names the key, the value and the range or the remedy.
    """
    check_options(options)
    bounded = any(bound is not None for bound in (options.get("budget") or {}).values())
    check_trainer(options.get("trainer") or {}, bounded)
    optimizer = options.get("optimizer") or {}
    for key in ("eps", "adamw_eps"):
        value = optimizer.get(key)
        first = value[0] if isinstance(value, list) and value else value
        if _number(first) and not first > 0:
            raise ValueError(
                f"optimizer.{key}={value}: an update would be divided by zero where a gradient is zero; give a number "
                "above 0, such as 1e-8"
            )
    _check_lora((options.get("model") or {}).get("lora") or {})


def check_resumed(ckpt_path: Any) -> None:
    """Refuse what names no file, before anything is looked for there.

    Args:
        ckpt_path: of the configuration.

    Raises:
        ValueError: it is no text.
    """
    if ckpt_path is not None and not isinstance(ckpt_path, str):
        raise ValueError(
            f"ckpt_path must be the file of a checkpoint, such as RUN/checkpoints/last.ckpt, or null; got {ckpt_path!r}"
        )


def check_callbacks(callbacks: Mapping[str, Any], targets: Iterable[str]) -> None:
    """Refuse callbacks of Lightning that need its own loop, and those that watch what is never measured.

    Args:
        callbacks: by name.
        targets: names of the target tasks.

    Raises:
        ValueError: names the key and what to type in its place.
    """
    names = list(targets)
    known = {"train/loss", "optimizer/lr", "target/loss", "target/val_nll", "epoch", "step", *Budget().metrics()}
    known |= {f"target/{name}/val_nll" for name in names if len(names) > 1}
    # A callback of the user's own may log what another one watches.
    own = any(not type(one).__module__.startswith(("winnow.", "lightning.")) for one in callbacks.values())
    for key, callback in callbacks.items():
        kind = type(callback).__name__
        if kind in ADDS_UP:
            raise ValueError(f"callbacks.{key}: {kind} drives Lightning's own loop, which is not used: {ADDS_UP[kind]}")
        watched = getattr(callback, "monitor", None)
        if not own and isinstance(watched, str) and watched not in known and not watched.startswith(OPEN):
            near = get_close_matches(watched, known, n=1) or ["target/val_nll"]
            raise ValueError(
                f"callbacks.{key}.monitor={watched} is measured nowhere: give {near[0]}, another column of "
                "metrics.csv, or null"
            )


def _check_lora(lora: Mapping[str, Any]) -> None:
    dropout, alpha, rank = (lora.get(name) for name in ("lora_dropout", "lora_alpha", "r"))
    if _number(dropout) and not 0 <= dropout < 1:
        raise ValueError(f"model.lora.lora_dropout must be a share in [0, 1), got {dropout!r}")
    if _number(alpha) and not alpha > 0:
        raise ValueError(
            f"model.lora.lora_alpha must be above 0: an adapter is scaled by lora_alpha / r; got {alpha!r}"
        )
    if rank is not None and not (whole(rank) and rank > 0):
        raise ValueError(f"model.lora.r must be a whole number >= 1, got {rank!r}")


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
