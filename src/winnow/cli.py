"""The command line: Hydra's, with errors that say what was meant."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig


def main(task: Callable[[DictConfig], Any], config_dir: Path, config_name: str) -> None:
    """Compose the configuration from the command line and run the task with it.

    Args:
        task: called with the composed configuration.
        config_dir: folder of the primary configuration.
        config_name: its name.
    """
    # Hydra resolves a relative search path against the caller's folder; this one is the config's own.
    os.environ["WINNOW_ROOT"] = str(config_dir.resolve().parent)
    hydra.main(version_base="1.3", config_path=str(config_dir.resolve()), config_name=config_name)(task)()
