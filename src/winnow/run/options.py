"""Options that no component would refuse, or only after hours: checked before anything is built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

# Of a run's name (conf/train.yaml): where every process chooses from its own candidates, another method ran.
OmegaConf.register_new_resolver("winnow.of_pool", lambda pool: "" if pool == "global" else f"-{pool}", replace=True)

SEEDS = 2**32
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
