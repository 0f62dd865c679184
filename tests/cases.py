"""The table of selectors: the contract tests run every row, and a selector without a row fails them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from winnow import selectors
from winnow.signals import Needs, Signals


@dataclass(frozen=True)
class Case:
    """A selector as the tests see it.

    ``variants`` are settings worth running beside the default, at ``filter_size`` 4; ``keeps`` says how many
    are kept of a pool where everything is valid and useful: "k" | "up to k" | "all" | "any".
    """

    name: str
    build: type
    variants: tuple[dict[str, Any], ...] = ({},)
    keeps: str = "k"
    draws: bool = False
    state: bool = False

    def every(self, **options: Any) -> list[Any]:
        """One selector per variant."""
        return [self.build(**{**variant, **options}) for variant in self.variants]


CASES = [
    Case(
        "filter_weight",
        selectors.FilterWeight,
        (
            {},
            *({"filter": name} for name in ("top", "omp", "nnls", "greedy")),
            *({"weight": name} for name in ("uniform", "proportional", "softmax", "simplex", "box")),
            *({"match": name} for name in ("target", "update", "raw")),
            {"filter": "omp", "fill": False, "ridge": 0.1},
            {"filter": "top", "weight": "uniform"},
            {"normalise": "none"},
            {"momentum": True},
        ),
        keeps="up to k",
    ),
    Case("full", selectors.Full, keeps="all"),
    Case("random", selectors.Random, draws=True),
    Case("max_loss", selectors.MaxLoss),
    Case("grad_norm", selectors.GradNorm),
    Case("grad_norm", selectors.GradNorm, ({"sampling": "importance"},), keeps="up to k", draws=True),
    Case("tracin", selectors.TracIn),
    Case("greats", selectors.Greats, ({}, {"as_released": True, "lr": 1e-3})),
]


@dataclass
class Pool:
    """Dense float64 gradients drawn at random, from which every signal follows by its definition."""

    gradients: Tensor
    target: Tensor
    diagonal: Tensor
    losses: Tensor
    momentum: Tensor
    valid: Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    def draw(cls, size: int = 12, width: int = 30, seed: int = 0) -> "Pool":
        """A pool whose candidates share something with the target, P of uneven entries."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        target = normal(width)
        lengths = torch.rand(size, 1, generator=generator, dtype=torch.float64) + 0.5
        return cls(
            gradients=(normal(size, width) + torch.rand(size, 1, generator=generator, dtype=torch.float64) * target)
            * lengths,
            target=target,
            diagonal=normal(width).exp(),
            losses=normal(size).exp(),
            momentum=normal(width) * 0.1,
            valid=torch.ones(size, dtype=torch.bool),
        )

    def __len__(self) -> int:
        return len(self.gradients)

    def __getitem__(self, index: Any) -> "Pool":
        """The candidates at some positions, in that order."""
        index = torch.as_tensor(index)
        return Pool(
            self.gradients[index],
            self.target,
            self.diagonal,
            self.losses[index],
            self.momentum,
            self.valid[index],
        )

    def products(self, gram: int, alignment: int, momentum: bool = False) -> tuple[Tensor, Tensor]:
        """K and b at powers of P."""
        target = self.target - self.momentum if momentum else self.target
        kernel = (self.gradients * self.diagonal**gram) @ self.gradients.T
        return kernel, self.gradients @ (self.diagonal**alignment * target)

    def signals(self, needs: Needs, dtype: torch.dtype = torch.float64) -> Signals:
        """What was asked for, and nothing else."""
        kernel, alignment = self.products(needs.gram or 0, needs.alignment or 0, needs.momentum)
        norms = (self.gradients.square() * self.diagonal ** (needs.norms or 0)).sum(1).sqrt()
        return Signals(
            valid=self.valid,
            tokens=torch.full((len(self),), 5),
            losses=self.losses.to(dtype) if needs.losses else None,
            alignment=None if needs.alignment is None else alignment.to(dtype),
            gram=None if needs.gram is None else kernel.to(dtype),
            norms=None if needs.norms is None else norms.to(dtype),
        )
