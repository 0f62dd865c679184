"""Weights & Biases without surprises: offline unless asked, and online only with an account at hand."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch.loggers import WandbLogger

NOT_ONLINE = ("offline", "dryrun", "disabled")


def wandb_logger(*, offline: bool = True, **options: Any) -> WandbLogger:
    """A :class:`WandbLogger` that never asks for anything.

    W&B itself would ask for an account at a terminal and wait for the answer. Here a run that was to be
    online and has no credentials fails before it begins. ``WANDB_MODE`` is honoured where it says offline or
    disabled.

    Args:
        offline: keep the run on this machine; ``logger.offline``.
        options: as for :class:`WandbLogger`.

    Returns:
        The logger; its run begins when it is first used.

    Raises:
        ValueError: ``offline`` is false and W&B has no credentials for its server, or rejects their form.
    """
    if not offline and os.environ.get("WANDB_MODE", "online") not in NOT_ONLINE:
        import wandb

        remedy = (
            "Run `wandb login` once, or set WANDB_API_KEY (WANDB_BASE_URL for a server of your own); "
            "or keep runs here with logger.offline=true and upload them later with `wandb sync`."
        )
        try:
            known = wandb.login(prompt=False, verify=False)
        except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            raise ValueError(
                f"logger.offline=false, and W&B does not take its credentials: {error}\n{remedy}"
            ) from error
        if not known:
            raise ValueError(f"logger.offline=false needs a Weights & Biases account, and none is set up.\n{remedy}")
    settings = {"quiet": True, **(options.pop("settings", None) or {})}
    logger = WandbLogger(offline=offline, settings=settings, **options)
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it always, and W&B warns of it always
    return logger
