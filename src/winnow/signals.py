"""What a selector may ask for, and what it is given: pure data between scoring and choosing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

POWERS = (0, 1, 2)
POOLINGS = ("mean", "position")
META = ("id", "source", "group", "noise")
"""Facts about candidates that no model gives; ``group`` and ``noise`` are hidden labels, for analysis only."""


@dataclass(frozen=True)
class Needs:
    """What a selector asks the scorer to compute; the scorer computes exactly that.

    Powers are powers of the optimizer's preconditioner P (docs/METHOD.md): 0 is raw gradients,
    1 is P, 2 is P squared. ``None`` means the quantity is not needed.

    Args:
        losses: per-example losses of the pool (a forward pass).
        alignment: a in b_i = <g_i, P^a tau>, tau the target gradient.
        gram: p in K_ij = <g_i, P^p g_j>.
        norms: p in ||P^(p/2) g_i||; cheaper than ``gram`` where only its diagonal is used.
        target_norm: the length of tau that belongs to ``gram``, or to ``norms`` where there is none: with it, b_i over
            both lengths is a cosine.
        momentum: subtract from tau what the optimizer's momentum already brings.
        per_task: alignment with the gradient of every target task, and the raw norms of those gradients.
        curvature: <g_i, H sum_j g_j>, H the Hessian of the target loss, raw.
        sketch: size of the CountSketch that ``gram`` and ``alignment`` are taken from; None for exact ones.
        sketch_seed: seed of the CountSketch.
        hidden: pooled last hidden states of the pool, ``mean`` over tokens or weighted by ``position``.
        target_hidden: the same of the target batch.
        nuclear: nuclear norm of each candidate's logits at its response positions.
        reference: losses under the reference model (scoring.reference).
        predicted: what a gate in front of the pool predicts of each candidate.
        meta: facts to be given, of ``META``.

    Raises:
        ValueError: a power is not 0, 1 or 2, a word is unknown, or parts of it exclude each other.
    """

    losses: bool = False
    alignment: int | None = None
    gram: int | None = None
    norms: int | None = None
    target_norm: bool = False
    momentum: bool = False
    per_task: bool = False
    curvature: bool = False
    sketch: int | None = None
    sketch_seed: int = 0
    hidden: str | None = None
    target_hidden: bool = False
    nuclear: bool = False
    reference: bool = False
    predicted: bool = False
    meta: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("alignment", "gram", "norms"):
            power = getattr(self, name)
            if power is not None and power not in POWERS:
                raise ValueError(f"Needs.{name} is a power of P, one of {POWERS}; got {power!r}")
        if self.hidden is not None and self.hidden not in POOLINGS:
            raise ValueError(f"Needs.hidden is one of {', '.join(POOLINGS)} or None; got {self.hidden!r}")
        if self.target_hidden and self.hidden is None:
            raise ValueError("Needs.target_hidden takes the pooling of Needs.hidden, which is None")
        if self.per_task and self.alignment is None:
            raise ValueError("Needs.per_task splits Needs.alignment by task, which is None")
        if set(self.meta) - set(META):
            raise ValueError(f"Needs.meta names facts of {', '.join(META)}; got {self.meta!r}")
        if self.backward and self.states:
            raise ValueError("hidden states and nuclear norms come from a forward alone: ask for no gradients beside")
        if self.target_norm and (self.alignment is None or (self.gram is None and self.norms is None)):
            raise ValueError("Needs.target_norm goes with Needs.alignment and Needs.gram or Needs.norms")
        if self.curvature and self.alignment is None:
            raise ValueError("Needs.curvature is the second order of Needs.alignment, which is None")
        if self.sketch is not None:
            self._check_sketch(self.sketch)

    def _check_sketch(self, size: int) -> None:
        if size < 1 or self.gram is None or self.norms is not None or self.per_task:
            raise ValueError(f"Needs.sketch is a size >= 1 for gram and alignment alone; got {self!r}")
        if self.alignment is not None and self.alignment < self.gram / 2:
            raise ValueError("Needs.sketch needs alignment >= gram / 2: the target would need a negative power of P")

    @property
    def states(self) -> bool:
        """Whether the last hidden states are read."""
        return self.hidden is not None or self.nuclear

    @property
    def geometry(self) -> bool:
        """Whether anything is asked of the optimizer: its P, or its momentum."""
        return self.momentum or any((self.alignment, self.gram, self.norms))

    @property
    def backward(self) -> bool:
        """Whether per-example gradients are needed at all; False never pays for a backward."""
        return any(power is not None for power in (self.alignment, self.gram, self.norms))

    @property
    def target(self) -> bool:
        """Whether a target batch is needed."""
        return self.alignment is not None or self.target_hidden

    @property
    def forward(self) -> bool:
        """Whether the pool has to be scored at all."""
        return self.losses or self.backward or self.states


BY_CANDIDATE: dict[str, int | str | None] = {"axis": 0}
OF_ONE_POOL: dict[str, int | str | None] = {"axis": "none"}
OF_THE_TARGET: dict[str, int | str | None] = {"axis": None}
"""Along which axis signals of several pools are joined, if they can be or have to."""


@dataclass(frozen=True)
class Signals:
    """What scoring one pool gave. Only what was asked for is set; selectors see nothing else.

    Args:
        valid: candidates that may be chosen: response tokens present, loss finite.
        tokens: response tokens of each candidate, those its loss averages over.
        losses: per-example losses, NaN where the candidate has no response token.
        alignment: b, the first-order utility of each candidate.
        gram: K, the inner products of the candidates.
        norms: the gradient norms.
        target_norm: length of the target's gradient, of which |b_i| <= ||u_i|| times it; NaN where it is not known.
        task_alignment: alignment with every target task's own gradient.
        task_norms: norms of the tasks' gradients, raw.
        curvature: <g_i, H sum_j g_j> over the valid candidates j.
        hidden: pooled last hidden states of the pool.
        target_hidden: those of the target batch.
        target_share: share of every target example in the target, summing to one; with ``target_hidden``.
        nuclear: nuclear norms of the logits, before any scale or cap the model puts on them.
        reference: losses under the reference model.
        predicted: by the gate, before the pool was scored.
        meta: the facts asked for, a word per candidate; empty words where there is none.
    """

    valid: Bool[Tensor, " pool"] = field(metadata=BY_CANDIDATE)
    tokens: Int[Tensor, " pool"] = field(metadata=BY_CANDIDATE)
    losses: Float[Tensor, " pool"] | None = field(default=None, metadata=BY_CANDIDATE)
    alignment: Float[Tensor, " pool"] | None = field(default=None, metadata=BY_CANDIDATE)
    gram: Float[Tensor, "pool pool"] | None = field(default=None, metadata=OF_ONE_POOL)
    norms: Float[Tensor, " pool"] | None = field(default=None, metadata=BY_CANDIDATE)
    target_norm: Float[Tensor, ""] | None = field(default=None, metadata=OF_THE_TARGET)
    task_alignment: Float[Tensor, "tasks pool"] | None = field(default=None, metadata={"axis": 1})
    task_norms: Float[Tensor, " tasks"] | None = field(default=None, metadata=OF_THE_TARGET)
    curvature: Float[Tensor, " pool"] | None = field(default=None, metadata=OF_ONE_POOL)
    hidden: Float[Tensor, "pool width"] | None = field(default=None, metadata=BY_CANDIDATE)
    target_hidden: Float[Tensor, "target width"] | None = field(default=None, metadata=OF_THE_TARGET)
    target_share: Float[Tensor, " target"] | None = field(default=None, metadata=OF_THE_TARGET)
    nuclear: Float[Tensor, " pool"] | None = field(default=None, metadata=BY_CANDIDATE)
    reference: Float[Tensor, " pool"] | None = field(default=None, metadata=BY_CANDIDATE)
    predicted: Float[Tensor, " pool"] | None = field(default=None, metadata=BY_CANDIDATE)
    meta: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[Signals]) -> Signals:
        """Signals of several pools as those of one.

        Args:
            parts: at least one, all with the same fields; what is of the target is taken from the first.

        Returns:
            Their candidates one after the other.

        Raises:
            ValueError: there is no part, or one has what stands between the candidates of a single pool.
        """
        if not parts:
            raise ValueError("the stream gives no candidates to score")
        found: dict[str, Any] = {}
        for one in fields(cls):
            value = getattr(parts[0], one.name)
            if value is None or "axis" not in one.metadata:
                continue
            if one.metadata["axis"] == OF_ONE_POOL["axis"]:
                raise ValueError(f"Signals.{one.name} is of one pool, and cannot be joined")
            axis = one.metadata["axis"]
            found[one.name] = value if axis is None else torch.cat([getattr(part, one.name) for part in parts], axis)
        meta = {name: [word for part in parts for word in part.meta[name]] for name in parts[0].meta}
        return cls(**found, meta=meta)

    def part(self, rows: slice) -> Signals:
        """Signals of some candidates as those of a pool.

        Args:
            rows: of the pool.

        Returns:
            Theirs, and what is of the target.

        Raises:
            ValueError: there is the curvature, which is of all candidates of the pool.
        """
        if self.curvature is not None:
            raise ValueError("Signals.curvature is of one pool, and cannot be cut")
        cut: dict[str, Any] = {"meta": {name: words[rows] for name, words in self.meta.items()}}
        for one in fields(self):
            value, axis = getattr(self, one.name), one.metadata.get("axis")
            if value is None or axis is None:
                continue
            cut[one.name] = value[rows] if axis == 0 else value[:, rows] if axis == 1 else value[rows, rows]
        return replace(self, **cut)

    def cpu(self) -> Signals:
        """The same on the CPU.

        Returns:
            Signals.
        """
        held: dict[str, Any] = {name: value.cpu() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **held)

    def __len__(self) -> int:
        """Size of the pool, B."""
        return len(self.valid)
