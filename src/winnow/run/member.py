"""The other processes of a run: ``python -m winnow.run.member``, started by the first one, or by torchrun."""

from __future__ import annotations

import logging
import sys

import torch
import torch.distributed as dist

from winnow.records.shown import PlainFormatter
from winnow.run.allocator import keep_freed_memory
from winnow.run.assemble import Parts
from winnow.run.execute import train_part
from winnow.run.group import join
from winnow.run.process import left_as_found
from winnow.run.processes import Place, place
from winnow.training.stopping import handled

log = logging.getLogger(__name__)


def member(own: Place) -> None:
    """Do what the first process does, but for what is written, printed and logged, which is its own.

    The configuration comes from the first process, so that folders, dates and defaults are the same.

    Args:
        own: which of the processes this is.
    """
    logging.basicConfig(level=logging.ERROR)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PlainFormatter(f"process {own.rank}: %(message)s"))
    if not torch.cuda.is_available():
        keep_freed_memory()
    group = join(own)
    cfg = group.configured()
    parts = Parts(group=group)
    with left_as_found(), handled(parts.stop):
        train_part(cfg, parts)
    dist.destroy_process_group()


def command() -> None:
    """Take part in the run that the environment names.

    Raises:
        SystemExit: it names none.
    """
    own = place()
    if own is None or own.rank == 0:
        raise SystemExit("this is one of several processes of a run, which winnow starts by itself: use train.py")
    if "" not in sys.path:
        sys.path.insert(0, "")
    member(own)


if __name__ == "__main__":
    command()
