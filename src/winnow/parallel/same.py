"""Silent divergence made impossible: processes compare what they train."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from winnow.lm.shards import in_rows
from winnow.parallel.ranks import Ranks

FIRST, EVERY = 3, 1000
"""Compared after each of the first updates, and after every so many."""

PIECE = 2**22
"""Numbers that are looked at in one go."""


class Diverged(RuntimeError):
    """Processes train different parameters, which no later step mends."""


def due(updates: int) -> bool:
    """Whether parameters are compared after an update.

    Args:
        updates: made so far.

    Returns:
        True after the first ones and after every thousandth.
    """
    return 0 < updates <= FIRST or (updates > 0 and updates % EVERY == 0)


def digest(parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """Two sums over the bits of all numbers, of which the second tells places apart.

    Args:
        parameters: by name.

    Returns:
        Two whole numbers, the same for the same bits.
    """
    held = list(parameters.values())
    total = torch.zeros(2, dtype=torch.int64, device=held[0].device if held else None)
    for number, parameter in enumerate(held):
        # A piece at a time: what is widened to 64 bits takes several times the memory of the parameter.
        for start, piece in enumerate(parameter.detach().contiguous().flatten().split(PIECE)):
            bits = piece.view(torch.uint8).to(torch.int64)
            place = torch.arange(1, len(bits) + 1, device=bits.device) % 65521
            total[0] += bits.sum()
            total[1] += (number + 1) * (start + 1) * (bits * place).sum()
    return total


def check_same(parameters: Mapping[str, nn.Parameter], ranks: Ranks, updates: int) -> None:
    """Stop where processes hold different parameters.

    Args:
        parameters: the trained ones by name, of which those are compared that every process holds whole.
        ranks: the processes.
        updates: made so far, for the message.

    Raises:
        Diverged: they differ.
    """
    parameters = {name: held for name, held in parameters.items() if not in_rows(held)}
    if not parameters:  # nothing is there twice
        return
    own = digest(parameters).to(ranks.device)
    whole = ranks.gather(own[None], ranks.size)
    if not bool((whole == whole[0]).all()):
        other = [number for number in range(ranks.size) if not torch.equal(whole[number], whole[0])]
        raise Diverged(
            f"after update {updates} the trained parameters of process {', '.join(map(str, other))} are not those of "
            f"process 0: {ranks.size} processes train different models. Something changed parameters or gradients in "
            "one process alone (a callback, a hook, a random number); every process has to do the same"
        )
