"""The main job as a command that needs no checkout: ``winnow-train``, or ``python -m winnow.train``.

It is what ``train.py`` is, with the configuration that was installed with the package.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from omegaconf import DictConfig

from winnow.run.cli import main


def conf_dir() -> Path:
    """Folder of the configuration: a checkout's own, or what a wheel brought.

    Returns:
        The folder; ``sweeps`` lies beside it.

    Raises:
        SystemExit: there is neither.
    """
    package = Path(__file__).parent
    for folder in (package.parents[1] / "conf", package / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise SystemExit(f"no configuration beside {package}: install winnow from a wheel, or from a checkout with pip -e")


def train(cfg: DictConfig) -> float | None:
    """One run; torch and the rest are imported only here, so that help and a typo are answered at once.

    Args:
        cfg: the composed configuration (conf/train.yaml).

    Returns:
        The mean target test NLL after training; see :func:`winnow.run.run`.
    """
    from winnow.run import run

    return run(cfg)


def command() -> None:
    """Train as the command line says; as one of several processes, as the first of them does."""
    if "numpy" not in sys.modules:  # which reads it once; beside torch's threads, its own would wait for processors
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) > 0:
        from winnow.run.member import command as take_part

        take_part()
        return
    main(train, config_dir=conf_dir(), config_name="train")


if __name__ == "__main__":
    command()
