"""What taking K and b costs, in multiplications, beside plain training over the same examples."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from winnow.gradients.factors.base import Factor


def form_cost(size: int, length: int, rows: int, columns: int, alignment: bool) -> float:
    """Multiplications that forming G_i, their Gram, and b if wanted take.

    Args:
        size: examples B.
        length: tokens T.
        rows: of the parameter.
        columns: of the parameter.
        alignment: whether b is wanted too.

    Returns:
        B T d p + B^2 d p (+ B d p).
    """
    return float(size * rows * columns * (length + size + alignment))


def token_cost(size: int, length: int, rows: int, columns: int, alignment: bool) -> float:
    """Multiplications that the token products, and b by one matmul if wanted, take.

    Args:
        size: examples B.
        length: tokens T.
        rows: of the parameter.
        columns: of the parameter.
        alignment: whether b is wanted too.

    Returns:
        B (B + 1) / 2 T^2 (d + p) (+ B T d p).
    """
    pairs = size * (size + 1) / 2
    return pairs * length**2 * (rows + columns) + alignment * float(size * length * rows * columns)


def sketch_cost(size: int, length: int, rows: int, columns: int, dim: int) -> float:
    """Multiplications that folding both sides and multiplying them out take.

    Args:
        size: examples.
        length: tokens T.
        rows: of the parameter.
        columns: of the parameter.
        dim: buckets of a side.

    Returns:
        B T (d + p + c c'), a side of no more than ``dim`` staying as it is.
    """
    return float(size * length * (rows + columns + min(rows, dim) * min(columns, dim)))


def plain_cost(model: nn.Module, tokens: int) -> float:
    """Multiplications of a forward and backward through the model's linear maps.

    Args:
        model: a model; attention, norms and embeddings are left out.
        tokens: of the whole batch.

    Returns:
        Three per token and weight that is trained, two per weight that is frozen.
    """
    maps: list[Any] = [
        module for module in model.modules() if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]
    weights: dict[int, nn.Parameter] = {id(module.weight): module.weight for module in maps}
    return float(sum(weight.numel() * (3 if weight.requires_grad else 2) * tokens for weight in weights.values()))


class Work:
    """What was done for K and b of one batch, by kind.

    Args:
        dim: buckets of a sketch's side.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.kinds: Counter[str] = Counter()
        self.multiplications = 0.0
        self.others = 0

    def note(self, kind: str, factor: Factor, targets: int) -> None:
        """Count a parameter.

        Args:
            kind: ``formed`` | ``token products`` | ``sketched``.
            factor: gradients of the candidates.
            targets: target examples whose gradient was taken.
        """
        if factor.length is None:
            self.others += 1
            return
        self.kinds[kind] += 1
        size, length = len(factor), factor.length
        rows, columns = factor.shape
        if kind == "sketched":
            self.multiplications += sketch_cost(size + targets, length, rows, columns, self.dim)
            return
        cost = token_cost if kind == "token products" else form_cost
        self.multiplications += cost(size, length, rows, columns, True) + float(targets * length * rows * columns)

    def describe(self, model: nn.Module, tokens: int) -> str:
        """One line for the log.

        Args:
            model: the model.
            tokens: of pool and target together, padding included.

        Returns:
            How many linear maps were treated how, and the share of plain training's multiplications.
        """
        maps = ", ".join(f"{number} {kind}" for kind, number in self.kinds.most_common())
        plain = plain_cost(model, tokens)
        share = f"; {self.multiplications / plain:.0%} of the multiplications of plain training" if plain else ""
        return f"K and b of linear maps: {maps or 'none'}; of {self.others} other parameters{share}"
