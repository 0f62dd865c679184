"""Processes of a machine load the model one after the other, so that its memory holds one whole model at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from winnow.run.allocator import give_back_freed_memory
from winnow.run.group import Group, ProcessLost

Loaded = TypeVar("Loaded")


class NotLoaded(ProcessLost):
    """Another process of the run could not load the model."""


def in_turn(group: Group, load: Callable[[], Loaded]) -> Loaded:
    """Load the model and keep a share of it, when all before this process on its machine have.

    The first process loads before any other one begins (:meth:`winnow.run.group.Group.first`), and waits for them in
    :func:`attend`. A turn takes at most ``parallel.timeout`` minutes.

    Args:
        group: the processes; all but the first call this together.
        load: what to do; it may wait for no other process.

    Returns:
        What ``load`` returned.

    Raises:
        NotLoaded: another process failed.
    """
    return _once(load) if group.place.rank == 0 else _turns(group, load)[0]


def attend(group: Group) -> None:
    """Wait in the first process until all others have loaded the model.

    Args:
        group: the processes.

    Raises:
        NotLoaded: one of them failed.
    """
    _turns(group, None)


def _once(load: Callable[[], Loaded]) -> Loaded:
    loaded = load()
    gc.collect()
    give_back_freed_memory()
    return loaded


def _turns(group: Group, load: Callable[[], Loaded] | None) -> list[Loaded]:
    """What is loaded in this process's turn; after each turn all know how it went."""
    loaded: list[Loaded] = []
    failed: Exception | None = None
    for turn in range(max(_of_all(group, group.place.local)) + 1):
        if load is not None and turn == group.place.local:
            try:
                loaded.append(_once(load))
            except Exception as error:
                failed = error
        _agree(group, failed)
    return loaded


def _agree(group: Group, failed: Exception | None) -> None:
    """Raise what failed here, or say what failed elsewhere."""
    own = group.place.rank
    if failed is not None:
        group.store.set(f"not loaded {own}", f"{type(failed).__name__}: {failed}")
    broken = [rank for rank, one in enumerate(_of_all(group, int(failed is not None))) if one]
    if failed is not None:
        raise failed
    if broken:
        said = group.store.get(f"not loaded {broken[0]}").decode()
        raise NotLoaded(f"process {broken[0]} of this run could not load the model, and ends it for all: {said}")


def _of_all(group: Group, number: int) -> list[int]:
    ranks = group.ranks
    with group.answering():
        found: list[int] = ranks.gather(torch.tensor([number], device=ranks.device), ranks.size).tolist()
    return found
