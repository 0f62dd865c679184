"""The table of selectors: the contract tests run every row, and a selector without a row fails them."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from winnow import selectors
from winnow.signals import Needs, Signals

NOTHING, FORWARD, FORWARD_TARGET = (False, False, False), (True, False, False), (True, False, True)
GRADIENTS, GRADIENTS_TARGET = (True, True, False), (True, True, True)
"""What a method asks the scorer for: a forward, a backward, a target."""


@dataclass(frozen=True)
class Case:
    """A selector as the tests see it.

    ``asks`` is what the default needs. ``variants`` are settings worth running beside the default, at ``filter_size``
    4; ``keeps`` says how many are kept of a pool where everything is valid and useful: "k" | "up to k" | "all".
    ``contract`` is False for what chooses by a record instead of by the pool. ``small`` are settings that bound the
    state.
    """

    name: str
    build: type
    asks: tuple[bool, bool, bool]
    variants: tuple[dict[str, Any], ...] = ({},)
    keeps: str = "k"
    draws: bool = False
    state: bool = False
    contract: bool = True
    small: dict[str, Any] = field(default_factory=dict)

    def every(self, **options: Any) -> list[Any]:
        """One selector per variant."""
        return [self.build(**{**variant, **options}) for variant in self.variants]


CASES = [
    Case(
        "filter_weight",
        selectors.FilterWeight,
        GRADIENTS_TARGET,
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
    Case("full", selectors.Full, NOTHING, keeps="all"),
    Case("random", selectors.Random, NOTHING, draws=True),
    Case("gate_only", selectors.GateOnly, NOTHING),
    Case("max_loss", selectors.MaxLoss, FORWARD),
    Case("grad_norm", selectors.GradNorm, GRADIENTS),
    Case("grad_norm", selectors.GradNorm, GRADIENTS, ({"sampling": "importance"},), keeps="up to k", draws=True),
    Case("tracin", selectors.TracIn, GRADIENTS_TARGET, ({}, {"aggregate": "max"})),
    Case("greats", selectors.Greats, GRADIENTS_TARGET, ({}, {"as_released": True, "lr": 1e-3})),
    Case("mid_ppl", selectors.MidPPL, FORWARD, ({}, {"center": 0.25})),
    Case("mid_ppl", selectors.MidPPL, FORWARD, ({"width": 0.7},), draws=True),
    Case("selective_backprop", selectors.SelectiveBackprop, FORWARD, draws=True, state=True, small={"window": 30}),
    Case(
        "selective_backprop",
        selectors.SelectiveBackprop,
        FORWARD,
        ({"sampling": "bernoulli"},),
        keeps="up to k",
        draws=True,
    ),
    Case("rho_loss", selectors.RhoLoss, FORWARD),
    Case("embedding", selectors.Embedding, FORWARD_TARGET),
    Case("less", selectors.Less, GRADIENTS_TARGET, ({}, {"aggregate": "mean"})),
    Case(
        "opus", selectors.Opus, GRADIENTS_TARGET, ({}, {"sketch": None}, {"as_released": True, "lr": 1e-3}), draws=True
    ),
    Case("grad_match", selectors.GradMatch, GRADIENTS, ({}, {"match": "target"}, {"ridge": 0.0}), keeps="up to k"),
    Case("craig", selectors.Craig, GRADIENTS, keeps="up to k"),
    Case("uds", selectors.UDS, FORWARD, ({}, {"alpha": 0.0}), state=True, small={"buffer": 30}),
    Case("colm", selectors.CoLM, GRADIENTS),
    Case(
        "influence_distillation",
        selectors.InfluenceDistillation,
        GRADIENTS_TARGET,
        ({}, {"w_max": 2.0}),
        keeps="up to k",
    ),
    Case("adapt", selectors.Adapt, FORWARD_TARGET, ({}, {"normalise": "none"}), keeps="all"),
    Case("data_shapley", selectors.DataShapley, GRADIENTS_TARGET, ({}, {"order": "second", "lr": 0.1})),
    Case("data_shapley", selectors.DataShapley, GRADIENTS_TARGET, ({"weighting": "proportional"},), keeps="up to k"),
    Case("oracle", selectors.Oracle, NOTHING, draws=True, state=True),
    Case("replay", selectors.Replay, NOTHING, ({"ledger": "nowhere"},), contract=False),
]


@dataclass
class Pool:
    """Dense float64 gradients drawn at random, from which every signal follows by its definition."""

    gradients: Tensor
    target: Tensor
    diagonal: Tensor
    losses: Tensor
    momentum: Tensor
    valid: Tensor
    hidden: Tensor
    nuclear: Tensor
    reference: Tensor
    predicted: Tensor
    meta: dict[str, list[str]]
    anchors: Tensor
    share: Tensor
    tasks: Tensor
    hessian: Tensor

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
            hidden=normal(size, 6) + 1,
            nuclear=normal(size).exp(),
            reference=normal(size).exp(),
            predicted=normal(size),
            meta={
                "id": [f"example-{at}" for at in range(size)],
                "source": [("dolly", "flan", "flan", "cot", "flan", "cot")[at % 6] for at in range(size)],
                "group": [("in", "near", "", "near")[at % 4] for at in range(size)],
                "noise": [("", "", "wrong")[at % 3] for at in range(size)],
            },
            anchors=normal(5, 6) + 1,
            share=torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64),
            tasks=normal(3, width),
            hessian=(lambda root: root @ root.T / width)(normal(width, width)),
        )

    def spoil(self, rows: Any, value: float) -> None:
        """Make everything that scoring says of some candidates a number that is not finite."""
        for held in (self.gradients, self.losses, self.hidden, self.nuclear, self.reference, self.predicted):
            held[rows] = value

    def __len__(self) -> int:
        return len(self.gradients)

    def __getitem__(self, index: Any) -> "Pool":
        """The candidates at some positions, in that order."""
        index = torch.as_tensor(index)
        fields = ("gradients", "losses", "valid", "hidden", "nuclear", "reference", "predicted")
        chosen = {name: getattr(self, name)[index] for name in fields}
        meta = {name: [words[at] for at in index.tolist()] for name, words in self.meta.items()}
        return replace(self, **chosen, meta=meta)

    def products(self, gram: int, alignment: int, momentum: bool = False) -> tuple[Tensor, Tensor]:
        """K and b at powers of P."""
        target = self.target - self.momentum if momentum else self.target
        kernel = (self.gradients * self.diagonal**gram) @ self.gradients.T
        return kernel, self.gradients @ (self.diagonal**alignment * target)

    def _length(self, needs: Needs) -> Tensor:
        """sqrt(tau^T P^(2a-p) tau), so that b_i / (||u_i|| times it) is a cosine."""
        power = 2 * (needs.alignment or 0) - ((needs.norms if needs.gram is None else needs.gram) or 0)
        return (self.target.square() * self.diagonal**power).sum().sqrt()

    def signals(self, needs: Needs, dtype: torch.dtype = torch.float64) -> Signals:
        """What was asked for, and nothing else."""
        kernel, alignment = self.products(needs.gram or 0, needs.alignment or 0, needs.momentum)
        by_task = self.tasks @ (self.gradients * self.diagonal ** (needs.alignment or 0)).T
        total = self.gradients[self.valid & self.gradients.isfinite().all(1)].sum(0)
        norms = (self.gradients.square() * self.diagonal ** (needs.norms or 0)).sum(1).sqrt()
        return Signals(
            valid=self.valid,
            tokens=torch.full((len(self),), 5),
            losses=self.losses.to(dtype) if needs.losses else None,
            alignment=None if needs.alignment is None else alignment.to(dtype),
            gram=None if needs.gram is None else kernel.to(dtype),
            norms=None if needs.norms is None else norms.to(dtype),
            target_norm=self._length(needs).to(dtype) if needs.target_norm else None,
            task_alignment=by_task.to(dtype) if needs.per_task else None,
            task_norms=self.tasks.norm(dim=1).to(dtype) if needs.per_task else None,
            curvature=(self.gradients @ self.hessian @ total).to(dtype) if needs.curvature else None,
            hidden=None if needs.hidden is None else self.hidden.to(dtype),
            target_hidden=self.anchors.to(dtype) if needs.target_hidden else None,
            target_share=self.share if needs.target_hidden else None,
            nuclear=self.nuclear.to(dtype) if needs.nuclear else None,
            reference=self.reference.to(dtype) if needs.reference else None,
            predicted=self.predicted.to(dtype) if needs.predicted else None,
            meta={name: self.meta[name] for name in needs.meta},
        )
