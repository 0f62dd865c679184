"""Loggers without surprises: W&B offline unless asked, and no logger whose failure ends a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

log = logging.getLogger(__name__)

NOT_ONLINE = ("offline", "dryrun", "disabled")


def careful(logger: Logger) -> Logger:
    """A logger whose failures cost the run nothing but its curves there: one warning, then it is left alone.

    Args:
        logger: any of Lightning's; changed in place.

    Returns:
        The same.
    """
    for name in ("log_metrics", "log_hyperparams", "log_graph", "save", "after_save_checkpoint", "finalize"):
        setattr(logger, name, _guarded(logger, getattr(logger, name)))
    return logger


def is_lost(logger: Any) -> bool:
    """Whether a logger has failed and is left alone.

    Args:
        logger: a logger, or None.

    Returns:
        True after its first failure.
    """
    return bool(getattr(logger, "_winnow_lost", False))


@contextmanager
def forgiving(logger: Any) -> Iterator[None]:
    """Take a failure inside as the loss of a logger.

    Args:
        logger: what is talked to.

    Yields:
        Nothing.
    """
    try:
        yield
    except Exception as error:
        if not is_lost(logger):
            log.warning(
                "%s is lost (%s: %s): the run goes on without it, its figures in metrics.csv and summary.json",
                type(logger).__name__,
                type(error).__name__,
                error,
            )
        logger._winnow_lost = True


def let_go(logger: Any) -> None:
    """Clear away what a lost logger left in the process, for the next job of a sweep.

    Args:
        logger: the logger.
    """
    if isinstance(logger, WandbLogger):
        import wandb

        with suppress(Exception):
            wandb.teardown(exit_code=1)
        wandb.run = None  # or the next run would be taken for this one


def _guarded(logger: Logger, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        if not is_lost(logger):
            with forgiving(logger):
                return method(*arguments, **options)
        return None

    return call


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
