"""What taking K and b costs, in multiplications, beside plain training over the same examples."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from winnow.gradients.factors.base import Factor
from winnow.signals import Needs


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
    """Multiplications that multiplying out both sides, once folded, and the products of the sketches take.

    A fold is a sum and no product of matrices.

    Args:
        size: examples.
        length: tokens T.
        rows: of the parameter.
        columns: of the parameter.
        dim: buckets of a side.

    Returns:
        B (T + B) c c', a side of no more than ``dim`` staying as it is.
    """
    return float(size * (length + size) * min(rows, dim) * min(columns, dim))


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

    def spend(self, multiplications: float) -> None:
        """Count what is done beside a parameter's products.

        Args:
            multiplications: of matrix products.
        """
        self.multiplications += multiplications

    def beside(self, factor: Factor, targets: int, tasks: int, curved: bool) -> None:
        """Count what is taken of a parameter beside K, b and norms.

        Args:
            factor: gradients of the candidates.
            targets: target examples whose gradient was taken, once for every task.
            tasks: target tasks that candidates met one by one.
            curved: whether they met a product with the Hessian, too.
        """
        each = factor.combining
        self.spend(each * (tasks * (1 + targets / max(len(factor), 1)) + curved))

    def note(
        self,
        kind: str,
        factor: Factor,
        targets: int,
        needs: Needs = Needs(gram=0, alignment=0),  # noqa: B008 - it is frozen
        aligned: bool = True,
    ) -> None:
        """Count a parameter.

        Args:
            kind: how K was taken: ``formed`` | ``token products`` | ``sketched``.
            factor: gradients of the candidates.
            targets: target examples whose gradient was taken.
            needs: what was taken of them.
            aligned: whether b came with K.
        """
        size, numbers, forming = len(factor), self._reached(factor), factor.forming
        if factor.length is None:
            self.others += 1
        else:
            self.kinds[kind] += 1
        apart = needs.alignment is not None and not (aligned and needs.gram is not None)
        if kind == "sketched" and factor.length is not None and needs.gram is not None:
            rows, columns = factor.shape
            self.multiplications += sketch_cost(size + targets, factor.length, rows, columns, self.dim)
            return
        if needs.gram is not None and kind == "token products" and factor.length is not None:
            self.multiplications += token_cost(size, factor.length, factor.shape[0], factor.shape[1], False)
        elif needs.gram is not None:
            self.multiplications += forming + size * size * numbers + (0 if apart else size * numbers)
        if apart:
            self.multiplications += factor.combining or size * numbers
        if needs.norms is not None:
            self.multiplications += forming
        self.multiplications += targets * factor.combining / max(size, 1)

    def _reached(self, factor: Factor) -> float:
        """Numbers of a formed gradient, rows that no example touches left out."""
        rows = factor.support()
        return float(factor.shape.numel() if rows is None else len(rows) * factor.shape[1:].numel())

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
