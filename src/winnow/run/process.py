"""What a run changes in its process, and puts back."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as hf_logging


@contextmanager
def left_as_found() -> Iterator[None]:
    """Leave environment and warnings to the next job of a sweep as they were; loggers set WANDB_MODE and more.

    Yields:
        Nothing.
    """
    environment = dict(os.environ)
    try:
        with warnings.catch_warnings():
            # What Lightning and torch say about themselves, and the user can do nothing about.
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
            warnings.filterwarnings("ignore", message=r".*does not have many workers")
            warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
            # Every process measures all of the validation split, so there is nothing to gather.
            warnings.filterwarnings("ignore", message=r"It is recommended to use `self.log\(.*sync_dist=True")
            # Not so: the datamodule is told where it was.
            warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before")
            # A run that goes on in another folder, or without a callback, does so on purpose.
            warnings.filterwarnings("ignore", message="The dirpath has changed from")
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # resumed
            logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
            if not sys.stderr.isatty():
                hf_logging.disable_progress_bar()
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
