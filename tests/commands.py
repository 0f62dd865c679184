"""The command line and the composed configuration, inside the test's own process."""

from __future__ import annotations

import copy
import logging
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tests import runs

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
SWEEPS = ROOT / "sweeps"

SMALL = (
    "model=local",
    "model.path=base",
    "data.pool_size=8",
    "data.target_batch_size=2",
    "data.max_length=96",
    "data.corpus.val_size=4",
    "data.corpus.test_size=4",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "evaluation.accuracy_limit=0",
    "callbacks.last.every=2",
    "logger=none",
)
"""A run of a second, on a model that ``save_base`` left in the folder one is in."""


def save_base(**options: Any) -> None:
    """Save the tests' small model with its tokenizer in ``base``."""
    runs.model(**options).save_pretrained("base")
    runs.tokenizer().save_pretrained("base")


@cache
def compose(*overrides: str, config: str = "train") -> DictConfig:
    """The configuration with Hydra's own part, as the command line makes it; not to be changed."""
    from winnow.run.cli import _name_root

    _name_root(CONF)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose(config, overrides=list(overrides), return_hydra_config=True)


@contextmanager
def configured(*overrides: str, out: str = "out", config: str = "train") -> Iterator[DictConfig]:
    """The configuration of a run that goes to ``out``, with ``${hydra:...}`` as on the command line."""
    cfg = copy.deepcopy(compose(*overrides, config=config))
    cfg.hydra.runtime.output_dir = str(Path(out).resolve())
    HydraConfig.instance().set_config(cfg)
    try:
        cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
        OmegaConf.set_struct(cfg, True)
        yield cfg
    finally:
        HydraConfig.instance().cfg = None


def command_line(monkeypatch: Any, task: Any, *arguments: str) -> None:
    """``python train.py ARGUMENTS``; no logging is set up, which would outlive the test."""
    from winnow.run.cli import main

    quiet = ("hydra/job_logging=none", "hydra/hydra_logging=none")
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, *quiet])
    level = logging.getLogger().level
    try:
        main(task, CONF, "train")
    finally:
        logging.getLogger().setLevel(level)
        HydraConfig.instance().cfg = None


def commands(path: Path) -> list[list[str]]:
    """Arguments of every ``python train.py`` or ``winnow.score`` in the comment that a config file begins with."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        match = re.match(r"#\s+python (?:train\.py|-m winnow\.score)(.*)", line)
        if match:
            # Words on the command stand after two spaces or more.
            found.append(shlex.split(re.split(r"\s{2,}", match.group(1))[0]))
    return found


def axes(sweep: DictConfig) -> dict[str, Sequence[str]]:
    """Values of every axis of a sweep, by key."""
    return {key: str(values).split(",") for key, values in sweep.hydra.sweeper.params.items()}
